# SPDX-License-Identifier: Apache-2.0
"""The model: several detectors, joined by what their scores are worth."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from ksentinel.detectors import Anomaly, Detector, MemberScore
from ksentinel.detectors.calibration import Calibration, combine
from ksentinel.detectors.kerneltable import KernelTable
from ksentinel.detectors.ngram import NGramModel
from ksentinel.detectors.profiles import Profile, Profiles
from ksentinel.errors import ModelError
from ksentinel.event import Origin
from ksentinel.level import Level
from ksentinel.window import LENGTH, Window

THRESHOLDS: Mapping[Level, float] = MappingProxyType({Level.LOW: 1e-3, Level.MEDIUM: 1e-5})
"""
Largest p-value of each level: one normal window of a thousand, and one of a hundred thousand.

No higher ones: a detector knows unusual, not harmful.
"""


class Model:
    """
    Fitted detectors, each with its calibration.

    Parameters
    ----------
    members
        Detectors with different names.
    calibrations
        By detector's name, fitted on windows that no detector was fitted on.
    profiles
        The profiles that training saw.
    thresholds
        Level to largest p-value.
    arch
        Whose system call numbers the tokens are: ``x86_64``.
    origin
        Which collector's windows it knows; another one sees other calls, and all of them would look new.
    kernel
        Its part for the kernel; set when it has just been trained.

    Raises
    ------
    ModelError
        If a member has no calibration, or the thresholds are in no order.
    """

    def __init__(
        self,
        members: Sequence[Detector],
        calibrations: Mapping[str, Calibration],
        profiles: Profiles,
        *,
        thresholds: Mapping[Level, float] = THRESHOLDS,
        arch: str = "x86_64",
        origin: Origin = Origin.BPF,
        kernel: KernelTable | None = None,
    ) -> None:
        self.members = {member.name: member for member in members}
        if not members or len(self.members) != len(members) or set(calibrations) != set(self.members):
            raise ModelError("each member of a model has a name of its own and a calibration")
        ordered = [thresholds[level] for level in sorted(thresholds)]
        if ordered != sorted(ordered, reverse=True) or not all(0 < p < 1 for p in ordered):
            raise ModelError("thresholds are p-values between 0 and 1, smaller for a higher level")
        self.calibrations = dict(calibrations)
        self.profiles = profiles
        self.thresholds = MappingProxyType({level: thresholds[level] for level in sorted(thresholds)})
        self.arch = arch
        self.origin = origin
        self.kernel = kernel
        self._notes: dict[str, str] = {}
        self._changed: set[str] = set()

    def recognise(self, program: str, known: str, note: str, *, changed: bool = False) -> None:
        """
        Compare *program* with the profile of *known* from now on, and note on its anomalies what it is.

        Parameters
        ----------
        changed
            Its content isn't that of training.

        Raises
        ------
        ModelError
            If no profile is of *known*.
        """
        if (known, "") not in self.profiles.roots:
            raise ModelError(f"the model has no profile of {known}")
        self._notes[program] = note
        if changed:
            self._changed.add(program)
        if program != known:
            for profiles in (self.profiles, *(getattr(m, "profiles_", None) for m in self.members.values())):
                if profiles is not None:
                    profiles.aliases[program] = known

    def member(self, name: str) -> Detector:
        """Return the detector of that *name*; raises ModelError if there is none."""
        if name not in self.members:
            raise ModelError(f"the model has no member {name!r}, only {', '.join(self.members)}")
        return self.members[name]

    def profile_of(self, window: Window) -> tuple[Profile, bool]:
        """Return the profile that *window* is compared with, and whether its executable is unseen."""
        return self.profiles.find(window.profile)

    def trained_on(self, profile: Profile) -> int:
        """Return how many windows of *profile* training saw, by its system calls; 0 if no member counts them."""
        for member in self.members.values():
            if isinstance(member, NGramModel):
                return -(-member.followed((), profile) // LENGTH)
        return 0

    def level(self, p_value: float) -> Level:
        """Return the highest level whose threshold *p_value* doesn't exceed."""
        return max((level for level, p in self.thresholds.items() if p_value <= p), default=Level.NONE)

    def assess(self, windows: Sequence[Window]) -> list[Anomaly]:
        """
        Say how unusual each window is, one answer for each.

        In batches: what a call costs is shared by its windows.

        Raises
        ------
        ModelError
            If a window comes from another collector, is longer than the windows of training, or has something that
            is no token.
        """
        if not windows:
            return []
        for window in windows:
            if window.origin is not self.origin:
                raise ModelError(
                    f"the model knows windows of origin {self.origin}, this one is of {window.origin}",
                    remedy="train a model on recordings of that collector",
                )
            if len(window.tokens) > LENGTH:
                raise ModelError(f"a window of {len(window.tokens)} system calls, the model knows {LENGTH}")
        found = [self.profile_of(window) for window in windows]
        profiles = [profile for profile, _ in found]
        scores = {name: member.score(windows) for name, member in self.members.items()}
        p_values = {
            name: self.calibrations[name].p_values(member_scores, profiles)
            for name, member_scores in scores.items()
        }
        combined = combine(p_values)
        anomalies = []
        for i, (window, (profile, unseen)) in enumerate(zip(windows, found, strict=True)):
            members = tuple(
                MemberScore(name, float(scores[name][i]), float(p_values[name][i])) for name in self.members
            )
            p_value = float(combined[i])
            decided_by = min(members, key=lambda member: member.p_value).name
            level = self.level(p_value)
            anomalies.append(
                Anomaly(
                    window=window,
                    p_value=p_value,
                    level=level,
                    members=members,
                    decided_by=decided_by,
                    profile=profile,
                    unseen=unseen,
                    calibrated_on=self.calibrations[decided_by].size(profile),
                    trained_on=self.trained_on(profile) if level is not Level.NONE else 0,
                    changed=window.process.program in self._changed,
                    note=self._notes.get(window.process.program, ""),
                )
            )
        return anomalies

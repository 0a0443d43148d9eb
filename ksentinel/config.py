# SPDX-License-Identifier: Apache-2.0
"""
Configuration: one YAML file, one frozen dataclass a room; a misspelt key is an error.

Every key has a default; ``docs/configuration.md`` lists them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import msgspec
import yaml

from ksentinel.errors import ConfigError, Location

_LONGEST = 10 * 365 * 86400
_LARGEST_RING = 1024
_MOST = 1_000_000_000
_LARGEST_FILE = 1 << 16
_DEEPEST = 8


@dataclass(frozen=True, slots=True)
class CollectorConfig:
    """The BPF collector."""

    idle_seconds: float = 2.0
    """A thread that slept this long on a part-filled window has it flushed."""
    ring_megabytes: int = 16
    """Size of the ring buffer; a power of two."""
    sample: float = 0.01
    """Share of windows that the kernel sends although it finds nothing unusual in them."""
    calls_a_second: int = 5000
    """Calls with their arguments that one process may send in a second; 0: no limit."""


@dataclass(frozen=True, slots=True)
class IncidentConfig:
    """Bringing rules and model together."""

    agree_seconds: float = 30.0
    """How far apart a match and an anomaly may be and still agree."""
    quiet_seconds: float = 300.0
    """A branch of processes that was quiet this long has its incident closed."""
    fold_seconds: float = 3600.0
    """For how long an alert keeps counting incidents that look like it."""


@dataclass(frozen=True, slots=True)
class NoiseConfig:
    """How much is told."""

    alerts_an_hour: int = 20
    """New alerts below level high that one rule may tell in an hour; 0: any number."""
    alerts_a_day: int = 200
    """New alerts below level high in a day, before who made most of them is quietened; 0: any number."""
    max_triples: int = 10_000
    """How many rule, executable and parent are told apart in a day."""
    longest_mute_seconds: float = 86400.0
    """For how long something may be muted at most."""


@dataclass(frozen=True, slots=True)
class RulesConfig:
    """The rule engine."""

    paths: tuple[str, ...] = ()
    """Rule files and directories; empty: the rules that ship with ksentinel."""
    policy: str = ""
    """What rules and model are worth together; empty: the policy that ships with ksentinel."""
    exceptions: str = ""
    """Matches that are expected; empty: none."""


@dataclass(frozen=True, slots=True)
class PrivacyConfig:
    """What is kept of what was seen."""

    redact: bool = True
    """Mask passwords and tokens in arguments before anything is stored."""


@dataclass(frozen=True, slots=True)
class StoreConfig:
    """Alerts and the events around them, on disk."""

    max_alerts: int = 10_000
    """Beyond so many alerts those written longest ago are removed."""
    max_events: int = 100_000
    """The same of kept events; one that several alerts keep counts for each of them."""
    max_suppressed: int = 100_000
    """The same of counts of what was suppressed: one for each rule, executable, parent and hour."""
    max_denials: int = 10_000
    """The same of counts of denials: one for each rule, hook, executable, service, outcome and mode."""


@dataclass(frozen=True, slots=True)
class ControlConfig:
    """The control socket."""

    socket: str = ""
    """Its path; empty: /run/ksentinel/control.sock for root, in $XDG_RUNTIME_DIR for others."""
    group: str = "ksentinel"
    """Whose members may ask."""


@dataclass(frozen=True, slots=True)
class EnforceConfig:
    """What the kernel refuses by itself."""

    file: str = ""
    """The operator's file about enforcement; empty: rules that ask for inline alone."""
    mode: str = "permissive"
    """Where neither a rule nor a control group has one."""
    on_exit: str = "open"
    """What becomes of guards when ksentinel ends without having been asked to."""
    hold_seconds: float = 300.0
    """With *on_exit* hold: for how long guards that are pinned go on without ksentinel."""
    two_key_seconds: float = 30.0
    """After so long without ksentinel scores don't count as a second key any more."""
    over_seconds: float = 30.0
    """For how long a process counts as over its threshold after it was."""
    proof_seconds: float = 2.0
    """How long one attempt of the canary may take; all of them together five times as long."""
    sentence_seconds: float = 600.0
    """How long a verdict on a process (quarantine, kill) lasts."""
    denials_a_second: int = 100
    """Records of denials that one process may cause in a second; 0: no limit."""


_HEARTBEATS = 5
"""Seconds: guards that count on heartbeats have to bear that some are late."""
_WORDS = {"mode": ("off", "permissive", "enforce"), "on_exit": ("open", "hold")}


@dataclass(frozen=True, slots=True)
class Config:
    """All rooms' parts."""

    collector: CollectorConfig = field(default_factory=CollectorConfig)
    incident: IncidentConfig = field(default_factory=IncidentConfig)
    noise: NoiseConfig = field(default_factory=NoiseConfig)
    rules: RulesConfig = field(default_factory=RulesConfig)
    privacy: PrivacyConfig = field(default_factory=PrivacyConfig)
    store: StoreConfig = field(default_factory=StoreConfig)
    control: ControlConfig = field(default_factory=ControlConfig)
    enforce: EnforceConfig = field(default_factory=EnforceConfig)

    @classmethod
    def from_dict(
        cls, plain: Any, at: Path | None = None, places: Mapping[tuple[str, ...], Location] | None = None
    ) -> "Config":
        """
        Build from a parsed file.

        Parameters
        ----------
        at
            The file.
        places
            Where in it each section ``(section,)`` and key ``(section, key)`` stands.

        Raises
        ------
        ConfigError
            For an unknown section or key, a value of the wrong type, or one that makes no sense.

        Examples
        --------
        >>> Config.from_dict({"incident": {"agree_second": 6}})
        Traceback (most recent call last):
            ...
        ksentinel.errors.ConfigError: [incident] has no agree_second (it has agree_seconds, quiet_seconds, fold_seconds)
        """

        def where(*keys: str) -> Location | Path | None:
            return (places or {}).get(keys, at)

        if not isinstance(plain, dict):
            raise ConfigError("is no mapping of sections", at=at, remedy="see docs/configuration.md")
        parts = {}
        types: dict[str, Any] = {f.name: f.type for f in fields(cls)}
        for section, values in plain.items():
            if section not in types:
                raise ConfigError(
                    f"has no section {section}", at=where(section), remedy=f"it has {', '.join(types)}"
                )
            known = [f.name for f in fields(types[section])]
            for key in values if isinstance(values, dict) else ():
                if key not in known:
                    raise ConfigError(
                        f"[{section}] has no {key}",
                        at=where(section, key),
                        remedy=f"it has {', '.join(known)}",
                    )
            if section == "enforce" and isinstance(values, dict) and values.get("mode") is False:
                values = values | {"mode": "off"}  # noqa: PLW2901 -- YAML takes a plain off for a truth value
            try:
                parts[section] = msgspec.convert(values, types[section])
            except msgspec.ValidationError as error:
                said, _, path = str(error).partition(" - at `$.")
                key = path.rstrip("`").partition("[")[0]
                raise ConfigError(
                    f"[{section}] {key}{': ' if key else ''}{said}",
                    at=where(section, *([key] if key else [])),
                    remedy="see docs/configuration.md",
                ) from None
            for name, value in values.items():
                if name.endswith("_seconds") and not 0 < value < _LONGEST:
                    raise ConfigError(
                        f"[{section}] {name} is {value}",
                        at=where(section, name),
                        remedy=f"say more than 0 and less than {_LONGEST}",
                    )
                if name.startswith("max_") and not 1 <= value <= _MOST:
                    raise ConfigError(
                        f"[{section}] {name} is {value}",
                        at=where(section, name),
                        remedy=f"say a number from 1 to {_MOST}",
                    )
        config = cls(**parts)
        size = config.collector.ring_megabytes
        if not 1 <= size <= _LARGEST_RING or size & (size - 1):
            raise ConfigError(
                f"[collector] ring_megabytes is {size}, no power of two up to {_LARGEST_RING}",
                at=where("collector", "ring_megabytes"),
                remedy="say 16 or 32",
            )
        for name, good, remedy in (
            ("sample", 0 <= config.collector.sample <= 1, "say a share from 0 to 1"),
            ("calls_a_second", 0 <= config.collector.calls_a_second < 1 << 32, "say 0 for no limit, or 5000"),
        ):
            if not good:
                raise ConfigError(
                    f"[collector] {name} is {getattr(config.collector, name)}",
                    at=where("collector", name),
                    remedy=remedy,
                )
        for name, words in _WORDS.items():
            said = getattr(config.enforce, name)
            if said not in words:
                raise ConfigError(
                    f"[enforce] {name} is {said!r}",
                    at=where("enforce", name),
                    remedy=f"say {', '.join(words)}",
                )
        for name in ("hold_seconds", "two_key_seconds"):
            if getattr(config.enforce, name) < _HEARTBEATS:
                raise ConfigError(
                    f"[enforce] {name} is {getattr(config.enforce, name):g}: a busy machine's heartbeat may be as late",
                    at=where("enforce", name),
                    remedy=f"say {_HEARTBEATS} or more",
                )
        if not 0 <= config.enforce.denials_a_second < 1 << 32:
            raise ConfigError(
                f"[enforce] denials_a_second is {config.enforce.denials_a_second}",
                at=where("enforce", "denials_a_second"),
                remedy="say 0 for no limit, or 100",
            )
        for name in ("alerts_an_hour", "alerts_a_day"):
            if not 0 <= getattr(config.noise, name) <= _MOST:
                raise ConfigError(
                    f"[noise] {name} is {getattr(config.noise, name)}",
                    at=where("noise", name),
                    remedy=f"say a number up to {_MOST}, 0 for any number",
                )
        return config

    @classmethod
    def load(cls, path: Path) -> "Config":
        """Read a YAML file; raises ConfigError."""
        try:
            with path.open("rb") as file:
                text = file.read(_LARGEST_FILE + 1).decode("utf-8")
            if len(text) > _LARGEST_FILE:
                raise ConfigError(
                    f"is larger than {_LARGEST_FILE} bytes", at=path, remedy="name another by --config"
                )
            _check_plain(text, path)
            places = _places(yaml.compose(text, Loader=yaml.SafeLoader), path)
            plain = yaml.safe_load(text)
            return cls.from_dict({} if plain is None else plain, at=path, places=places)
        except OSError as error:
            raise ConfigError(
                f"can't be read: {error.strerror}", at=path, remedy="name another by --config"
            ) from None
        except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
            mark = getattr(error, "problem_mark", None)
            where = Location(path, mark.line + 1, mark.column + 1) if mark else Location(path)
            said = getattr(error, "problem", None) or " ".join(str(error).split())
            raise ConfigError(f"is no YAML: {said}", at=where, remedy="see docs/configuration.md") from None


def _check_plain(text: str, path: Path) -> None:
    """
    Raise ConfigError for what no key needs, before it is built.

    Eight lines of aliases make a billion values, and PyYAML takes minutes to find that a page of brackets isn't closed.
    Its events are lazy.
    """
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        wrong = ""
        if isinstance(event, yaml.AliasEvent):
            wrong = f"*{event.anchor}: aliases have no use here"
        if depth > _DEEPEST:
            wrong = f"nests deeper than {_DEEPEST} levels"
        if wrong:
            mark = event.start_mark
            at = Location(path, mark.line + 1, mark.column + 1) if mark else Location(path)
            raise ConfigError(wrong, at=at, remedy="see docs/configuration.md")


def _places(root: Any, path: Path) -> dict[tuple[str, ...], Location]:
    """Return where sections and keys stand; YAML itself lets a second one of a name win in silence."""
    places: dict[tuple[str, ...], Location] = {}

    def enter(node: Any, above: tuple[str, ...]) -> None:
        for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
            name = (*above, str(key.value))
            here = Location(path, key.start_mark.line + 1, key.start_mark.column + 1)
            if name in places:
                raise ConfigError(
                    f"{name[-1]} stands here a second time, first in line {places[name].line}",
                    at=here,
                    remedy="remove one",
                )
            places[name] = here
            if not above:
                enter(value, name)

    enter(root, ())
    return places

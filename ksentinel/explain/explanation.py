# SPDX-License-Identifier: Apache-2.0
"""The explanation of an alert: three witnesses, apart and named, and the paragraph."""

from collections import OrderedDict
from dataclasses import replace
from typing import Any

from ksentinel.alert import Alert
from ksentinel.detectors import Anomaly
from ksentinel.detectors.model import Model
from ksentinel.detectors.ngram import NGramModel
from ksentinel.explain.contributions import contributions
from ksentinel.explain.surrogate import surrogate
from ksentinel.explain.wording import paragraph

_TOP = 5
_CACHED = 256


class Explainer:
    """
    Adds its explanation to an alert: a function from alert to alert.

    Parameters
    ----------
    model
        The model whose anomalies are explained; None if rules run alone.
    """

    def __init__(self, model: Model | None) -> None:
        self.model = model
        self._known: OrderedDict[Anomaly, dict[str, Any]] = OrderedDict()

    def __call__(self, alert: Alert) -> Alert:
        """Return *alert* with its explanation."""
        window = self._window(alert.anomalies[0]) if alert.anomalies and self.model is not None else {}
        return replace(alert, explanation={"paragraph": paragraph(alert, window), **window})

    def _window(self, anomaly: Anomaly) -> dict[str, Any]:
        """Explain the most unusual window; an alert's later revisions often have the same one."""
        found = self._known.get(anomaly)
        if found is None:
            found = self._explain(anomaly)
            self._known[anomaly] = found
            if len(self._known) > _CACHED:
                self._known.popitem(last=False)
        return found

    def _explain(self, anomaly: Anomaly) -> dict[str, Any]:
        model = self.model
        assert model is not None  # noqa: S101  # __call__ asked
        exact: list[dict[str, Any]] = []
        for member in model.members.values():
            if isinstance(member, NGramModel):
                exact = [
                    {
                        "ngram": list(c.names),
                        "positions": list(c.positions),
                        "bits": round(c.bits, 4),
                        "share": round(c.share, 4),
                        "surprise": round(c.surprise, 2),
                        "seen_in_training": c.seen_in_training,
                        "context_seen": c.context_seen,
                        "usual_next": [[name, round(share, 3)] for name, share in c.usual_next],
                    }
                    for c in contributions(member, anomaly.window, top=_TOP, arch=model.arch)
                ]
        lime = surrogate(model.member(anomaly.decided_by), anomaly.window, arch=model.arch)
        return {
            "ngrams": exact,
            "lime": {
                "detector": lime.detector,
                "r2": round(lime.r2, 4),
                "samples": lime.samples,
                "seed": lime.seed,
                "score": round(lime.score, 4),
                "weights": [
                    {"ngram": list(w.names), "weight": round(w.weight, 5), "positions": list(w.positions)}
                    for w in lime.weights[:_TOP]
                ],
            },
        }

# SPDX-License-Identifier: Apache-2.0
"""Clauses in words."""

import pytest

from ksentinel.report.rules import clause_words
from ksentinel.rules import Clause


@pytest.mark.parametrize(
    ("clause", "words"),
    [
        (Clause("s", "Image", "is '/x'", "/x", (0, 2)), "s: Image is '/x': [/x]"),
        (Clause("s", "Image", "is '/x'", "/y", None, negated=True), "s: Image not is '/x': /y"),
        (Clause("s", "Image", "is null", None), "s: Image is null: there is none"),
    ],
)
def test_clause_words(clause, words):
    """What was asked, what there was, and where it was found."""
    assert clause_words(clause) == words

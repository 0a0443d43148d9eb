# SPDX-License-Identifier: Apache-2.0
"""Nothing that can move a cursor, hide or reorder text gets through."""

import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ksentinel.printable import printable, printable_json

SHOWN = {"Lu", "Ll", "Lt", "Lm", "Lo", "Mn", "Mc", "Me", "Nd", "Nl", "No", "Zs"} | {
    f"{kind}{sub}" for kind, subs in {"P": "cdseifo", "S": "mcko"}.items() for sub in subs
}
BIDI = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


@given(st.text() | st.text(st.characters(categories=["Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"])))
def test_nothing_hidden(text):
    """Every character of the result is one that is seen."""
    assert {unicodedata.category(c) for c in printable(text)} <= SHOWN


@given(st.text(st.characters(categories=["L", "N", "P", "S", "Zs"])))
def test_plain_text(text):
    """What is harmless stays."""
    assert text == printable(text)


@given(st.binary())
def test_bytes(raw):
    """Any bytes of the kernel's can be shown and encoded."""
    printable(raw.decode(errors="surrogateescape")).encode()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred\x07", r"\x1b[31mred\x07"),
        ("a\nb\r\tc\x7f\x9b", r"a\x0ab\x0d\x09c\x7f\x9b"),
        (BIDI, "".join(f"\\u{ord(c):04x}" for c in BIDI)),
        ("\U000e0041\ue000", r"\U000e0041\ue000"),
        ("\udcff\ud800", r"\xff\ud800"),
        ("\u2028\u2029", r"\u2028\u2029"),
        ("Grüße, 世界", "Grüße, 世界"),
    ],
)
def test_shown(text, shown):
    """Bytes as bytes, others by their number."""
    assert shown == printable(text)


@given(st.text(), st.integers(1, 20))
def test_limit(text, limit):
    """What is too long is cut, and that can be seen."""
    whole, cut = printable(text), printable(text, limit)

    assert len(cut) <= limit
    assert whole == cut or (len(whole) > limit and cut == whole[: limit - 1] + "…")


_json = st.recursive(
    st.none() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(_json)
def test_json(plain):
    """JSON stays the same JSON, and shows nothing hidden but the ends of its lines."""
    text = json.dumps(plain, ensure_ascii=False, indent=1)
    shown = printable_json(text.encode()).decode()

    assert plain == json.loads(shown)
    assert {unicodedata.category(c) for c in shown.replace("\n", "")} <= SHOWN

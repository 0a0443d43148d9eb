# SPDX-License-Identifier: Apache-2.0
"""Untrusted text made harmless before a terminal or a page shows it."""

import unicodedata

# Characters that change how others are shown: controls, formatting (bidi overrides among them), surrogates (undecodable
# bytes), private use, unassigned, line and paragraph separators.
_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


def printable(text: str, limit: int = 0) -> str:
    r"""
    Return *text* with everything escaped that could move a cursor, hide or reorder what is read.

    Parameters
    ----------
    limit
        Longest result; what is cut is replaced by an ellipsis. 0: no limit.

    Examples
    --------
    >>> print(printable("ls \x1b[2J\u202etxt.exe \udcff"))
    ls \x1b[2J\u202etxt.exe \xff
    """
    if not text.isascii() or not text.isprintable():
        text = "".join(_escape(c) if unicodedata.category(c) in _HIDDEN else c for c in text)
    return text if not limit or len(text) <= limit else text[: limit - 1] + "…"


def printable_json(text: bytes) -> bytes:
    r"""
    Return the same JSON with escapes for what `printable` escapes: terminals show JSON, too.

    Examples
    --------
    >>> print(printable_json('["\u202etxt.exe"]'.encode()).decode())
    ["\u202etxt.exe"]
    """
    if text.isascii() and b"\x7f" not in text:
        return text  # JSON itself escapes the other control characters
    # Outside of strings JSON is ASCII, so every such character is inside one.
    shown = (
        _json_escape(c) if unicodedata.category(c) in _HIDDEN and c != "\n" else c for c in text.decode()
    )
    return "".join(shown).encode()


def _json_escape(character: str) -> str:
    units = character.encode("utf-16-be")
    return "".join(f"\\u{units[i]:02x}{units[i + 1]:02x}" for i in range(0, len(units), 2))


def _escape(character: str) -> str:
    number = ord(character)
    if 0xDC80 <= number <= 0xDCFF:  # a byte that was no UTF-8
        return f"\\x{number - 0xDC00:02x}"
    if number < 0x100:
        return f"\\x{number:02x}"
    return f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"

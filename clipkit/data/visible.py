"""Text of strangers made fit to be looked at: what would hide, reorder or overwrite its neighbours is spelled out."""

from __future__ import annotations

import unicodedata

_SPELLED = frozenset({"Cc", "Cf", "Cs", "Co", "Zl", "Zp"})
_JOINERS = "\u200c\u200d"  # they shape Persian and emoji, and move nothing


def visible(text: str, most: int = 0) -> str:
    r"""The text with control and format characters as escapes.

    Args:
        text: Any text.
        most: Characters after which it is cut, with an ellipsis; 0 is never.

    >>> visible("a\u202ecab\x1b[2J"), visible("red\nbicycle", 5)
    ('a\\u202ecab\\x1b[2J', 'red\\nb…')
    """
    cut = text[:most] + "…" if most and len(text) > most else text
    return "".join(_spell(char) if unicodedata.category(char) in _SPELLED else char for char in cut)


def _spell(char: str) -> str:
    return char if char in _JOINERS else char.encode("unicode_escape").decode()

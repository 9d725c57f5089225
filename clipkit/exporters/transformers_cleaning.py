"""open_clip cleans a text before its tokenizer sees it; transformers does not, so the exported tokenizer does it itself."""

from __future__ import annotations

import string
from typing import Any

SAID = (
    "texts are cleaned as open_clip cleans them (quotes, ligatures, widths, control characters), but HTML entities and mojibake give other "
    "tokens here"
)
_QUOTES = dict.fromkeys("\u02bc\u2018\u2019\u201a\u201b", "'") | dict.fromkeys("\u201c\u201d\u201e\u201f", '"')


def cleaning(clean: str) -> list[Any]:
    """Normalizers of the ``tokenizers`` library that do what open_clip's cleaning function does.

    What ftfy does to sound text is among them; what it mends (mojibake) and HTML entities are not.

    Args:
        clean: Name of the function: ``_clean_whitespace``, ``_clean_lower`` or ``_clean_canonicalize``.

    Raises:
        ValueError: If it is another one.
    """
    from tokenizers import Regex, normalizers

    steps = _ftfy()
    if clean == "_clean_canonicalize":
        marks = "".join(f"\\{mark}" for mark in string.punctuation if mark != "_")
        steps += [normalizers.Replace("_", " "), normalizers.Replace(Regex(f"[{marks}]"), "")]
    if clean in ("_clean_canonicalize", "_clean_lower"):
        steps.append(normalizers.Lowercase())
    elif clean != "_clean_whitespace":
        raise ValueError(f"the tokenizer's cleaning {clean} has no counterpart in transformers")
    return [*steps, normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]


def _ftfy() -> list[Any]:
    """By ftfy's own tables, in its order."""
    from ftfy import chardata
    from tokenizers import Regex, normalizers

    single = {chr(code): plain for table in (chardata.LIGATURES, chardata.WIDTH_MAP) for code, plain in table.items()}
    steps: list[Any] = [normalizers.Replace(own, plain) for own, plain in (single | _QUOTES).items()]
    control = "".join(f"\\x{{{code:04x}}}" for code in chardata.CONTROL_CHARS)
    return [*steps, normalizers.Replace(Regex(f"[{control}]"), ""), normalizers.NFC()]

"""open_clip cleans a text before its Hugging Face tokenizer sees it; transformers does not, so the exported tokenizer does it itself."""

from __future__ import annotations

import string
from typing import Any

UNCURLED = {
    "‘": "'",
    "’": "'",
    "‛": "'",
    "“": '"',
    "”": '"',
    "‟": '"',
    "ﬀ": "ff",
    "ﬁ": "fi",
    "ﬂ": "fl",
    "ﬃ": "ffi",
    "ﬄ": "ffl",
}


def cleaning(clean: str) -> list[Any]:
    """Normalizers of the ``tokenizers`` library that do what open_clip's cleaning function does.

    What ftfy does to everyday English is among them; the rest of it (mojibake, HTML entities) is not.

    Args:
        clean: Name of the function: ``_clean_whitespace``, ``_clean_lower`` or ``_clean_canonicalize``.

    Raises:
        ValueError: If it is another one.
    """
    from tokenizers import Regex, normalizers

    steps: list[Any] = [normalizers.Replace(own, plain) for own, plain in UNCURLED.items()]
    if clean == "_clean_canonicalize":
        marks = "".join(f"\\{mark}" for mark in string.punctuation if mark != "_")
        steps += [normalizers.Replace("_", " "), normalizers.Replace(Regex(f"[{marks}]"), "")]
    if clean in ("_clean_canonicalize", "_clean_lower"):
        steps.append(normalizers.Lowercase())
    elif clean != "_clean_whitespace":
        raise ValueError(f"the tokenizer's cleaning {clean} has no counterpart in transformers")
    return [*steps, normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]

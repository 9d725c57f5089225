"""Bytes of a sample's members to a caption or a label, and the 64-bit hashes that tell equal ones."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from clipkit.config.json_text import parse_json
from clipkit.data.images import BadSample
from clipkit.data.source import Place

MOST_TEXT_BYTES = 1 << 20


def hash64(data: bytes) -> int:
    """A signed 64-bit hash, the same on every machine."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little", signed=True)


def find(members: Mapping[str, bytes], places: Sequence[Place]) -> tuple[Place, bytes] | None:
    """The first of the places that the sample has."""
    return next(((place, members[place.extension]) for place in places if place.extension in members), None)


def is_nan(caption: str) -> bool:
    """Whether it is a table's missing value, written as text. `None`, `NULL` and `N/A` are words, and stay."""
    return caption.lower() == "nan"


def _value(place: Place, data: bytes, missing: str) -> Any:
    """The member's text, or the value under the key of its JSON object."""
    if len(data) > MOST_TEXT_BYTES:
        raise BadSample("too_large", f".{place.extension} of {len(data):,} bytes; at most {MOST_TEXT_BYTES:,} are read")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadSample("not_utf8", f".{place.extension}: {error}") from error
    if not place.key:
        return text
    try:
        held = parse_json(text)
    except ValueError as error:
        raise BadSample("not_json", f".{place.extension}: {error}") from error
    if not isinstance(held, dict) or place.key not in held:
        raise BadSample(missing, f".{place.extension} has no {place.key!r}")
    return held[place.key]


def captions(members: Mapping[str, bytes], places: Sequence[Place]) -> list[str]:
    """All captions of a sample, at least one.

    Args:
        members: The sample's bytes by extension.
        places: Where captions may be; a whole member is one caption, a JSON list holds several.

    Raises:
        BadSample: If there is none, it is empty, no UTF-8 or no JSON, or a table's missing value (``nan_caption``).
    """
    found = find(members, places)
    if found is None:
        raise BadSample("no_caption", "no member " + " or ".join(f".{place.extension}" for place in places))
    value = _value(*found, "no_caption")
    several = value if isinstance(value, list) else [value]
    texts = [text.strip() for text in several if isinstance(text, str) and text.strip()]
    real = [text for text in texts if not is_nan(text)]
    if not real and (texts or any(isinstance(text, float) and math.isnan(text) for text in several)):
        raise BadSample("nan_caption", "the caption is 'nan', as tables write a missing value")
    texts = real
    if not texts:
        raise BadSample("no_caption", "the caption is empty")
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as error:  # JSON can spell half of a surrogate pair
            raise BadSample("not_utf8", f".{found[0].extension}: {error}") from error
    return texts


def caption(members: Mapping[str, bytes], places: Sequence[Place], draw: float) -> str:
    """One of a sample's captions; ``draw`` in [0, 1) says which of several.

    Raises:
        BadSample: As ``captions`` does.
    """
    texts = captions(members, places)
    return texts[int(draw * len(texts))]


def label(members: Mapping[str, bytes], places: Sequence[Place]) -> int:
    """The hash of a sample's group, by which ``duplicates`` compares.

    Args:
        members: The sample's bytes by extension.
        places: Where the label may be; a number and its text are the same label.

    Raises:
        BadSample: If there is none.
    """
    found = find(members, places)
    if found is None:
        raise BadSample("no_label", "no member " + " or ".join(f".{place.extension}" for place in places))
    value = _value(*found, "no_label")
    text = value.strip() if isinstance(value, str) else json.dumps(value, sort_keys=True)
    if not text or value is None:
        raise BadSample("no_label", "the label is empty")
    return hash64(text.encode())

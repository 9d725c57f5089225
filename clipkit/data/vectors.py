"""Embeddings that a teacher made beforehand, stored with the samples as ``.npy``, for distillation."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clipkit.data.images import BadSample
from clipkit.data.source import Place
from clipkit.data.values import find

Vector = NDArray[np.float32]


def vector(members: Mapping[str, bytes], places: Sequence[Place], draw: float, captions: int) -> Vector:
    """A stored embedding (E,).

    Args:
        members: The sample's bytes by extension.
        places: Where it may be: the extension of a ``.npy`` of floats (E,), or (K, E) with one row for each of the sample's K captions.
        draw: In [0, 1), the one that chooses among the captions, so that a caption gets its own row.
        captions: K, of which one is drawn.

    Raises:
        BadSample: If there is none, it is no such array, or it is not finite.
    """
    found = find(members, places)
    if found is None:
        raise BadSample("no_embedding", "no member " + " or ".join(f".{place.extension}" for place in places))
    place, data = found
    array = _array(data, place.extension)
    if array.ndim == 2 and len(array) != captions:
        raise BadSample("not_npy", f".{place.extension} has {len(array)} rows for {captions} captions")
    row = np.asarray(array if array.ndim == 1 else array[int(draw * len(array))], dtype=np.float32)
    if not np.isfinite(row).all():
        raise BadSample("not_finite", f".{place.extension} holds NaN or infinity")
    return row


def stacked(samples: Sequence[Mapping[str, Vector]]) -> dict[str, Tensor]:
    """The embeddings of a batch by field, (B, E).

    Raises:
        ValueError: If they differ in width.
    """
    found = {}
    for name in samples[0] if samples else ():
        widths = sorted({len(sample[name]) for sample in samples})
        if len(widths) > 1:
            raise ValueError(f"{name}: a batch holds embeddings of widths {widths}; store those of one teacher")
        found[name] = torch.from_numpy(np.stack([sample[name] for sample in samples]))
    return found


def _array(data: bytes, name: str) -> NDArray[np.floating]:
    """The array of a ``.npy``; nothing is unpickled, and nothing allocated on the word of its header."""
    file = io.BytesIO(data)
    try:
        if np.lib.format.read_magic(file) != (1, 0):
            raise ValueError("no .npy of version 1.0")
        shape, by_columns, dtype = np.lib.format.read_array_header_1_0(file)
        if dtype.kind != "f" or dtype.itemsize > 8 or len(shape) not in (1, 2) or 0 in shape or by_columns:
            raise ValueError(f"{dtype} of shape {shape}; floats (E,) or (K, E) are read")
        return np.frombuffer(data, dtype, offset=file.tell()).reshape(shape)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError) as error:
        raise BadSample("not_npy", f".{name}: {error}") from error

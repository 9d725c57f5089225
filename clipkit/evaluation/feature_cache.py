"""Image features on disk, found again by what they were made of and never by a name.

The key hashes the image tower's weights and configuration, the preprocessing, the device and precision, and the manifest of
the images: place, stretch, and each file's size and times. What changes any of them is another key, so nothing is stale. A
file carries the hash of its own tensors; one that is damaged is said, and made again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from clipkit import distributed
from clipkit.data.atomic import write_atomically
from clipkit.encoder import Encoder
from clipkit.evaluation.digests import digest
from clipkit.evaluation.samples import ImageFile

_log = logging.getLogger(__name__)
_VERSION = 3  # of what the figures of a file mean


def manifest_digest(images: Sequence[ImageFile]) -> str:
    """SHA-256 of which images these are, in their order: place and stretch, size and times of each file.

    Raises:
        OSError: If a file is gone.
    """
    state = hashlib.sha256()
    states: dict[Path, tuple[int, int, int]] = {}
    for image in images:
        if image.path not in states:
            found = os.stat(image.path)
            states[image.path] = found.st_size, found.st_mtime_ns, found.st_ctime_ns
        line = [os.path.abspath(image.path), image.key, image.offset, image.length, image.box, *states[image.path]]
        state.update(json.dumps(line).encode() + b"\n")
    return state.hexdigest()


def features_key(encoder: Encoder, images: Sequence[ImageFile], kinds: Sequence[str], precision: str) -> str:
    """The name under which features are kept."""
    parts = {
        "version": _VERSION,
        "weights": digest(encoder.image.state_dict()),
        "model": encoder.info.config,
        "preprocess": encoder.info.preprocess,
        "device": encoder.device.type,
        "precision": precision,
        "kinds": sorted(kinds),
        "images": manifest_digest(images),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def cached(folder: Path, key: str, make: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """What ``make`` gives, from the folder if every rank finds it whole there; else made by all ranks and kept by rank 0.

    Args:
        folder: Where features lie.
        key: As ``features_key`` gives it.
        make: Computes them on all ranks; tensors on the CPU, the same on every rank.

    Returns:
        The tensors by name.
    """
    path = folder / f"{key}.safetensors"
    found = _read(path)
    if all(distributed.gather_json(found is not None)):
        assert found is not None
        return found
    made = dict(make())
    distributed.on_rank_0(lambda: _write(path, made))
    return made


def _read(path: Path) -> dict[str, Tensor] | None:
    """The tensors of a file; None where there is none or it is not what was written."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            found = {name: file.get_tensor(name) for name in sorted(file.keys())}
            whole = (file.metadata() or {}).get("sha256") == digest(found)
    except (SafetensorError, OSError, ValueError) as error:
        _log.warning("%s: damaged features (%s) are made again", path, error)
        return None
    if not whole:
        _log.warning("%s: damaged features (their hash is another) are made again", path)
        return None
    return found


def _write(path: Path, tensors: Mapping[str, Tensor]) -> None:
    content = save({name: value.contiguous() for name, value in tensors.items()}, {"sha256": digest(tensors)})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda file: file.write(content))
    except OSError as error:
        _log.warning("%s: the features could not be kept (%s)", path, error)

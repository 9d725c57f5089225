"""Checkpoints on disk: a folder a step, complete or not there.

``STEP/model.safetensors`` holds the weights, ``state.pt`` the optimiser and the like (tensors and JSON types, read with
``weights_only=True``), ``state.json`` position, versions and fingerprints, ``manifest.json`` the size and SHA-256 of the others. A folder is
written under another name, file by file to the disk, its manifest last, and renamed: what stands under its own name with a manifest that fits
is whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load, save
from torch import Tensor

MODEL, STATE, INFO, MANIFEST = "model.safetensors", "state.pt", "state.json", "manifest.json"
VERSION = 1


class CheckpointError(ValueError):
    """A checkpoint that is missing, incomplete or altered."""


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint folder holds."""

    model: dict[str, Tensor]
    """Weights by name, on the CPU."""
    state: dict[str, Any]
    """Optimiser, schedule and the like."""
    info: dict[str, Any]
    """Position, versions, fingerprints: plain JSON."""


def write_checkpoint(
    folder: Path, *, model: Mapping[str, Tensor], state: Mapping[str, Any], info: Mapping[str, Any]
) -> None:
    """Write a checkpoint so that it is whole or not there, whatever ends this process.

    Args:
        folder: Where it will stand, ``RUN/checkpoints/STEP``. One that stands there already is replaced at the last moment.
        model: Weights by name.
        state: Nested dicts and lists of tensors and JSON types.
        info: JSON types.

    Raises:
        ValueError: If ``state`` holds anything else than tensors and JSON types; the message names the place.
        OSError: If the disk refuses; nothing is left behind then.
    """
    _refuse_objects(state, "state")
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.writing-{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.items()}
        files = {
            MODEL: _write(temporary / MODEL, save(weights)),
            STATE: _save_state(temporary / STATE, state),
            INFO: _write(temporary / INFO, json.dumps(info, indent=1).encode()),
        }
        _write(temporary / MANIFEST, json.dumps({"version": VERSION, "files": files}, indent=1).encode())
        _sync_folder(temporary)
        _put_in_place(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def verify(folder: Path) -> str | None:
    """Why a checkpoint folder cannot be trusted, or None if each file has the size and the hash that its manifest says."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        files = manifest["files"]
        if manifest["version"] != VERSION:
            return f"{MANIFEST} has version {manifest['version']}, this clipkit reads {VERSION}"
    except FileNotFoundError:
        return f"{MANIFEST} is missing"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{MANIFEST} cannot be read ({type(error).__name__}: {error})"
    for name in (MODEL, STATE, INFO):
        reason = _differs(folder / name, files.get(name) if isinstance(files, dict) else None)
        if reason is not None:
            return f"{name} {reason}"
    return None


def read_checkpoint(folder: Path, *, with_state: bool = True) -> Checkpoint:
    """Read a checkpoint after verifying it.

    Args:
        folder: The checkpoint's folder.
        with_state: Whether to read the optimiser's state too; encoders do without.

    Raises:
        CheckpointError: If it does not verify.
    """
    reason = verify(folder)
    if reason is not None:
        raise CheckpointError(f"the checkpoint {folder} is not usable: {reason}")
    model = load((folder / MODEL).read_bytes())
    state = torch.load(folder / STATE, map_location="cpu", weights_only=True) if with_state else {}
    return Checkpoint(model, state, json.loads((folder / INFO).read_text()))


def read_average(folder: Path) -> dict[str, Tensor] | None:
    """The moving average of the weights that a verified checkpoint of a run with ``optim.ema`` holds, by their names; else None."""
    state = torch.load(folder / STATE, map_location="cpu", weights_only=True, mmap=True)
    found = state.get("callbacks", {}).get("Ema", {}).get("weights")
    return None if found is None else {name: tensor.clone() for name, tensor in found.items()}


def shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Name and shape of the weights of a checkpoint, without reading them."""
    with safe_open(folder / MODEL, "pt") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


def steps(checkpoints: Path) -> list[Path]:
    """The checkpoint folders under ``RUN/checkpoints``, newest first, verified or not."""
    if not checkpoints.is_dir():
        return []
    found = [path for path in checkpoints.iterdir() if path.name.isdigit() and path.is_dir()]
    return sorted(found, key=lambda path: int(path.name), reverse=True)


def newest(checkpoints: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that verifies, and a line on each newer one that does not."""
    passed_over: list[str] = []
    for folder in steps(checkpoints):
        reason = verify(folder)
        if reason is None:
            return folder, passed_over
        passed_over.append(f"{folder}: {reason}")
    return None, passed_over


def remove_checkpoint(folder: Path) -> None:
    """Delete a checkpoint; its manifest goes first, so that what is left of an interrupted deletion does not verify."""
    (folder / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def remove_unfinished(checkpoints: Path) -> None:
    """Delete what writers that were killed left behind."""
    for pattern in (".*.writing-*", ".*.replaced-*"):
        for path in checkpoints.glob(pattern):
            shutil.rmtree(path, ignore_errors=True)


def weight_hash(model: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes of the weights: equal only for equal bits."""
    digest = hashlib.sha256()
    for name in sorted(model):
        tensor = model[name].detach().cpu().contiguous()
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _differs(path: Path, entry: Any) -> str | None:
    if not isinstance(entry, dict):
        return f"is not named by {MANIFEST}"
    if not path.is_file():
        return "is missing"
    if path.stat().st_size != entry.get("size"):
        return f"has {path.stat().st_size} bytes, the manifest says {entry.get('size')}"
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != entry.get("sha256"):
            return "is not what was written (its SHA-256 differs from the manifest's)"
    return None


def _write(path: Path, data: bytes) -> dict[str, Any]:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _save_state(path: Path, state: Mapping[str, Any]) -> dict[str, Any]:
    with path.open("wb") as file:
        torch.save(dict(state), file)
        file.flush()
        os.fsync(file.fileno())
    with path.open("rb") as file:
        return {"size": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _put_in_place(temporary: Path, folder: Path) -> None:
    replaced = folder.with_name(f".{folder.name}.replaced-{os.getpid()}")
    if folder.exists():
        folder.rename(replaced)
    temporary.rename(folder)
    _sync_folder(folder.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _refuse_objects(value: Any, place: str) -> None:
    if isinstance(value, Mapping):
        for key, item in value.items():
            _refuse_objects(item, f"{place}[{key!r}]")
    elif isinstance(value, list | tuple | set):
        for index, item in enumerate(value):
            _refuse_objects(item, f"{place}[{index}]")
    elif not (value is None or isinstance(value, Tensor | str | int | float | bool)):
        raise ValueError(
            f"{place} is a {type(value).__name__}; a checkpoint holds tensors and JSON types only, convert it before"
        )

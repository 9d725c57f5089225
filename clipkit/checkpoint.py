"""Checkpoints on disk: a folder a step, complete or not there.

``STEP/model.safetensors`` holds the weights, ``state.pt`` the optimiser and the like (tensors and JSON types, read with
``weights_only=True``), ``state.json`` position, versions and fingerprints, ``manifest.json`` the size and SHA-256 of the others. A folder is
written under another name, file by file to the disk, its manifest last, and renamed: what stands under its own name with a manifest that fits
is whole.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import safe_open
from safetensors.torch import load, save
from torch import Tensor

from clipkit.config.json_text import parse_json

MODEL, STATE, INFO, MANIFEST = "model.safetensors", "state.pt", "state.json", "manifest.json"
VERSION = 1
ROOM = 1.2  # how many times its size must be free before a checkpoint is begun


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


def snapshot(checkpoint: Checkpoint) -> Checkpoint:
    """The same on the CPU in memory of its own: what is trained afterwards does not change it.

    Raises:
        ValueError: If it holds anything else than tensors and JSON types; the message names the place.
    """
    return _plain_checkpoint(checkpoint, copy=True)


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
        OSError: If the disk refuses, or has less than ``ROOM`` times its size free; nothing is left behind then.
    """
    plain = _plain_checkpoint(Checkpoint(dict(model), dict(state), dict(info)), copy=False)
    folder.parent.mkdir(parents=True, exist_ok=True)
    check_room(folder.parent, _bytes(plain.model) + _bytes(plain.state))
    temporary = folder.with_name(f".{folder.name}.writing-{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir()
        files = {
            MODEL: _write(temporary / MODEL, save(plain.model)),
            STATE: _save_state(temporary / STATE, plain.state),
            INFO: _write(temporary / INFO, json.dumps(plain.info, indent=1).encode()),
        }
        _write(temporary / MANIFEST, json.dumps({"version": VERSION, "files": files}, indent=1).encode())
        sync(temporary)
        put_in_place(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def verify(folder: Path) -> str | None:
    """Why a checkpoint folder cannot be trusted, or None if each file has the size and the hash that its manifest says."""
    try:
        manifest = parse_json((folder / MANIFEST).read_text())
        files = manifest["files"]
        if manifest["version"] != VERSION:
            return f"{MANIFEST} has version {manifest['version']}, this clipkit reads {VERSION}"
    except FileNotFoundError:
        return f"{MANIFEST} is missing"
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        return f"{MANIFEST} cannot be read ({type(error).__name__}: {error})"
    for name in (MODEL, STATE, INFO):
        try:
            reason = _differs(folder / name, files.get(name) if isinstance(files, dict) else None)
        except OSError as error:
            reason = f"cannot be read ({error.strerror})"
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
    state = _read_state(folder / STATE) if with_state else {}
    return Checkpoint(model, state, parse_json((folder / INFO).read_text()))


def _read_state(path: Path, *, mmap: bool = False) -> dict[str, Any]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:  # whatever a hostile pickle makes torch raise: whoever wrote it wrote the manifest too
        what = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        raise CheckpointError(
            f"{path} holds more than tensors and plain values, and nothing in it is run ({what}); name another checkpoint"
        ) from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{path} holds a {type(state).__name__}, no state; name another checkpoint")
    return state


def read_average(folder: Path) -> dict[str, Tensor] | None:
    """The moving average of the weights that a verified checkpoint of a run with ``optim.ema`` holds, by their names; else None.

    Raises:
        CheckpointError: If the state is no state, or its average is none.
    """
    found: Any = _read_state(folder / STATE, mmap=True)
    for key in ("callbacks", "Ema", "weights"):
        found = found.get(key, {}) if isinstance(found, dict) else None
    if not isinstance(found, dict) or not all(isinstance(tensor, Tensor) for tensor in found.values()):
        raise CheckpointError(f"{folder / STATE}: its moving average is no mapping of tensors; name another checkpoint")
    return {name: tensor.clone() for name, tensor in found.items()} or None


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


def set_aside(folder: Path) -> Path:
    """Rename a checkpoint so that it is none any more: one of another future than the run's, or one that does not verify."""
    aside = folder.with_name(f"{folder.name}.passed-over")
    shutil.rmtree(aside, ignore_errors=True)
    folder.rename(aside)
    return aside


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


class _Hashed:
    """A file under way to the disk: it knows size and hash of what it was given, and what the disk refused.

    Args:
        file: Where it goes.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.size = 0
        self.digest = hashlib.sha256()
        # number and words, not the error: its frames would hold what they worked on
        self.refused: tuple[int | None, str | None] | None = None

    def write(self, data: Any) -> int:
        """Write on."""
        try:
            self.file.write(data)
        except OSError as error:
            self.refused = (error.errno, error.strerror)
            raise
        self.digest.update(data)
        size = memoryview(data).nbytes
        self.size += size
        return size

    def flush(self) -> None:
        """Hand it to the disk."""
        self.file.flush()
        os.fsync(self.file.fileno())

    def entry(self) -> dict[str, Any]:
        """What the manifest says of it."""
        return {"size": self.size, "sha256": self.digest.hexdigest()}


def _write(path: Path, data: bytes) -> dict[str, Any]:
    with path.open("wb") as file:
        hashed = _Hashed(file)
        hashed.write(data)
        hashed.flush()
    return hashed.entry()


def _save_state(path: Path, state: Mapping[str, Any]) -> dict[str, Any]:
    with path.open("wb") as file:
        hashed = _Hashed(file)
        try:
            torch.save(dict(state), hashed)  # type: ignore[arg-type]
        except RuntimeError:
            if hashed.refused is not None:  # torch's writer hides what the disk said behind its own position
                raise OSError(*hashed.refused, str(path)) from None
            raise
        hashed.flush()
    return hashed.entry()


def check_room(folder: Path, size: int) -> None:
    """Whether ``ROOM`` times so many bytes are free.

    Raises:
        OSError: If not.
    """
    free, wanted = shutil.disk_usage(folder).free, int(ROOM * size)
    if free < wanted:
        text = f"{free / 1e6:,.1f} MB are free and {wanted / 1e6:,.1f} MB wanted, {ROOM} times the checkpoint's size"
        raise OSError(errno.ENOSPC, text, str(folder))


def put_in_place(temporary: Path, folder: Path) -> None:
    """Give a folder that is whole its own name; what stood there goes, or stays if that cannot be done."""
    replaced = folder.with_name(f".{folder.name}.replaced-{os.getpid()}")
    stood = folder.exists()
    if stood:
        folder.rename(replaced)
    try:
        temporary.rename(folder)
    except OSError:
        if stood:
            replaced.rename(folder)
        raise
    sync(folder.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def sync(path: Path) -> None:
    """Hand a file, or a folder's names, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _bytes(value: Any) -> int:
    """Bytes of the tensors in nested dicts and lists."""
    if isinstance(value, Tensor):
        return value.nbytes
    inside = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple | set) else ()
    return sum(_bytes(item) for item in inside)


def _plain_checkpoint(checkpoint: Checkpoint, *, copy: bool) -> Checkpoint:
    model = {name: _on_cpu(tensor, copy=copy) for name, tensor in checkpoint.model.items()}
    state = _plain(checkpoint.state, "state", copy, {})
    return Checkpoint(model, state, _plain(checkpoint.info, "info", copy, {}))


def _plain(value: Any, place: str, copy: bool, seen: dict[Any, Tensor]) -> Any:
    """The same in fresh dicts and lists, with tensors on the CPU; equal bytes on the disk whether they are copied or not.

    ``seen``: the tensors so far by their memory: what is one tensor in two places stays one.
    """
    if isinstance(value, Tensor):
        if value.numel() == 0:
            return _on_cpu(value, copy=copy)
        memory = (value.device, value.data_ptr(), value.shape, value.stride(), value.dtype)
        if memory not in seen:
            seen[memory] = _on_cpu(value, copy=copy)
        return seen[memory]
    if isinstance(value, Mapping):
        return {key: _plain(item, f"{place}[{key!r}]", copy, seen) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        items = [_plain(item, f"{place}[{index}]", copy, seen) for index, item in enumerate(value)]
        return items if isinstance(value, list) else tuple(items) if isinstance(value, tuple) else set(items)
    if value is None or isinstance(value, str | int | float | bool):
        return value
    raise ValueError(
        f"{place} is a {type(value).__name__}; a checkpoint holds tensors and JSON types only, convert it before"
    )


def _on_cpu(tensor: Tensor, *, copy: bool) -> Tensor:
    own = tensor.detach().to("cpu", copy=copy).contiguous()
    return own if own.untyped_storage().nbytes() == own.nbytes else own.clone()  # not the whole of which it is a part

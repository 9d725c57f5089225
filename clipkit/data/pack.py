"""Pack loose images with captions into WebDataset shards with their indexes.

The same input gives the same bytes. The folder appears whole or not at all: it is written beside its place and renamed.
Images are copied as they are; only their headers are checked.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import shutil
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

from PIL import Image, UnidentifiedImageError
from webdataset import TarWriter

from clipkit.data.images import MOST_ASPECT, MOST_BYTES, MOST_PIXELS
from clipkit.data.index import write_folder_index
from clipkit.data.loose import Entry, Skipped, open_loose

SHARD_SIZE = 10_000
_EXTENSIONS = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp", "GIF": "gif", "BMP": "bmp"}
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
_EXAMPLES = 3
_YEARS = 1 << 30


@dataclass(frozen=True)
class PackReport:
    """What became of the input.

    Args:
        out: The folder of shards.
        samples: Samples packed.
        shards: Shards written.
        fields: How many samples have each field.
        skipped: Per cause how many were passed over.
        examples: Per cause the first places.
    """

    out: Path
    samples: int
    shards: int
    fields: dict[str, int]
    skipped: dict[str, int]
    examples: dict[str, tuple[str, ...]]

    @property
    def pattern(self) -> str:
        """The shards as `data.train.NAME.shards` takes them."""
        last = f"{self.shards - 1:05d}"
        return str(self.out / ("00000.tar" if self.shards == 1 else f"{{00000..{last}}}.tar"))

    def __str__(self) -> str:
        fields = ", ".join(f"{name} {count:,}" for name, count in sorted(self.fields.items()))
        lines = [f"{self.samples:,} samples in {self.shards:,} shards: {self.pattern}", f"fields: {fields}"]
        return "\n".join([*lines, *_skipped_lines(self.skipped, self.examples)])


def pack(
    source: str | Path,
    out: str | Path,
    *,
    shard_size: int = SHARD_SIZE,
    image_column: str | None = None,
    caption_column: str | None = None,
) -> PackReport:
    """Pack a folder, a CSV or a JSONL into shards.

    Args:
        source: A folder of images with `.txt` or `.json` beside them, one of class folders, a CSV, a TSV or a JSONL.
        out: The folder to make; it must be absent or empty.
        shard_size: Samples of a shard; the last may have fewer.
        image_column: Column of the image's path, relative to the file; unset: filepath, image or path.
        caption_column: Column of the caption; unset: caption, title or text.

    Raises:
        ValueError: If the source holds nothing to pack or cannot be read, or the output folder is not empty.
    """
    source, out = Path(source), Path(out)
    if shard_size < 1:
        raise ValueError(f"shard_size={shard_size} is no number of samples; it must be 1 or more")
    if os.path.lexists(out) and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out}: exists and is no empty folder; choose another, nothing is overwritten")
    loose = open_loose(source, image_column=image_column, caption_column=caption_column)
    out.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        account = _Account()
        shards = _write_shards(_samples(loose.entries, account), part, shard_size)
        if not shards:
            raise ValueError(_nothing(source, account))
        if loose.classnames is not None:
            (part / "classnames.txt").write_text("\n".join(loose.classnames) + "\n", encoding="utf-8")
        write_folder_index(part)
        part.chmod(0o755)  # mkdtemp makes it private
        _put_in_place(part, out)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    return PackReport(
        out=out,
        samples=account.samples,
        shards=shards,
        fields=dict(account.fields),
        skipped=dict(account.skipped),
        examples={cause: tuple(places) for cause, places in account.examples.items()},
    )


class _Account:
    """Counts what is packed and what is passed over."""

    def __init__(self) -> None:
        self.samples = 0
        self.fields: Counter[str] = Counter()
        self.skipped: Counter[str] = Counter()
        self.examples: dict[str, list[str]] = {}

    def skip(self, place: str, cause: str) -> None:
        self.skipped[cause] += 1
        examples = self.examples.setdefault(cause, [])
        if len(examples) < _EXAMPLES:
            examples.append(place)


def _samples(entries: Iterable[Entry | Skipped], account: _Account) -> Iterator[dict[str, str | bytes]]:
    """What is written for each entry; its key is its number, and its file's stem for people."""
    for entry in entries:
        if isinstance(entry, Skipped):
            account.skip(entry.place, entry.cause)
            continue
        data, kind = _read_image(entry.image)
        if data is None:
            account.skip(entry.place, kind)
            continue
        sample: dict[str, str | bytes] = {kind: data, "txt": entry.text.encode("utf-8", "replace")}
        if entry.json is not None:
            sample["json"] = entry.json
        if entry.label is not None:
            sample["cls"] = str(entry.label).encode()
        account.fields.update(list(sample))  # a mapping would be taken for counts
        stem = re.sub(r"[^A-Za-z0-9_-]+", "-", entry.image.stem).strip("-")[:40]
        sample["__key__"] = f"{account.samples:08d}" + (f"-{stem}" if stem else "")
        account.samples += 1
        yield sample


def _read_image(path: Path) -> tuple[bytes | None, str]:
    """Read an image whose header says that it can be trained on.

    Returns:
        Its bytes and the extension of its real format; or None and the cause why not.
    """
    try:
        if not path.is_file():
            return None, "missing"
        if path.stat().st_size > MOST_BYTES:
            return None, "too_large"
        data = path.read_bytes()
    except (OSError, ValueError):  # ValueError: a zero byte in the path
        return None, "unreadable"
    if not data:
        return None, "empty"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of large images, for which there is a bound below
            with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
                (width, height), kind = image.size, _EXTENSIONS[str(image.format)]
    except Image.DecompressionBombError:
        return None, "too_large"
    except UnidentifiedImageError:
        return None, "format"
    except Exception:  # Pillow's plugins raise OSError, SyntaxError, ValueError, struct.error, EOFError, ...
        return None, "damaged"
    if width < 1 or height < 1:
        return None, "damaged"
    if width * height > MOST_PIXELS:
        return None, "too_large"
    if max(width, height) > MOST_ASPECT * min(width, height):
        return None, "aspect"
    return data, kind


def _write_shards(samples: Iterator[dict[str, str | bytes]], folder: Path, shard_size: int) -> int:
    """Write the samples into `00000.tar`, `00001.tar` ... and return how many there are."""
    shards = 0
    for first in samples:
        with (folder / f"{shards:05d}.tar").open("wb") as file:
            # nothing of this machine or this minute: the same input gives the same bytes
            with TarWriter(file, user="", group="", mode=0o644, mtime=0, encoder=False, compress=False) as writer:
                for sample in chain([first], islice(samples, shard_size - 1)):
                    writer.write(sample)
            file.flush()
            os.fsync(file.fileno())
        _date_by_content(folder / f"{shards:05d}.tar")
        shards += 1
    return shards


def _date_by_content(shard: Path) -> None:
    """Give a shard a time of change that its bytes decide: its sidecar names it, and is to be the same next time."""
    with shard.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").digest()
    seconds = int.from_bytes(digest[:8], "big") % _YEARS + 1  # between 1970 and 2004: any file system can hold it
    os.utime(shard, ns=(seconds * 10**9, seconds * 10**9))


def _put_in_place(part: Path, out: Path) -> None:
    try:
        os.rename(part, out)  # over an empty folder too
    except OSError as error:
        raise ValueError(f"{out}: could not be made ({error.strerror}); choose another folder") from error


def _nothing(source: Path, account: _Account) -> str:
    cure = "needed: images with NAME.txt or NAME.json beside them, class folders, or a table of paths and captions"
    lines = _skipped_lines(account.skipped, {cause: tuple(places) for cause, places in account.examples.items()})
    return "\n".join([f"{source}: nothing to pack; {cure}", *lines])


def _skipped_lines(skipped: dict[str, int], examples: dict[str, tuple[str, ...]]) -> list[str]:
    return [
        f"skipped, {cause}: {count:,} ({', '.join(examples[cause])}{', ...' * (count > len(examples[cause]))})"
        for cause, count in sorted(skipped.items())
    ]

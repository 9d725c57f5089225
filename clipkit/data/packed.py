"""Loose data that a run names is packed into the cache once, and found there again as long as nothing about it changed."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path

from clipkit.config.json_text import parse_json
from clipkit.data.atomic import write_atomically
from clipkit.data.held_out import all_captions
from clipkit.data.loose import open_loose
from clipkit.data.pack import TRAIN, PackOptions, pack
from clipkit.data.prepare import Chunk, Prepare, Prepared, prepare_chunk

HANDFUL = 50
"""Images that are held out at the least, as far as that is at most an eighth of them: figures on fewer mean little."""
_VERSION = 1  # of what a packed folder holds: another number packs anew
_FEW = 2_500  # entries below which it pays to look at every image before the share is chosen, and workers do not pay
Say = Callable[[str], None]


@dataclass(frozen=True)
class Packed:
    """A packed source.

    Args:
        train: The folder of the training shards.
        held_out: The folder of those held out; None where nothing was.
        classes: Whether it was packed from class folders.
        listed: Whether every sample's JSON lists its captions.
    """

    train: Path
    held_out: Path | None
    classes: bool
    listed: bool


def holds_shards(path: Path) -> bool:
    """Whether a folder holds tars: then there is nothing to pack."""
    return path.is_dir() and any(path.glob("*.tar"))


def packed(source: Path, cache: Path, options: PackOptions, *, workers: int, say: Say) -> Packed:
    """Pack a source into ``CACHE/packed/STEM-HASH``, or find it there.

    Of several processes that ask for the same source one packs, the others wait for it.

    Args:
        source: A CSV, TSV, JSONL, parquet file or folder.
        cache: The cache folder.
        options: How to pack. A split's share is raised where it would hold out too few.
        workers: Processes, where there is enough to do.
        say: Tells people what happens.

    Raises:
        ValueError: If there is no such source or nothing in it can be packed.
    """
    source = Path(os.path.abspath(source.expanduser()))
    if not source.exists():
        raise ValueError(f"{source}: no such file or folder; check the path")
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", source.stem).strip("-")[:40]
    place = cache / "packed" / f"{name}-{_mark(source, options)}"
    record = place.with_name(f"{place.name}.json")
    place.parent.mkdir(parents=True, exist_ok=True)
    with _one_at_a_time(place.with_name(f"{place.name}.lock"), source, say):
        if place.is_dir() and record.is_file():
            say(f"{source.name}: packed before, unchanged since; using {place}\n  {_told(record, 'report')}")
        else:
            _pack(source, place, record, options, workers, say)
    classes = (place / "classnames.txt").is_file()
    listed = _told(record, "listed") == "True"
    if options.split is None:
        return Packed(place, None, classes, listed)
    return Packed(place / TRAIN, place / options.split[0], classes, listed)


def _pack(source: Path, place: Path, record: Path, options: PackOptions, workers: int, say: Say) -> None:
    if any(_told(other, "source") == str(source) for other in place.parent.glob("*.json")):
        say(f"{source.name}: it, or how it is packed, changed since it was packed; packing it anew")
    else:
        say(f"{source.name}: packing it into {place}")
    few = _few_draws(source, options)
    if few is not None and options.split is not None:
        options = replace(options, split=_at_least_a_handful(source, options.split, few, say))
    shutil.rmtree(place, ignore_errors=True)  # a kill between the folder and its record
    done = pack(source, place, options, workers=1 if few is not None else workers)
    report = str(done).replace("\n", "\n  ")
    if 0 < done.listed < done.samples:
        report += f"\n  {done.listed:,} samples list captions and the others do not; training reads the first of each"
    if options.split is not None and not (place / "classnames.txt").is_file():
        before, after = all_captions(place / options.split[0], options.shard_size)
        if after < before:
            report += f"\n  {options.split[0]}: its {before:,} rows are {after:,} images, each with all its captions"
    say(f"{source.name}: {report}")
    text = json.dumps({"source": str(source), "report": report, "listed": done.listed == done.samples}) + "\n"
    write_atomically(record, lambda file: file.write(text.encode()))


def _mark(source: Path, options: PackOptions) -> str:
    """A hash of path, sizes and times of the source and of the options; the images that a table names do not enter."""
    digest = hashlib.blake2b(digest_size=6)
    digest.update(json.dumps([_VERSION, str(source), asdict(options)]).encode())
    for path in [source] if source.is_file() else _below(source):
        with contextlib.suppress(OSError):
            status = path.stat()
            digest.update(os.fsencode(path) + f" {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _below(folder: Path) -> Iterator[Path]:
    for root, folders, files in os.walk(folder):
        folders.sort()
        yield from (Path(root, name) for name in sorted(files))


def _told(record: Path, key: str) -> str | None:
    try:
        return str(parse_json(record.read_text())[key])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _few_draws(source: Path, options: PackOptions) -> list[float] | None:
    """Of a small source the draws of its different usable images, sorted: those below the share are held out."""
    columns = {"image_column": options.image_column, "caption_column": options.caption_column}
    opened = partial(open_loose, source, **columns, fields=options.fields)
    if len(list(islice((None for _ in opened().entries), _FEW))) == _FEW:
        return None
    found = (prepare_chunk(Prepare(), Chunk((entry,)))[0] for entry in opened().entries)
    return sorted({one.draw for one in found if isinstance(one, Prepared)})


def _at_least_a_handful(source: Path, split: tuple[str, float], draws: list[float], say: Say) -> tuple[str, float]:
    name, share = split
    wanted = max(1, min(HANDFUL, len(draws) // 8))
    if sum(draw < share for draw in draws) >= wanted or not draws:
        return split
    if len(draws) == 1:
        raise ValueError(f"{source}: one image, so none can be held out; give more, or set data.pack.split=0")
    say(
        f"{source.name}: {share:.0%} of {len(draws)} images would hold out {sum(draw < share for draw in draws)}; "
        f"holding out {wanted}"
    )
    return name, (draws[wanted - 1] + draws[wanted]) / 2


@contextlib.contextmanager
def _one_at_a_time(lock: Path, source: Path, say: Say) -> Iterator[None]:
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            say(f"{source.name}: another process is packing it; waiting")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield  # the lock goes with the file; the file stays, or two processes could each lock one of their own

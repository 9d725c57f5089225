"""Pack loose images with captions into WebDataset shards with their indexes.

The same input gives the same bytes, with any number of workers. The folder appears whole or not at all: it is written
beside its place and renamed. A pack that was killed goes on where it was, if the input is still the same.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from clipkit.config.json_text import parse_json
from clipkit.data.atomic import write_atomically
from clipkit.data.indexing import write_folder_index
from clipkit.data.loose import URL, Entry, Skipped, open_loose
from clipkit.data.parallel import map_shards
from clipkit.data.prepare import Chunk, Prepare, Prepared, prepare_chunk
from clipkit.data.shard_writer import ShardWriter

SHARD_SIZE = 10_000
TRAIN = "train"
_CHUNK = 32
_EXAMPLES = 3
_DOWNLOAD = "; nothing is downloaded here: fetch the images with img2dataset, whose shards train as they are"
_PROGRESS = ".progress.json"


@dataclass(frozen=True)
class PackReport:
    """What became of the input.

    Args:
        out: The folder of shards.
        samples: Samples packed, of all splits together.
        shards: Shards written, of all splits together.
        fields: How many samples have each field.
        skipped: Per cause how many were passed over.
        examples: Per cause the first places.
        splits: Per split its samples and shards; ``""`` where nothing was split.
        listed: Samples whose JSON lists their captions, as those of tables with lists of captions do.
        notes: What else happened, for people.
    """

    out: Path
    samples: int
    shards: int
    fields: dict[str, int]
    skipped: dict[str, int]
    examples: dict[str, tuple[str, ...]]
    splits: dict[str, tuple[int, int]]
    listed: int = 0
    notes: tuple[str, ...] = ()

    @property
    def pattern(self) -> str:
        """The training shards as `data.train.NAME.shards` takes them."""
        return self.pattern_of(next(iter(self.splits)))

    def pattern_of(self, split: str) -> str:
        """The shards of a split."""
        shards, name = self.splits[split][1], _name(split)
        first, last = name.format(0), name.format(shards - 1)
        several = f"{{{first.removesuffix('.tar')}..{last.removesuffix('.tar')}}}.tar"
        return str(self.out / split / (first if shards == 1 else several))

    def __str__(self) -> str:
        lines = [*self.notes]
        for split, (samples, shards) in self.splits.items():
            of = f"{split}: " if split else ""
            lines.append(f"{of}{samples:,} samples in {shards:,} shards: {self.pattern_of(split)}")
        lines.append("fields: " + ", ".join(f"{name} {count:,}" for name, count in sorted(self.fields.items())))
        return "\n".join([*lines, *_skipped_lines(self.skipped, self.examples)])


@dataclass(frozen=True)
class PackOptions:
    """How a source is packed.

    Args:
        shard_size: Samples of a shard; the last may have fewer.
        image_column: Column of the image's bytes or path, relative to the file; unset: filepath, image, path or file_name.
        caption_column: Column of the caption; unset: caption, title or text.
        split: Name and share of a split that is held out by the hash of the image file, so equal files stay together.
        resize: Shorter side to shrink larger images to, in pixels.
        strip_exif: Whether EXIF, XMP, IPTC and comments are removed; pixels and orientation stay.
        fields: Keys of the JSON, or columns of a table, that are kept; None keeps a JSON whole and no further column.

    Raises:
        ValueError: If a value cannot be.
    """

    shard_size: int = SHARD_SIZE
    image_column: str | None = None
    caption_column: str | None = None
    split: tuple[str, float] | None = None
    resize: int | None = None
    strip_exif: bool = False
    fields: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.shard_size < 1:
            raise ValueError(f"shard_size={self.shard_size} is no number of samples; it must be 1 or more")
        if self.resize is not None and self.resize < 1:
            raise ValueError(f"resize={self.resize} is no side in pixels; it must be 1 or more")
        if self.split is not None:
            name, share = self.split
            if not name.isidentifier() or name == TRAIN or not 0 < share < 1:
                raise ValueError(
                    f"split {name}={share:g}: needed are a name other than {TRAIN} and a share above 0, below 1"
                )


def pack(
    source: str | Path,
    out: str | Path,
    options: PackOptions | None = None,
    *,
    workers: int = 1,
    ray: str | None = None,
) -> PackReport:
    """Pack a folder or a table into shards.

    Args:
        source: A folder of images with `.txt` or `.json` beside them, of class folders, or with a metadata file; a CSV, TSV, JSONL or
            parquet file; a folder of parquet files, or what `datasets.save_to_disk` wrote.
        out: The folder to make; it must be absent or empty. With a split it holds a folder for each.
        options: How.
        workers: Processes that read, check and change the images.
        ray: Address of a Ray cluster that does so instead.

    Raises:
        ValueError: If the source holds nothing to pack or cannot be read, or the output folder is not empty.
    """
    source, out, options = Path(source), Path(out), options or PackOptions()
    if os.path.lexists(out) and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out}: exists and is no empty folder; choose another, nothing is overwritten")
    columns = {"image_column": options.image_column, "caption_column": options.caption_column}
    opened = partial(open_loose, source, **columns, fields=options.fields)
    loose = opened()
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.parent / f".{out.name}.part"
    with _alone(out.parent / f".{out.name}.lock", out):
        try:
            job = _Job(part, options)
            entries = job.take_up(_marked(loose.entries)) or _marked(opened().entries)
            job.run(entries, workers, ray)
            if not job.account.samples:
                raise ValueError(_nothing(source, job.account))
            splits = job.finish(loose.classnames)
            _put_in_place(part, out)
        except Exception:  # not for a Ctrl-C: the same command goes on from there
            shutil.rmtree(part, ignore_errors=True)
            raise
    account = job.account
    return PackReport(
        out=out,
        samples=account.samples,
        shards=sum(shards for _, shards in splits.values()),
        fields=dict(account.fields),
        skipped=dict(account.skipped),
        examples={cause: tuple(places) for cause, places in account.examples.items()},
        splits=splits,
        listed=account.listed,
        notes=tuple(job.notes),
    )


@dataclass
class _Account:
    """Counts what is packed and what is passed over."""

    samples: int = 0
    listed: int = 0
    fields: Counter[str] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def skip(self, entry: Skipped) -> None:
        self.skipped[entry.cause] += 1
        examples = self.examples.setdefault(entry.cause, [])
        if len(examples) < _EXAMPLES:
            examples.append(entry.place)


@dataclass(frozen=True)
class _Marked:
    """An entry and the hash of the source up to it."""

    entry: Entry | Skipped
    mark: str


def _marked(entries: Iterable[Entry | Skipped]) -> Iterator[_Marked]:
    digest = hashlib.blake2b(digest_size=16)
    for entry in entries:
        if isinstance(entry, Entry) and isinstance(entry.image, bytes):
            digest.update(entry.image)  # its repr would be four times as long
            digest.update(repr(replace(entry, image=b"")).encode("utf-8", "backslashreplace"))
        else:
            digest.update(repr(entry).encode("utf-8", "backslashreplace"))
        if isinstance(entry, Entry) and isinstance(entry.image, Path):
            with contextlib.suppress(OSError, ValueError):
                status = entry.image.stat()
                digest.update(f"{status.st_size} {status.st_mtime_ns}".encode())
        yield _Marked(entry, digest.hexdigest())


class _Job:
    """The folder while it is written, with its progress."""

    def __init__(self, part: Path, options: PackOptions) -> None:
        self.part, self.options = part, options
        self._start()
        self.notes: list[str] = []

    def _start(self) -> None:
        self.account, self.done, self.mark = _Account(), 0, ""
        self.writers: dict[str, ShardWriter] = {}

    def take_up(self, entries: Iterator[_Marked]) -> Iterator[_Marked] | None:
        """Go on from what an earlier pack left; the entries that remain, or None where it starts anew."""
        try:
            kept = parse_json((self.part / _PROGRESS).read_text())
        except (OSError, ValueError):
            kept = None
        if kept is not None:
            last = deque(islice(entries, kept["done"]), maxlen=1)
            try:
                if kept["options"] != self._options() or not last or last[0].mark != kept["mark"]:
                    raise ValueError("the source or the options changed")
                self.writers = {name: self._writer(name, state) for name, state in kept["writers"].items()}
                account = kept["account"]
                counted = Counter(account.pop("fields")), Counter(account.pop("skipped"))
                self.account = _Account(fields=counted[0], skipped=counted[1], **account)
                self.done, self.mark = kept["done"], kept["mark"]
                self.notes.append(f"went on after {self.done:,} entries of an earlier pack that did not end")
                return entries
            except ValueError as error:
                self.notes.append(f"an earlier pack did not end and is made anew: {error}")
                self._start()
        shutil.rmtree(self.part, ignore_errors=True)
        self.part.mkdir()
        return None

    def run(self, entries: Iterator[_Marked], workers: int, ray: str | None) -> None:
        """Pack the entries that remain."""
        prepare = Prepare(self.options.resize, self.options.strip_exif, self.options.fields)
        under_way: deque[tuple[int, str]] = deque()

        def chunks() -> Iterator[Chunk]:
            while found := list(islice(entries, _CHUNK)):
                under_way.append((len(found), found[-1].mark))
                yield Chunk(tuple(one.entry for one in found))

        for results in map_shards(partial(prepare_chunk, prepare), chunks(), workers=workers, ray=ray):
            filled = [self._keep(result) for result in results]
            count, self.mark = under_way.popleft()
            self.done += count
            if any(filled):
                self._save()

    def _keep(self, result: Prepared | Skipped) -> bool:
        if isinstance(result, Skipped):
            self.account.skip(result)
            return False
        name = ""
        if self.options.split is not None:
            held_out, share = self.options.split
            name = held_out if result.draw < share else TRAIN
        if name not in self.writers:
            self.writers[name] = self._writer(name, None)
        self.account.samples += 1
        self.account.listed += b'"captions": [' in result.members.get("json", b"")
        self.account.fields.update(list(result.members))  # a mapping would be taken for counts
        return self.writers[name].write(result.stem, result.members)

    def _writer(self, name: str, state: Any) -> ShardWriter:
        return ShardWriter(self.part / name, self.options.shard_size, _name(name), state)

    def _options(self) -> Any:
        return json.loads(json.dumps(asdict(self.options)))

    def _save(self) -> None:
        progress = {
            "options": self._options(),
            "done": self.done,
            "mark": self.mark,
            "account": vars(self.account),
            "writers": {name: writer.state() for name, writer in self.writers.items()},
        }
        write_atomically(self.part / _PROGRESS, lambda file: file.write(json.dumps(progress).encode()))

    def finish(self, classnames: tuple[str, ...] | None) -> dict[str, tuple[int, int]]:
        """Close the last shards and write what belongs beside them; per split its samples and shards."""
        if self.options.split is not None and len(self.writers) < 2:
            held_out, share = self.options.split
            lacking = TRAIN if held_out in self.writers else held_out
            cure = "choose another share"
            raise ValueError(
                f"split {held_out}={share:g} of {self.account.samples:,} samples leaves none for {lacking}; {cure}"
            )
        for name, writer in self.writers.items():
            writer.close()
            write_folder_index(self.part / name)
            if name not in ("", TRAIN):  # CLIP_benchmark's layout: `clipkit evaluate --data OUT/NAME`
                (self.part / name / "nshards.txt").write_text(f"{writer.shards}\n")
                kind = "retrieval" if classnames is None else "classification"
                (self.part / "dataset_type.txt").write_text(f"{kind}\n")
        if classnames is not None:
            (self.part / "classnames.txt").write_text("\n".join(classnames) + "\n", encoding="utf-8")
        (self.part / _PROGRESS).unlink(missing_ok=True)
        return {
            name: (self.writers[name].samples, self.writers[name].shards)
            for name in sorted(self.writers, key=_train_first)
        }


def _train_first(split: str) -> bool:
    return split not in ("", TRAIN)


def _name(split: str) -> str:
    """How the shards of a split are called: those held out as CLIP_benchmark calls them."""
    return "{:d}.tar" if _train_first(split) else "{:05d}.tar"


@contextlib.contextmanager
def _alone(lock: Path, out: Path) -> Iterator[None]:
    """Hold a folder that is being packed against a second pack of it."""
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ValueError(f"{out}: another process is packing it; wait for it, or choose another folder") from error
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


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
        + _DOWNLOAD * (cause == URL)
        for cause, count in sorted(skipped.items())
    ]

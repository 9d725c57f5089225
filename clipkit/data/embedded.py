"""The embedded data set as shards and evaluation sets: emoji, drawn in six styles (``clipkit/demo/NOTICE`` names them).

Five styles train, one is held out, and a tenth of the concepts is held out in every style. So three questions have
answers that no training picture gives away: a seen concept in an unseen style (``style_transfer``), an unseen concept
among the unseen (``unseen``), and what kind of thing an unseen concept is (``subgroup``). The names of the sets:

``train``, ``val``
    Training shards of the seen concepts, and the unseen concepts in the training styles.
``style_transfer``, ``unseen``, ``subgroup``, ``retrieval``
    Evaluation sets of the held-out style, in CLIP_benchmark's layout; retrieval is over all concepts.
``dev_train``, ``dev_style_transfer``, ``dev_unseen``, ``dev_subgroup``, ``dev_retrieval``
    The same with fxemoji held back from the training styles: choices are made on these, never on the held-out style.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache as cached
from importlib.resources import files
from pathlib import Path

from clipkit.data.indexing import write_folder_index

TRAIN_STYLES = ("noto", "noto-v1", "fxemoji", "twemoji", "emojione")
DEV_STYLE = "fxemoji"
HELD_OUT_STYLE = "fluent-emoji-flat"
SHARDS = 4
TEMPLATES = ("{c}", "a drawing of {c}", "{c} emoji")

Sample = dict[str, bytes]


@dataclass(frozen=True)
class Concept:
    """One emoji: what it is called and in which styles it is drawn.

    Args:
        hexcode: Its code points, ``1F34E``; the name of the concept everywhere.
        label: Its English name, unique.
        tags: English words for it.
        group: Coarse kind, ``food-drink``.
        subgroup: Fine kind, ``food-fruit``.
        held_out: Whether it is kept from training, in every style.
        styles: The styles that draw it.
        labels: Its name by language (``de``, ``es``, ``fr``, ``hi``, ``it``, ``ja``, ``ko``, ``pt``, ``ru``, ``zh``).
    """

    hexcode: str
    label: str
    tags: tuple[str, ...]
    group: str
    subgroup: str
    held_out: bool
    styles: tuple[str, ...]
    labels: dict[str, str]


@cached
def _zip() -> bytes:
    return (files("clipkit") / "demo" / "emoji.zip").read_bytes()


def concepts() -> list[Concept]:
    """All concepts, by hexcode."""
    with zipfile.ZipFile(io.BytesIO(_zip())) as archive:
        rows = json.loads(archive.read("concepts.json"))
    return [Concept(**{**row, "tags": tuple(row["tags"]), "styles": tuple(row["styles"])}) for row in rows]


def drawings(style: str) -> dict[str, bytes]:
    """A style's pictures, 64 x 64 WebP, by hexcode."""
    prefix, suffix = f"images/{style}/", ".webp"
    with zipfile.ZipFile(io.BytesIO(_zip())) as archive:
        names = [name for name in archive.namelist() if name.startswith(prefix)]
        return {name.removeprefix(prefix).removesuffix(suffix): archive.read(name) for name in names}


def words(name: str) -> str:
    """A group or subgroup as words: ``food fruit``."""
    return name.replace("-", " ")


def captions(concept: Concept) -> list[str]:
    """What a picture of the concept may be called; the first is its label.

    Half of the list names it, so that names are learnt; the rest teaches the words that unseen concepts share with seen
    ones: tags, three at a time, and the subgroup. All are short: a text tower pays for the longest of its batch.
    """
    label, kind = concept.label, words(concept.subgroup)
    tags = [tag for tag in concept.tags if tag.lower() not in label.lower()] or [kind]
    return [
        label,
        label,
        label,
        f"a drawing of {label}",
        f"{label} emoji",
        *(", ".join(tags[start : start + 3]) for start in range(0, min(9, len(tags)), 3)),
        ", ".join((label, *tags[:2])),
        kind,
        kind,
    ]


def materialise(cache: Path) -> dict[str, Path]:
    """Write every set into the cache, once; later calls find them there.

    Args:
        cache: The cache folder of the run; the sets lie in ``embedded/HASH``, HASH that of the embedded zip and of this file.

    Returns:
        Every set's folder by name.

    Raises:
        OSError: If the cache cannot be written.
    """
    digest = hashlib.sha256(_zip() + Path(__file__).read_bytes()).hexdigest()[
        :16
    ]  # another way of writing, another place
    home = Path(cache) / "embedded"
    final = home / digest
    if not final.is_dir():
        home.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{digest}.", dir=home))
        try:
            _write_all(temporary)
            temporary.chmod(0o755)  # mkdtemp makes it private
            os.rename(temporary, final)
        except OSError:
            if not final.is_dir():  # else another process was first, with the same bytes
                raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return {path.name: path for path in sorted(final.iterdir()) if path.is_dir()}


def resolve(reference: str, cache: Path) -> list[str] | Path:
    """What ``embedded:NAME`` stands for.

    Args:
        reference: ``embedded:train`` and the like.
        cache: The cache folder of the run.

    Returns:
        The shards of a training set, or the folder of an evaluation set.

    Raises:
        ValueError: If there is no such set.
    """
    prefix, _, name = reference.partition(":")
    sets = materialise(cache)
    if prefix != "embedded" or name not in sets:
        known = ", ".join(f"embedded:{known}" for known in sets)
        raise ValueError(f"{reference!r} is no embedded data set; there are {known}")
    folder = sets[name]
    return folder if (folder / "test").is_dir() else [str(shard) for shard in sorted(folder.glob("*.tar"))]


def _write_all(root: Path) -> None:
    known = concepts()
    pictures = {style: drawings(style) for style in (*TRAIN_STYLES, HELD_OUT_STYLE)}
    seen = [concept for concept in known if not concept.held_out]
    unseen = [concept for concept in known if concept.held_out]
    splits = {"": (TRAIN_STYLES, HELD_OUT_STYLE), "dev_": (tuple(s for s in TRAIN_STYLES if s != DEV_STYLE), DEV_STYLE)}
    for prefix, (styles, style) in splits.items():
        _write_training(root / f"{prefix}train", seen, styles, pictures)
        of_style = [concept for concept in known if style in concept.styles]
        trained = [concept for concept in of_style if not concept.held_out and set(styles) & set(concept.styles)]
        held_out = [concept for concept in of_style if concept.held_out]
        kinds = sorted({concept.subgroup for concept in seen})
        names = [concept.label for concept in trained]
        _write_zero_shot(
            root / f"{prefix}style_transfer", trained, names, TEMPLATES, range(len(names)), pictures[style]
        )
        names = [concept.label for concept in held_out]
        _write_zero_shot(root / f"{prefix}unseen", held_out, names, TEMPLATES, range(len(names)), pictures[style])
        labels = [kinds.index(concept.subgroup) for concept in held_out]
        names = [words(kind) for kind in kinds]
        _write_zero_shot(root / f"{prefix}subgroup", held_out, names, ("{c}",), labels, pictures[style])
        _write_retrieval(root / f"{prefix}retrieval", of_style, pictures[style])
    _write_training(root / "val", unseen, TRAIN_STYLES, pictures, shards=1)


def _write_tar(path: Path, samples: Iterable[tuple[str, Sample]]) -> None:
    """A tar of samples, the same bytes for the same samples: no times, no names of users."""
    from webdataset import TarWriter

    with path.open("wb") as file, TarWriter(file, encoder=False, mtime=0.0, user="clipkit", group="clipkit") as writer:
        for key, sample in samples:
            writer.write({"__key__": key, **sample})


def _write_training(
    folder: Path,
    chosen: Sequence[Concept],
    styles: Sequence[str],
    pictures: dict[str, dict[str, bytes]],
    shards: int = SHARDS,
) -> None:
    """Training shards. The samples stand in the order of a hash: any stretch of a shard mixes styles and concepts."""
    samples = []
    for concept in chosen:
        about = {"concept": concept.hexcode, "group": concept.group, "subgroup": concept.subgroup}
        for style in set(styles) & set(concept.styles):
            record = {"captions": captions(concept), **about, "style": style}
            sample = {
                "webp": pictures[style][concept.hexcode],
                "txt": concept.label.encode(),
                "json": json.dumps(record, ensure_ascii=False).encode(),
            }
            samples.append((f"{style}_{concept.hexcode}", sample))
    samples.sort(key=lambda pair: hashlib.sha256(pair[0].encode()).digest())
    folder.mkdir()
    for shard in range(shards):
        _write_tar(folder / f"{shard:05d}.tar", samples[shard::shards])
    write_folder_index(folder)


def _write_zero_shot(
    folder: Path,
    chosen: Sequence[Concept],
    classnames: Sequence[str],
    templates: Sequence[str],
    labels: Sequence[int],
    pictures: dict[str, bytes],
) -> None:
    """A classification set in CLIP_benchmark's layout."""
    samples = [
        (concept.hexcode, {"webp": pictures[concept.hexcode], "cls": str(label).encode()})
        for concept, label in zip(chosen, labels, strict=True)
    ]
    _write_layout(folder, samples)
    _write_lines(folder / "classnames.txt", classnames)
    _write_lines(folder / "zeroshot_classification_templates.txt", templates)


def _write_retrieval(folder: Path, chosen: Sequence[Concept], pictures: dict[str, bytes]) -> None:
    """A retrieval set in CLIP_benchmark's layout; of the captions those that name the picture, one a line."""
    samples = []
    for concept in chosen:
        named = "\n".join(
            (concept.label, f"a drawing of {concept.label}", ", ".join((concept.label, *concept.tags[:3])))
        )
        samples.append((concept.hexcode, {"webp": pictures[concept.hexcode], "txt": named.encode()}))
    _write_layout(folder, samples)
    _write_lines(folder / "dataset_type.txt", ["retrieval"])


def _write_layout(folder: Path, samples: list[tuple[str, Sample]]) -> None:
    (folder / "test").mkdir(parents=True)
    _write_tar(folder / "test" / "0.tar", samples)
    (folder / "test" / "nshards.txt").write_text("1", encoding="utf-8")
    write_folder_index(folder / "test")


def _write_lines(path: Path, lines: Iterable[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")

"""A set of CLIP_benchmark's layout on a server, copied into the cache file by file; what is there is not fetched again."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from urllib.parse import urlsplit

from clipkit.data.fetch import Policy, download, fetch_small
from clipkit.data.locks import alone
from clipkit.data.urls import SCHEMES, local_names, shown
from clipkit.evaluation.samples import read_text

_log = logging.getLogger(__name__)
_POLICY = Policy()
_SMALL = 64 * 2**20
_WORDS = ("classnames.txt", "zeroshot_classification_templates.txt", "dataset_type.txt")
_PARTS = ("test", "train")
_HUGGING_FACE = "https://huggingface.co/datasets/"


def has_remote(url: str, cache: Path) -> bool:
    """Whether a copy or the set itself is there."""
    return (_folder(url, cache) / "test" / "nshards.txt").is_file() or (
        fetch_small(_file(url, "test/nshards.txt"), 100, _POLICY) is not None
    )


def copy_remote(url: str, cache: Path) -> Path:
    """The folder of a copy of a set; what is missing of it is fetched first, and said.

    Args:
        url: Of the folder that holds ``test/``; of Hugging Face also the page ``.../datasets/ORG/REPO/tree/BRANCH``.
        cache: Where copies are kept.

    Raises:
        ValueError: If it is no such set, or a file of it cannot be fetched.
    """
    folder = _folder(url, cache)
    folder.mkdir(parents=True, exist_ok=True)
    with alone([str(folder)], cache):  # one process of a machine fetches
        files = bytes_ = 0
        for name in _WORDS:
            files += _small(url, folder, name)
        for part in _PARTS:
            held = folder / part / "nshards.txt"
            if not held.is_file() and not (folder / f".no-{part}").is_file():
                files += _small(url, folder, f"{part}/nshards.txt")
            if not held.is_file():
                if part == "test":
                    raise ValueError(f"{shown(url)}: no test/nshards.txt there; name the folder that holds test/")
                (folder / f".no-{part}").touch()
                continue
            text = read_text(held).strip()
            if not text.isdecimal():
                raise ValueError(f"{shown(url)}: {part}/nshards.txt holds {text[:40]!r}, no number of shards")
            for number in range(int(text)):
                target = folder / part / f"{number}.tar"
                if not target.is_file():
                    bytes_ += _fetch(_file(url, f"{part}/{number}.tar"), target)
                    files += 1
    if files:
        _log.warning("%s: fetched %d files (%.1f MB of shards) into %s", shown(url), files, bytes_ / 1e6, folder)
    return folder


def _folder(url: str, cache: Path) -> Path:
    if urlsplit(url).scheme not in SCHEMES:  # `pipe:` above all: a suite may come from a stranger
        known = ", ".join(f"{scheme}://" for scheme in SCHEMES)
        raise ValueError(f"{shown(url)}: sets are read from files and from {known}; programs are not run")
    where, _ = local_names(_file(url, "test/0.tar"))
    path = urlsplit(url.partition("/tree/")[0]).path.rstrip("/")
    return cache / "evaluation" / f"{where}" / (path.rpartition("/")[2].lstrip(".") or "set")


def _file(url: str, name: str) -> str:
    """The address of a file of the set."""
    if url.startswith(_HUGGING_FACE):
        repository, _, branch = url.rstrip("/").partition("/tree/")
        return f"{repository}/resolve/{branch or 'main'}/{name}"
    parts = urlsplit(url)
    return parts._replace(path=f"{parts.path.rstrip('/')}/{name}").geturl()


def _small(url: str, folder: Path, name: str) -> int:
    """Fetch a text file that may not be there; how many came."""
    target, absent = folder / name, folder / f".no-{name.replace('/', '-')}"
    if target.is_file() or absent.is_file():
        return 0
    data = fetch_small(_file(url, name), _SMALL, _POLICY)
    if data is None:
        if name in _WORDS:
            absent.touch()
        return 0
    target.parent.mkdir(exist_ok=True)
    _replace(target, data)
    return 1


def _replace(target: Path, data: bytes) -> None:
    temporary = target.with_name(f".{target.name}.fetching")
    temporary.write_bytes(data)
    os.replace(temporary, target)


def _fetch(url: str, target: Path) -> int:
    temporary = target.with_name(f".{target.name}.fetching")
    version = download(url, lambda _: temporary.open("wb"), _POLICY)
    os.replace(temporary, target)
    return version.size

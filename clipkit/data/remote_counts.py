"""How many samples each remote shard holds, from small JSON files beside them: no shard is fetched to start a run.

A folder's ``index.json`` (ours), else its ``sizes.json`` (open_clip's and webdataset's: ``{"00000.tar": 1234}``), else one
``NAME_stats.json`` a shard (img2dataset's ``successes``), else the ``index.json`` that ``index_remote`` left in this machine's cache.
What was found is kept in the cache for a while, so that the ranks of a node ask once.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shlex
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from clipkit.config.json_text import parse_json
from clipkit.data.atomic import write_atomically
from clipkit.data.fetch import Policy, fetch_small
from clipkit.data.index import VERSION, default_cache
from clipkit.data.node_cache import NodeCache, locked
from clipkit.data.tar import ShardError
from clipkit.data.urls import PIPE, beside, local_names, pattern_of, shard_name, shown

COUNTED = b"count-"  # begins the fingerprint of a shard of which only the count is known
_LIMITS = {"index.json": 256 << 20, "sizes.json": 64 << 20, "_stats.json": 16 << 20}
_AT_ONCE = 16
_FRESH = 600.0  # seconds
_FINGERPRINT = re.compile(r"\d{1,20}-[0-9a-f]{32}")


class Counted(NamedTuple):
    """What is known of a remote shard.

    Args:
        samples: How many.
        fingerprint: As ``ShardIndex.fingerprint``, or ``count-`` and a hash of name and count.
    """

    samples: int
    fingerprint: str


def _by_count(name: str, count: int) -> Counted:
    mark = hashlib.blake2b(f"{count} {name}".encode(), digest_size=16).hexdigest()
    return Counted(count, COUNTED.decode() + mark)


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 40:
        raise ValueError(f"{value!r} is no count")
    return value


def _from_index(told: Any) -> dict[str, Counted]:
    if told["version"] != VERSION:
        raise ValueError(f"version {told['version']}, this clipkit reads {VERSION}")
    found = {}
    for entry in told["shards"]:
        if not _FINGERPRINT.fullmatch(entry["fingerprint"]):
            raise ValueError(f"{str(entry['fingerprint'])[:60]!r} is no fingerprint")
        found[str(entry["name"])] = Counted(_whole(entry["count"]), entry["fingerprint"])
    return found


def _from_sizes(told: Any) -> dict[str, Counted]:
    return {str(name): _by_count(str(name), _whole(count)) for name, count in told.items()}


def _read(url: str, limit: int, policy: Policy) -> Any:
    """A remote JSON file, None if there is none."""
    data = fetch_small(url, limit, policy)
    if data is None:
        return None
    try:
        return parse_json(data)
    except ValueError as error:
        raise _no_good(url, "is no JSON") from error


def _no_good(url: str, why: object) -> ShardError:
    return ShardError(f"{shown(url)}: {why}; mend it, or remove it if it is not about these shards", shown(url))


def _listed(url: str, kind: str, policy: Policy) -> dict[str, Counted]:
    """What a folder's list says; nothing if there is none."""
    address = beside(url, kind)
    told = _read(address, _LIMITS[kind], policy)
    if told is None:
        return {}
    try:
        return _from_index(told) if kind == "index.json" else _from_sizes(told)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _no_good(address, f"is no list of shards ({error})") from error


def _stats(url: str, policy: Policy) -> Counted | None:
    """What img2dataset wrote beside the shard."""
    name = shard_name(url)
    address = beside(url, name.partition("?")[0].removesuffix(".tar") + "_stats.json")
    told = _read(address, _LIMITS["_stats.json"], policy)
    if told is None:
        return None
    try:
        return _by_count(name, _whole(told["successes"]))
    except (ValueError, KeyError, TypeError) as error:
        raise _no_good(address, f"has no number of successes ({error})") from error


def _all_stats(urls: Sequence[str], policy: Policy) -> dict[str, Counted]:
    first = _stats(urls[0], policy)
    if first is None:  # one request tells that there are none
        return {}
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        rest = pool.map(lambda url: _stats(url, policy), urls[1:])
        found = zip(urls, [first, *rest], strict=True)
        return {shard_name(url): counted for url, counted in found if counted is not None}


def own_index(cache: NodeCache, url: str) -> Path:
    """The ``index.json`` that this machine keeps of the URL's folder."""
    return cache.folder / local_names(url)[0] / "index.json"


def _ask(urls: Sequence[str], cache: NodeCache, before: dict[str, Counted]) -> dict[str, Counted]:
    """Counts of shards of one folder; ``before`` are those of an earlier time, which shards' own stats need not be asked for."""
    found: dict[str, Counted] = {}
    if not urls[0].startswith(PIPE):
        for kind in ("index.json", "sizes.json"):
            if any(shard_name(url) not in found for url in urls):
                found = _listed(urls[0], kind, cache.policy) | found
        left = [url for url in urls if shard_name(url) not in found]
        if left:
            known = {name: counted for url in left if (counted := before.get(name := shard_name(url)))}
            unknown = [url for url in left if shard_name(url) not in known]
            found = known | (_all_stats(unknown, cache.policy) if unknown else {}) | found
    if any(shard_name(url) not in found for url in urls):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            found = _from_index(parse_json(own_index(cache, urls[0]).read_text())) | found
    return {name: found[name] for url in urls if (name := shard_name(url)) in found}


def _of_folder(urls: Sequence[str], cache: NodeCache) -> dict[str, Counted]:
    kept = own_index(cache, urls[0]).with_name("counts.json")
    kept.parent.mkdir(exist_ok=True)
    with locked(kept.with_name("counts.json.lock"), cache.policy.deadline):
        before: dict[str, Counted] = {}
        with contextlib.suppress(OSError, ValueError, TypeError):
            before = {str(name): Counted(*entry) for name, entry in parse_json(kept.read_text()).items()}
            fresh = 0 <= time.time() - kept.stat().st_mtime < _FRESH
            if fresh and all(shard_name(url) in before for url in urls):
                return before
        found = _ask(urls, cache, before)
        text = json.dumps(before | found)
        write_atomically(kept, lambda file: file.write(text.encode()))
    return found


def remote_counts(urls: Sequence[str], cache: NodeCache) -> list[Counted]:
    """Samples and fingerprint of each shard.

    Args:
        urls: Of the shards (S,), of any folders.
        cache: Where the counts are kept, and how patiently they are asked for.

    Raises:
        ShardError: If a list cannot be had or is no good.
        ValueError: If there are no counts for a shard; the message says how to make them.
    """
    folders: dict[str, list[str]] = {}
    for url in urls:
        folders.setdefault(local_names(url)[0], []).append(url)
    found = {folder: _of_folder(of, cache) for folder, of in folders.items()}
    missing = [url for url in urls if shard_name(url) not in found[local_names(url)[0]]]
    if missing:
        tried = "index.json, sizes.json, " + shard_name(missing[0]).removesuffix(".tar") + "_stats.json"
        text = f"{len(missing):,} of {len(urls):,} remote shards have no count beside them (looked for {shown(tried)}), the first is "
        command = f"clipkit data index {pattern_of(missing)!r}"
        if (
            folder := cache.folder.parent.absolute()
        ) != default_cache().absolute():  # where the verb would not put them
            command = f"CLIPKIT_CACHE={shlex.quote(str(folder))} {command}"
        raise ValueError(f"{text}{shown(missing[0])}. Count them once:\n  {command}")
    return [found[local_names(url)[0]][shard_name(url)] for url in urls]


def forget_counts(url: str, cache: NodeCache) -> None:
    """Ask for the counts of the URL's folder anew at the next start: what is kept of them was shown to be wrong."""
    own_index(cache, url).with_name("counts.json").unlink(missing_ok=True)


def index_remote(urls: Sequence[str], cache: NodeCache) -> list[Path]:
    """Fetch every shard, index it, and list its folder in this machine's cache, where a run then finds the counts.

    Args:
        urls: Of the shards.
        cache: Where they pass through.

    Returns:
        The ``index.json`` of each folder; copied beside the remote shards they serve every machine.

    Raises:
        ShardError: If a shard cannot be had or indexed.
    """
    with ThreadPoolExecutor(4) as pool:
        entries = list(pool.map(lambda url: _entry(url, cache), urls))
    folders: dict[Path, list[dict[str, Any]]] = {}
    for url, entry in zip(urls, entries, strict=True):
        folders.setdefault(own_index(cache, url), []).append(entry)
    for path, listed in folders.items():
        with locked(path.with_name("counts.json.lock"), cache.policy.deadline):
            _write_index(path, listed)
    return list(folders)


def _entry(url: str, cache: NodeCache) -> dict[str, Any]:
    opened = cache.open(url)
    os.close(opened.fd)
    index = opened.index
    return {"name": shard_name(url), "count": len(index), "size": index.size, "fingerprint": index.fingerprint}


def _write_index(path: Path, entries: Iterable[dict[str, Any]]) -> None:
    before: list[dict[str, Any]] = []
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        before = parse_json(path.read_text())["shards"]
    named = {entry["name"]: entry for entry in (*before, *entries)}
    text = json.dumps({"version": VERSION, "shards": [named[name] for name in sorted(named)]}, indent=1)
    write_atomically(path, lambda file: file.write(text.encode()))
    path.with_name("counts.json").unlink(missing_ok=True)

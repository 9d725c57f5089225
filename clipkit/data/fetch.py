"""One remote file, whole: tried again after what passes, never after what stays, and ended by a deadline."""

from __future__ import annotations

import errno
import http.client
import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple, TypeVar

from clipkit.data.tar import ShardError
from clipkit.data.transport import CHUNK, Body, Refused, open_remote, within, words
from clipkit.data.urls import PIPE, shown

_log = logging.getLogger(__name__)
_RANDOM = random.SystemRandom()  # never the global generators: what a batch holds must not hang on a server's mood
_OWN_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # this machine's trouble, not the server's
T = TypeVar("T")


@dataclass(frozen=True)
class Policy:
    """How patiently a file is fetched.

    Args:
        tries: How often at most.
        timeout: Seconds that a server may be silent.
        deadline: Seconds for all tries together.
        pause: Seconds before the second try, doubled for each further one; half of it is drawn.
        longest_pause: Seconds above which it is doubled no more.
    """

    tries: int = 8
    timeout: float = 30.0
    deadline: float = 1800.0
    pause: float = 0.5
    longest_pause: float = 30.0


class Version(NamedTuple):
    """Which version of a remote file was read.

    Args:
        size: Its bytes.
        etag: What the server names it by, None if it does not.
    """

    size: int
    etag: str | None


def _failed(url: str, cause: str, cure: str) -> ShardError:
    return ShardError(f"{shown(url)}: cannot be fetched, {shown(cause)}; {cure}", shown(url))


def _patiently(url: str, attempt: Callable[[float], T], policy: Policy) -> T:
    """The result of ``attempt``, called with the time at which it must have ended.

    Raises:
        Refused: If asking again is no use.
        ShardError: If no try succeeded in time.
        OSError: If the disk here is full.
    """
    end = time.monotonic() + policy.deadline
    for number in range(1, policy.tries + 1):
        try:
            return attempt(end)
        except (Refused, ValueError):
            raise
        except (OSError, http.client.HTTPException, RuntimeError) as error:
            if getattr(error, "errno", None) in _OWN_DISK:
                raise
            cause = words(error)
        except (
            Exception
        ) as error:  # the clients below fsspec have errors of their own: their kind says more than their base
            cause = f"{type(error).__name__}: {words(error)}"
        pause = min(policy.longest_pause, policy.pause * 2 ** (number - 1)) * _RANDOM.uniform(0.5, 1.0)
        if number == policy.tries or time.monotonic() + pause >= end:
            break
        _log.warning("%s: %s; try %d of %d follows", shown(url), cause, number + 1, policy.tries)
        time.sleep(pause)
    raise _failed(
        url, f"{cause} ({number} tries)", "check the server and the network, the same command goes on from here"
    )


def _copy(body: Body, file: BinaryIO, end: float) -> int:
    """Copy all bytes; returns how many there were."""
    held = 0
    while data := body.read(CHUNK):
        file.write(data)
        held += len(data)
        if body.size is not None and held > body.size:
            break
        if time.monotonic() > end:
            raise TimeoutError(f"not complete by the deadline ({held:,} bytes came)")
    return held


def download(url: str, begin: Callable[[Version], BinaryIO], policy: Policy) -> Version:
    """Fetch a file.

    Args:
        url: Its address.
        begin: Given the announced version (size 0 where it is not known), opens the empty file to write to; called for each try.
        policy: How patiently.

    Raises:
        ShardError: If it cannot be had; the message names shard, cause and cure.
        ValueError: If the scheme's package is not installed.
    """

    def attempt(end: float) -> Version:
        body = within(min(2 * policy.timeout, end - time.monotonic()), lambda: open_remote(url, policy.timeout))
        try:
            with begin(Version(body.size or 0, body.etag)) as file:
                held = _copy(body, file, end)
        finally:
            body.close()
        if body.size is not None and held != body.size:
            raise OSError(f"{held:,} of {body.size:,} bytes came")
        return Version(held, body.etag)

    try:
        return _patiently(url, attempt, policy)
    except Refused as error:
        raise _failed(url, error.cause, error.cure) from None


def fetch_small(url: str, limit: int, policy: Policy) -> bytes | None:
    """A small file's bytes, or None if the server says that there is none, or none for us.

    Args:
        url: Its address.
        limit: Bytes above which it is refused.
        policy: How patiently.

    Raises:
        ShardError: If it cannot be had, or is too large.
        ValueError: If it is a program; those read shards alone, and where the user allowed it.
    """
    if url.startswith(PIPE):
        raise ValueError(f"{shown(url)}: programs are not run")

    def attempt(end: float) -> bytes:
        body = within(min(2 * policy.timeout, end - time.monotonic()), lambda: open_remote(url, policy.timeout))
        try:
            data = bytearray()
            while more := body.read(CHUNK):
                data += more
                if len(data) > limit:
                    raise Refused(f"it is larger than {limit:,} bytes", "is it the right file?")
                if time.monotonic() > end:
                    raise TimeoutError(f"not complete by the deadline ({len(data):,} bytes came)")
        finally:
            body.close()
        if body.size is not None and len(data) != body.size:
            raise OSError(f"{len(data):,} of {body.size:,} bytes came")
        return bytes(data)

    try:
        return _patiently(url, attempt, policy)
    except Refused as error:
        if error.absent:
            return None
        raise _failed(url, error.cause, error.cure) from None

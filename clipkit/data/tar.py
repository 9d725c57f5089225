"""Walk the headers of a plain tar with ``pread``: where each file lies, without reading any of it.

Formats: ustar, GNU (long names ``L``, base-256 sizes) and PAX (``x``, ``g``), after POSIX.1-2001 and GNU tar's manual.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import NamedTuple
from zlib import crc32

import numpy as np

BLOCK = 512
_AHEAD = 4096  # read at once: captions and metadata are small, so the next headers are mostly among it
_LARGEST_EXTENSION = 1 << 20  # a long name or a PAX record; real ones are below a few kilobytes
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_TRIES = 4
_AT_ONCE = 1024
_FILE = ord("0")
_REGULAR = frozenset((b"0", b"\0", b"7"))
_LINKS = frozenset((b"1", b"2"))
_WITHOUT_DATA = _LINKS | {b"3", b"4", b"5", b"6"}
_EXTENSIONS = frozenset((b"L", b"K", b"x", b"X", b"g"))  # headers about the file that follows them


class ShardError(ValueError):
    """A shard that cannot be indexed or read; the message names the shard, the place and the cure.

    Args:
        message: The whole message, place and cure included.
        shard: Path of the shard.
        offset: Byte offset in the shard where it went wrong, where there is one.
    """

    def __init__(self, message: str, shard: str = "", offset: int | None = None) -> None:
        super().__init__(message)
        self.shard = shard
        self.offset = offset


class Member(NamedTuple):
    """One regular file of a tar.

    Args:
        name: Its path in the tar, as bytes.
        start: Offset of its first header (long-name headers included).
        offset: Offset of its data.
        size: Length of its data in bytes.
        check: CRC-32 of the header block before its data: a reader sees by it that the member is still there.
    """

    name: bytes
    start: int
    offset: int
    size: int
    check: int


def _fail(path: str, offset: int, what: str, cure: str) -> ShardError:
    return ShardError(f"{path}: {what} at byte {offset}; {cure}", path, offset)


def _number(field: bytes) -> int:
    """A header's number: octal text, or GNU's base-256 for what octal cannot hold."""
    if field[:1] == b"\x80":
        return int.from_bytes(field[1:], "big")
    return int(field.rstrip(b"\0 ").lstrip() or b"0", 8)


def _checksum_holds(header: bytes) -> bool:
    digits, _, rest = header[148:156].partition(b"\0")
    try:
        stored = _number(digits)
    except ValueError:
        return False
    if rest.strip(b"\0 "):  # a checksum does not cover its own field
        return False
    # the field itself counts as eight spaces; some old programs summed signed bytes
    plain = sum(header) - sum(header[148:156]) + 8 * 32
    return stored == plain or stored == plain - 256 * sum(byte > 127 for byte in header[:148] + header[156:])


def _pax(data: bytes) -> dict[bytes, bytes]:
    """The records of a PAX header, each ``LENGTH KEY=VALUE`` and a line feed."""
    records: dict[bytes, bytes] = {}
    data, at = data.rstrip(b"\0"), 0
    while at < len(data):  # no copies of what is left: there may be 200,000 records
        space = data.find(b" ", at, at + 20)
        end = at + int(data[at:space]) if space > 0 else 0
        if end <= space + 1 or end > len(data):
            raise ValueError("a PAX record that is longer than its header")
        key, _, value = data[space + 1 : end - 1].partition(b"=")
        records[key] = value
        at = end
    return records


def _name(header: bytes) -> bytes:
    name = header[:100].split(b"\0", 1)[0]
    prefix = header[345:500].split(b"\0", 1)[0] if header[257:263] == b"ustar\0" else b""
    return prefix + b"/" + name if prefix else name


def _check_end(fd: int, path: str, offset: int) -> None:
    """Nothing but zeros may follow the end marker: ``cat a.tar b.tar`` would lose every sample of b."""
    if os.pread(fd, 1 << 16, offset).strip(b"\0"):
        raise _fail(path, offset, "there is data behind the end-of-archive marker", "were tars concatenated? repack it")


def _extension(fd: int, path: str, offset: int, size: int) -> bytes:
    if size > _LARGEST_EXTENSION:
        raise _fail(path, offset, f"a name or PAX header of {size} bytes", "the tar is damaged; pack it again")
    return os.pread(fd, size, offset)


def _usual(fd: int, offset: int, total: int) -> list[Member]:
    """Members from an offset on whose headers are as nearly all are; many at once, each checked as fully as by the other rules."""
    heads: list[bytes] = []
    begins: list[int] = []
    sizes: list[int] = []
    data, base, end = b"", 0, total - BLOCK
    while len(heads) < _AT_ONCE and offset <= end:
        at = offset - base
        if not 0 <= at <= len(data) - BLOCK:
            data, base, at = os.pread(fd, _AHEAD, offset), offset, 0
        try:
            if data[at + 156] != _FILE or data[at + 345]:  # another kind of header, or a name in two parts
                break
            size = int(data[at + 124 : at + 135], 8)
        except (IndexError, ValueError):
            break
        start = offset + BLOCK
        if size < 0 or start + size > total:
            break
        heads.append(data[at : at + BLOCK])
        begins.append(offset)
        sizes.append(size)
        offset = start + (size + BLOCK - 1) // BLOCK * BLOCK
    table = np.frombuffer(b"".join(heads), np.uint8).reshape(-1, BLOCK)
    digits = table[:, 148:154] - np.uint8(ord("0"))
    stored = digits.astype(np.int64) @ (8 ** np.arange(5, -1, -1))
    summed = table.sum(1, dtype=np.uint32) - table[:, 148:156].sum(1, dtype=np.uint32) + 8 * 32
    ends = np.isin(table[:, (135, 154, 155)], (0, ord(" "))).all(1)
    good = (stored == summed) & (digits < 8).all(1) & ends
    count = len(heads) if good.all() else int(good.argmin())
    names: list[bytes] = table[:count, :100].copy().view("S100")[:, 0].tolist()
    listed = b"\0".join([*names, b""])
    if listed.count(b"\0") > count:  # something stands behind the end of a name
        names = [name.partition(b"\0")[0] for name in names]
        listed = b"\0".join([*names, b""])
    if b"/\0" in listed:  # a folder, as very old tars have them
        del names[next(number for number, name in enumerate(names) if name[-1:] == b"/") :]
    return list(map(Member, names, begins, [begin + BLOCK for begin in begins], sizes, map(crc32, heads)))


def _read_header(fd: int, path: str, offset: int) -> bytes | None:
    """The verified header at an offset, or None at the end marker."""
    header = os.pread(fd, BLOCK, offset)
    if len(header) < BLOCK:
        raise _fail(path, offset, "the tar ends without its end marker", "it was cut short: fetch or pack it again")
    if not header.strip(b"\0"):
        _check_end(fd, path, offset)
        return None
    if not _checksum_holds(header):
        raise _fail(path, offset, "this is no tar header (its checksum is wrong)", "fetch or pack the shard again")
    return header


def _refuse_compressed(fd: int, path: str) -> None:
    head = os.pread(fd, 8, 0)
    for magic, kind in _COMPRESSED.items():
        if head.startswith(magic):
            raise _fail(
                path,
                0,
                f"this shard is compressed ({kind})",
                "samples are read by offset: decompress it first, or "
                "read it without an index (`stream: true` in its source)",
            )


def _refuse_unreadable(kind: bytes, name: bytes, pax: dict[bytes, bytes], path: str, offset: int) -> None:
    if kind == b"S" or (pax and any(key.startswith(b"GNU.sparse") for key in pax)):
        raise _fail(path, offset, f"{name!r} is stored sparse", "pack it again without --sparse")
    if kind in _LINKS:
        raise _fail(path, offset, f"{name!r} is a link", "pack it again with --dereference --hard-dereference")


def members(fd: int, path: str) -> Iterator[Member]:
    """Every regular file of the open tar, in order.

    Args:
        fd: The open tar.
        path: Its path, for messages.

    Yields:
        The files; folders and devices are passed over.

    Raises:
        ShardError: If the tar is compressed, cut short, damaged, or holds links or sparse files.
    """
    _refuse_compressed(fd, path)
    total = os.fstat(fd).st_size
    offset = start = 0
    long_name = b""
    always: dict[bytes, bytes] = {}  # PAX records of every file to come
    once: dict[bytes, bytes] = {}  # of the next file alone
    while True:
        while not (long_name or once or always) and (found := _usual(fd, offset, total)):
            yield from found
            start = offset = found[-1].offset + (found[-1].size + BLOCK - 1) // BLOCK * BLOCK
        if (header := _read_header(fd, path, offset)) is None:
            return
        kind, data = header[156:157], offset + BLOCK
        pax = {**always, **once} if kind not in _EXTENSIONS and (once or always) else {}
        try:
            size = int(pax[b"size"]) if b"size" in pax else _number(header[124:136])
            size = 0 if kind in _WITHOUT_DATA else size
            if size < 0 or data + size > total:
                what = f"a member of {size} bytes runs past the end of the file ({total} bytes)"
                raise _fail(path, offset, what, "it was cut short: fetch or pack it again")
            if kind == b"L":
                long_name = _extension(fd, path, data, size).rstrip(b"\0")
            elif kind in (b"x", b"X"):
                once = _pax(_extension(fd, path, data, size))
            elif kind == b"g":
                always |= _pax(_extension(fd, path, data, size))
        except ShardError:
            raise
        except ValueError as error:
            raise _fail(path, offset, f"a damaged header ({error})", "fetch or pack the shard again") from error
        offset = data + (size + BLOCK - 1) // BLOCK * BLOCK
        if kind in _EXTENSIONS:
            continue
        name = long_name or pax.get(b"path") or _name(header)
        _refuse_unreadable(kind, name, pax, path, start)
        if kind in _REGULAR and not name.endswith(b"/"):
            yield Member(name, start, data, size, crc32(header))
        start, long_name, once = offset, b"", {}


def pread(fd: int, size: int, offset: int, path: str) -> bytes:
    """Read exactly ``size`` bytes; a network file system that stumbles gets a few tries (never a silent substitute)."""
    for attempt in range(_TRIES):
        try:
            data = os.pread(fd, size, offset)
            break
        except OSError as error:
            if attempt == _TRIES - 1:
                text = f"{path}: cannot be read at byte {offset} ({error.strerror}), {_TRIES} tries; check the storage"
                raise ShardError(text, path, offset) from error
            time.sleep(0.1 * 4**attempt)
    if len(data) < size:
        text = f"{path}: ends at byte {offset + len(data)}, its index says otherwise; was it rewritten? start again"
        raise ShardError(text, path, offset)
    return data

"""Every cut and every flipped header byte of an indexed shard: what is read is what was indexed, or it is an error."""

import contextlib
import io
import os
import tarfile

import numpy as np
import pytest
import webdataset

from clipkit.data.augment import Augment
from clipkit.data.catalogue import open_catalogue
from clipkit.data.dataset import Request, ShardDataset
from clipkit.data.index import build_index, load_index
from clipkit.data.indexing import write_folder_index
from clipkit.data.plan import Plan
from clipkit.data.reader import ShardReader
from clipkit.data.source import Source
from clipkit.data.stages import Stage
from clipkit.data.tar import ShardError

from .conftest import image_bytes, tokenize

SAMPLES = 9


def write_shard(path, format_, names="{:03d}", samples=SAMPLES):
    with tarfile.open(path, "w", format=format_) as tar:
        for key in range(samples):
            members = {"jpg": bytes([key + 1]) * 3000, "json": b"{}", "txt": f"caption {key}".encode()}
            for field, data in members.items():
                info = tarfile.TarInfo(names.format(key) + "." + field)
                info.size, info.mtime, info.uname = len(data), 1_700_000_000, "someone"
                tar.addfile(info, io.BytesIO(data))
    return path


def reader_of(path):
    return ShardReader([open_catalogue(Source("s", (str(path),)), None)], [frozenset({"jpg", "txt"})], None)


def contents(reader):
    return [(reader.key(0, 0, number), reader.members(0, 0, number, 1 << 20)) for number in range(SAMPLES)]


def put(path, data, times):
    path.write_bytes(data)
    os.utime(path, ns=times)


KINDS = {
    "ustar": (tarfile.USTAR_FORMAT, "{:03d}"),
    "gnu": (tarfile.GNU_FORMAT, "folder/" * 20 + "{:03d}"),
    "pax": (tarfile.PAX_FORMAT, "снег{:03d}"),
}


@pytest.fixture(params=KINDS)
def shard(request, tmp_path):
    """An indexed shard, its bytes, its times and its samples."""
    path = write_shard(tmp_path / "s.tar", *KINDS[request.param])
    write_folder_index(tmp_path)
    status = path.stat()
    return path, path.read_bytes(), (status.st_atime_ns, status.st_mtime_ns), contents(reader_of(path))


def webdataset_reads(path):
    """Samples that webdataset gives of a shard, or None where it raises."""
    try:
        return len(list(webdataset.WebDataset(str(path), shardshuffle=False, empty_check=False)))
    except Exception:
        return None


def test_no_cut_is_silent_even_at_the_same_time_of_change(shard):
    path, whole, times, expected = shard
    index = load_index(path)
    end = int(index.offset[-1] + index.length[-1]) + 512  # with one block of the end marker all samples are there
    silent_there = 0
    for length in range(0, len(whole), 512):
        put(path, whole[:length], times)
        found = webdataset_reads(path)
        silent_there += found is not None and found < SAMPLES
        if length >= end:
            assert contents(reader_of(path)) == expected
        else:
            with pytest.raises(ShardError, match=r"s\.tar.*at byte \d+"):
                reader_of(path)
    assert silent_there > 10, "webdataset ends silently at many cuts: if it no longer does, the cuts are no longer made"


def test_no_cut_under_an_open_file_is_silent(shard):
    path, whole, _, expected = shard
    last, size = load_index(path).fields["txt"]
    ends = last + size
    for length in range(0, len(whole), 512):
        reader = reader_of(path)
        assert reader.key(0, 0, 0) == expected[0][0]  # the shard is open
        os.truncate(path, length)
        cut = set()
        for number, sample in enumerate(expected):
            try:
                assert reader.members(0, 0, number, 1 << 20) == sample[1]
            except ShardError:
                cut.add(number)
        assert cut == {number for number in range(SAMPLES) if ends[number] > length}
        reader.close()
        put(path, whole, shard[2])


def test_a_flipped_header_byte_is_an_error_even_at_the_same_size_and_time(shard):
    path, whole, times, expected = shard
    reader, index = reader_of(path), load_index(path)
    contents(reader)
    fd = os.open(path, os.O_RDWR)
    for number in range(SAMPLES):
        for field in ("jpg", "txt"):
            header = int(index.fields[field][0][number]) - 512
            for at in range(header, header + 512):
                os.pwrite(fd, bytes([whole[at] ^ (1 << at % 8)]), at)
                with pytest.raises(ShardError, match=f"sample '{expected[number][0]}' from byte"):
                    reader.members(0, 0, number, 1 << 20)
                os.pwrite(fd, whole[at : at + 1], at)
        assert reader.members(0, 0, number, 1 << 20) == expected[number][1]
    os.close(fd)
    size = int(index.fields["jpg"][0][0]) - 512 + 130
    put(
        path, whole[:size] + b"7" + whole[size + 1 :], times
    )  # a fresh start takes the sidecar and index.json as they are
    with pytest.raises(ShardError, match="not those that were indexed"):
        contents(reader_of(path))


@pytest.mark.parametrize("kind", KINDS)
def test_a_flipped_header_byte_is_noticed_when_the_shard_is_indexed_again(kind, tmp_path):
    path = write_shard(tmp_path / "s.tar", *KINDS[kind], samples=2)
    whole, before = path.read_bytes(), build_index(path)
    fd = os.open(path, os.O_RDWR)
    starts = [before.offset, *(offset - 512 for offset, _ in before.fields.values())]  # those of long names too
    for header in sorted({start for column in starts for start in column.tolist()}):
        for at in range(header, header + 512):
            os.pwrite(fd, bytes([whole[at] ^ 0x21]), at)
            with contextlib.suppress(ShardError):
                assert build_index(path).fingerprint != before.fingerprint, f"byte {at} is silent"
            os.pwrite(fd, whole[at : at + 1], at)
    os.close(fd)


@pytest.mark.parametrize("listed", [True, False])
def test_index_json_or_the_old_sidecar_speak_of_a_change(tmp_path, listed, caplog):
    path = write_shard(tmp_path / "s.tar", *KINDS["ustar"])
    expected = contents(reader_of(path))
    if listed:
        write_folder_index(tmp_path)
    with path.open("r+b") as file:
        file.seek(155)
        file.write(b"\0")  # the one byte that no checksum covers and that means nothing
    os.utime(path, ns=(1, 1))
    if listed:
        with pytest.raises(ShardError, match="not what was counted at the start"):
            contents(reader_of(path))
    else:
        assert contents(reader_of(path)) == expected
        assert "s.tar: changed since it was indexed; 9 samples then, 9 now" in caplog.text


def test_another_shard_under_an_open_file_is_an_error(tmp_path):
    path = write_shard(tmp_path / "s.tar", *KINDS["ustar"])
    reader = reader_of(path)
    contents(reader)
    write_shard(path, tarfile.USTAR_FORMAT, "1{:02d}")  # as large, in place
    with pytest.raises(
        ShardError, match=r"sample '000' from byte 0 on are not those that were indexed.*delete .*idx\.npz"
    ):
        reader.members(0, 0, 0, 1 << 20)


def test_a_batch_of_a_damaged_sample_is_an_error_and_no_substitute(tmp_path):
    path = tmp_path / "s.tar"
    with tarfile.open(path, "w") as tar:
        for key in range(8):
            for name, data in ((f"{key}.jpg", image_bytes(key)), (f"{key}.txt", f"caption {key}".encode())):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    source = Source("s", (str(path),))
    held = open_catalogue(source, None)
    plan = Plan([held.counts], [1.0], seed=0)
    options = {"seed": 0, "stages": [Stage({"image": Augment((16, 16))}, tokenize)], "cache": None}
    dataset = ShardDataset(sources=[source], catalogues=[held], order=plan, **options)
    request = Request(0, 8, plan.rows(np.arange(8)))
    assert len(dataset.__getitems__(request)["key"]) == 8
    with path.open("r+b") as file:
        file.seek(int(load_index(path).fields["txt"][0][3]) - 400)
        file.write(b"\x01")
    with pytest.raises(ShardError, match="sample '3'"):
        dataset.__getitems__(request)

"""A zoo of tars: what the index finds, and what it refuses."""

import bz2
import gzip
import io
import lzma
import os
import tarfile
import warnings

import numpy as np
import pytest

from clipkit.data.index import build_index, load_index, read_sidecar, sidecar_path, write_sidecar
from clipkit.data.indexing import write_folder_index
from clipkit.data.tar import ShardError

ZSTD = bytes.fromhex("28b52ffd20000100000400")  # an empty frame, as zstd writes it


def write_tar(path, files, **options):
    with tarfile.open(path, "w", **options) as tar:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def content(path, index, field):
    offset, length = index.fields[field]
    with open(path, "rb") as file:
        found = []
        for start, size in zip(offset, length, strict=True):
            file.seek(max(start, 0))
            found.append(None if start < 0 else file.read(size))
    return found


@pytest.mark.parametrize("format_", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_fields_keys_and_bytes(tmp_path, format_):
    files = [
        ("a/0.JPG", b"x" * 700),
        ("a/0.txt", b"one"),
        ("a/1.x.seg.PNG", b""),
        ("b/0.jpg", b"z" * 512),
        ("b/0.txt", b"3"),
    ]
    path = write_tar(tmp_path / "s.tar", files, format=format_)
    index = build_index(path)
    assert [index.name(i) for i in range(len(index))] == ["a/0", "a/1", "b/0"]
    assert set(index.fields) == {"jpg", "txt", "x.seg.png"}
    assert content(path, index, "jpg") == [b"x" * 700, None, b"z" * 512]
    assert content(path, index, "txt") == [b"one", None, b"3"]
    assert content(path, index, "x.seg.png") == [None, b"", None]


@pytest.mark.parametrize("format_", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_and_foreign_names(tmp_path, format_):
    long, foreign = "d" * 150 + "/" + "k" * 150, "猫/снег"
    files = [(f"{long}.jpg", b"1"), (f"{long}.txt", b"22"), (f"{foreign}.txt", b"333"), ("plain.txt", b"4")]
    path = write_tar(tmp_path / "s.tar", files, format=format_)
    index = build_index(path)
    assert [index.name(i) for i in range(3)] == [long, foreign, "plain"]
    assert content(path, index, "txt") == [b"22", b"333", b"4"]


def test_pax_global_and_size_records(tmp_path):
    path = tmp_path / "s.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT, pax_headers={"comment": "made by hand"}) as tar:
        info = tarfile.TarInfo("a.txt")
        info.size, info.pax_headers = 3, {"size": "3", "mtime": "1.25"}
        tar.addfile(info, io.BytesIO(b"abc"))
    assert content(path, build_index(path), "txt") == [b"abc"]


@pytest.mark.parametrize("format_", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_usual_and_unusual_headers_in_turn_are_listed_as_tarfile_lists_them(tmp_path, format_):
    rng = np.random.default_rng(0)
    names = [("long/" * 25 if number % 7 == 0 else "") + f"{number:05d}.txt" for number in range(2500)]
    path = write_tar(tmp_path / "s.tar", [(name, bytes(int(rng.integers(0, 1200)))) for name in names], format=format_)
    index = build_index(path)
    with tarfile.open(path) as tar:
        listed = [(member.name, member.offset_data, member.size) for member in tar]
    found = [f"{index.name(number)}.txt" for number in range(len(index))]
    assert list(zip(found, *(column.tolist() for column in index.fields["txt"]), strict=True)) == listed
    damaged = bytearray(path.read_bytes())
    damaged[listed[1500][1] - 512 + 130] ^= 1  # a digit of a size
    path.write_bytes(damaged)
    with pytest.raises(ShardError, match=f"at byte {listed[1500][1] - 512}"):
        build_index(path)


def test_a_size_that_fills_its_field(tmp_path):
    path = write_tar(tmp_path / "s.tar", [("a.txt", b"x" * 8), ("b.txt", b"y")], format=tarfile.USTAR_FORMAT)
    held = bytearray(path.read_bytes())
    held[124:136] = b"000000000010"  # no end: some writers use the last byte as well
    held[148:156] = b"%06o\0 " % (sum(held[:148]) + sum(held[156:512]) + 256)
    path.write_bytes(held)
    assert content(path, build_index(path), "txt") == [b"x" * 8, b"y"]


def test_what_stands_behind_the_end_of_a_name_is_no_part_of_it(tmp_path):
    path = write_tar(tmp_path / "s.tar", [("a.txt", b"x"), ("b.txt", b"y")], format=tarfile.USTAR_FORMAT)
    held = bytearray(path.read_bytes())
    held[6:10] = b"junk"
    held[148:156] = b"%06o\0 " % (sum(held[:148]) + sum(held[156:512]) + 256)
    path.write_bytes(held)
    index = build_index(path)
    assert ([index.name(0), index.name(1)], list(index.fields)) == (["a", "b"], ["txt"])


def test_each_sample_is_a_piece_of_tar(tmp_path):
    name = "n" * 180
    path = write_tar(
        tmp_path / "s.tar", [("a.txt", b"1"), (f"{name}.txt", b"2" * 600), (f"{name}.jpg", b"3"), ("z.txt", b"4")]
    )
    index = build_index(path)
    start, length = int(index.offset[1]), int(index.length[1])
    piece = path.read_bytes()[start : start + length]
    with tarfile.open(fileobj=io.BytesIO(piece + bytes(1024))) as tar:
        assert tar.getnames() == [f"{name}.txt", f"{name}.jpg"]


def test_dots_of_folders_are_no_part_of_a_field(tmp_path):
    files = [("v1.0/a.b.c/0.JPG", b"1"), ("v1.0/a.b.c/0.Txt", b"2"), ("./v.2/1.Seg.Png", b"3")]
    index = build_index(write_tar(tmp_path / "s.tar", files))
    assert [index.name(number) for number in range(2)] == ["v1.0/a.b.c/0", "./v.2/1"]
    assert sorted(index.fields) == ["jpg", "seg.png", "txt"]


def test_one_key_in_two_shards_is_two_samples(tmp_path):
    write_tar(tmp_path / "0.tar", [("a.jpg", b"1"), ("x.jpg", b"2"), ("x.txt", b"3")])
    write_tar(tmp_path / "1.tar", [("x.jpg", b"4"), ("x.txt", b"5"), ("b.txt", b"6")])
    first, second = (build_index(tmp_path / name) for name in ("0.tar", "1.tar"))
    assert [first.name(1), second.name(0)] == ["x", "x"]
    assert content(tmp_path / "0.tar", first, "txt") == [None, b"3"]
    assert content(tmp_path / "1.tar", second, "txt") == [b"5", b"6"]


def test_folders_and_files_of_no_sample_are_passed_over(tmp_path):
    path = tmp_path / "s.tar"
    with tarfile.open(path, "w") as tar:
        folder = tarfile.TarInfo("a")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for name in ("a/README", "a/._0.jpg", "a/0.jpg", "a/0.txt"):
            tar.addfile(tarfile.TarInfo(name))
    index = build_index(path)
    assert [index.name(0)] == ["a/0"]
    assert len(index) == 1


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ([("a.jpg", b""), ("b.jpg", b""), ("a.txt", b"")], "not side by side"),
        ([("a.jpg", b""), ("a.JPG", b"")], "two members"),
        ([("README", b"")], "no sample"),
        ([(f"img.{i}.jpg", b"") for i in range(70)], "first dot"),
    ],
)
def test_what_names_are_refused(tmp_path, files, says):
    with pytest.raises(ShardError, match=says):
        build_index(write_tar(tmp_path / "s.tar", files))


@pytest.mark.parametrize(
    ("kind", "compress"),
    [("gzip", gzip.compress), ("bzip2", bz2.compress), ("xz", lzma.compress), ("zstd", lambda data: ZSTD)],
)
def test_compressed_is_refused_with_the_cure(tmp_path, kind, compress):
    path = write_tar(tmp_path / "s.tar", [("a.txt", b"")])
    path.write_bytes(compress(path.read_bytes()))
    with pytest.raises(ShardError, match=rf"s\.tar.*\({kind}\) at byte 0.*decompress.*stream: true"):
        build_index(path)


def test_links_are_refused(tmp_path):
    path = tmp_path / "s.tar"
    with tarfile.open(path, "w") as tar:
        info = tarfile.TarInfo("a.jpg")
        info.type, info.linkname = tarfile.SYMTYPE, "b.jpg"
        tar.addfile(info)
    with pytest.raises(ShardError, match="dereference"):
        build_index(path)


def test_a_cut_at_any_place_is_noticed(tmp_path):
    whole = write_tar(tmp_path / "s.tar", [("a.txt", b"1" * 600), ("b.txt", b"2" * 30)]).read_bytes()
    cut = tmp_path / "cut.tar"
    end = 512 + 1024 + 512 + 512  # both members; the end marker follows
    for length in [0, 1, 511, 512, 600, 1536, 1600, 2048, 2060, end]:
        cut.write_bytes(whole[:length])
        with pytest.raises(ShardError, match=r"cut\.tar.*at byte \d+.*cut short") as caught:
            build_index(cut)
        assert caught.value.shard == str(cut)
        assert caught.value.offset is not None
        assert caught.value.offset <= length


def test_damage_and_concatenation_are_noticed(tmp_path):
    path = write_tar(tmp_path / "s.tar", [("a.txt", b"1"), ("b.txt", b"2")])
    whole = path.read_bytes()
    path.write_bytes(whole[:1030] + b"\xff" + whole[1031:])
    with pytest.raises(ShardError, match=r"checksum.*byte 1024"):
        build_index(path)
    path.write_bytes(whole + whole)
    with pytest.raises(ShardError, match="concatenated"):
        build_index(path)


def test_sidecar_round_trip_and_freshness(tmp_path):
    path = write_tar(tmp_path / "s.tar", [("a.txt", b"1"), ("a.jpg", b"2"), ("b.txt", b"3")])
    index = load_index(path)
    kept = read_sidecar(sidecar_path(path))
    assert kept.fingerprint == index.fingerprint == build_index(path).fingerprint
    with np.load(sidecar_path(path)) as archive:
        wanted = {"v", "key", "offset", "length", "txt_offset", "txt_length", "txt_check", "jpg_offset", "jpg_length"}
        assert wanted <= set(archive.files)

    os.utime(path, ns=(1, 1))  # a copied shard: another time, the same bytes
    assert load_index(path).fingerprint == index.fingerprint
    assert read_sidecar(sidecar_path(path)).mtime_ns == 1
    write_tar(path, [("a.txt", b"1"), ("a.png", b"2"), ("b.txt", b"3")])  # as many bytes, other fields
    assert "png" in load_index(path).fields
    assert load_index(path).fingerprint != index.fingerprint


def test_a_damaged_or_hostile_sidecar_is_made_again(tmp_path):
    path = write_tar(tmp_path / "s.tar", [("a.txt", b"1")])
    index = load_index(path)
    whole = sidecar_path(path).read_bytes()
    for damaged in (b"", b"no zip", whole[: len(whole) // 2]):
        sidecar_path(path).write_bytes(damaged)
        assert load_index(path).fingerprint == index.fingerprint
    for start, span in [(1 << 62, 1 << 62), (0, 1 << 40), (-5, 1), (2, -1)]:
        index.fields["txt"][0][0], index.fields["txt"][1][0] = start, span
        write_sidecar(index, sidecar_path(path))
        with pytest.raises(ValueError, match="outside"):
            read_sidecar(sidecar_path(path))
        assert load_index(path).fields["txt"][1][0] == 1


def test_an_unwritable_folder_keeps_its_index_in_the_cache(tmp_path, monkeypatch):
    path = write_tar(tmp_path / "s.tar", [("a.txt", b"1")])
    sidecar_path(path).mkdir()  # nothing can be renamed over a folder
    cache = tmp_path / "cache"
    index = load_index(path, cache)
    assert len(list((cache / "index").iterdir())) == 1
    monkeypatch.setattr("clipkit.data.index.build_index", lambda path: pytest.fail("built again"))
    with warnings.catch_warnings():
        assert load_index(path, cache).fingerprint == index.fingerprint
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]


def test_folder_index(tmp_path):
    import json

    for name in ("b.tar", "a.tar"):
        write_tar(tmp_path / name, [("a.txt", b"1"), ("b.txt", name.encode())])
    listed = json.loads(write_folder_index(tmp_path).read_text())
    assert [entry["name"] for entry in listed["shards"]] == ["a.tar", "b.tar"]
    assert [entry["count"] for entry in listed["shards"]] == [2, 2]
    assert listed["shards"][0]["size"] == (tmp_path / "a.tar").stat().st_size
    assert listed["shards"][0]["fingerprint"] == build_index(tmp_path / "a.tar").fingerprint
    with pytest.raises(ValueError, match=r"holds no \*\.tar"):
        write_folder_index(tmp_path / "nothing")

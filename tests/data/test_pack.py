import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import zlib
from pathlib import Path

import pytest
from PIL import Image

from clipkit.cli.main import run
from clipkit.data.index import load_index, sidecar_path
from clipkit.data.pack import PackOptions
from clipkit.data.pack import pack as pack_with


def pack(source, out, *, workers=1, ray=None, **options):
    return pack_with(source, out, PackOptions(**options), workers=workers, ray=ray)


def picture(kind: str = "PNG", size=(8, 6), shade: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (shade, 90, 200)).save(buffer, kind)
    return buffer.getvalue()


def write(path: Path, content: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def samples(out: Path) -> list[dict[str, bytes | str]]:
    """The samples of all shards in order, read by tarfile: field to bytes, and the key."""
    found: dict[str, dict[str, bytes | str]] = {}
    for shard in sorted(out.glob("*.tar")):
        with tarfile.open(shard) as tar:
            for member in tar:
                key, _, field = member.name.partition(".")
                found.setdefault(key, {"key": key})[field] = tar.extractfile(member).read()
    return list(found.values())


@pytest.fixture
def captioned(tmp_path):
    source = tmp_path / "in"
    for number, kind in enumerate(["PNG", "JPEG", "WEBP", "GIF", "BMP"]):
        write(source / "sub" / f"im {number}.{kind.lower()}", picture(kind, shade=number))
        write(source / "sub" / f"im {number}.txt", f" caption {number} é\n")
    return source


def test_captions_beside_images(captioned, tmp_path):
    write(captioned / "z.jpg", picture("PNG"))  # named wrongly: the header says what it is
    write(captioned / "z.json", '{"captions": ["first", "second"], "width": 8}')
    write(captioned / "y.png", picture())
    write(captioned / "y.json", '{"caption": "from json"}')
    write(captioned / "y.txt", "from txt")
    report = pack(captioned, tmp_path / "out", shard_size=3)
    found = samples(tmp_path / "out")
    assert [s["key"] for s in found] == [
        *(f"0000000{n}-im-{n}" for n in range(5)),
        "00000005-y",
        "00000006-z",
    ]
    assert [next(f for f in s if f not in ("key", "txt", "json")) for s in found] == [
        *("png", "jpg", "webp", "gif", "bmp"),
        *("png", "png"),
    ]
    assert found[0] == {"key": "00000000-im-0", "png": picture(), "txt": "caption 0 é".encode()}
    assert found[5]["txt"] == b"from txt"
    assert found[6]["txt"] == b"first"
    assert found[6]["json"] == b'{"captions": ["first", "second"], "width": 8}'
    assert (report.samples, report.shards, report.skipped) == (7, 3, {})
    assert report.fields == {"png": 3, "jpg": 1, "webp": 1, "gif": 1, "bmp": 1, "txt": 7, "json": 2}
    assert report.pattern == str(tmp_path / "out" / "{00000..00002}.tar")


def test_indexes_are_written_and_fit(captioned, tmp_path):
    pack(captioned, tmp_path / "out", shard_size=2)
    listed = json.loads((tmp_path / "out" / "index.json").read_text())["shards"]
    assert [(entry["name"], entry["count"]) for entry in listed] == [
        ("00000.tar", 2),
        ("00001.tar", 2),
        ("00002.tar", 1),
    ]
    for entry in listed:
        shard = tmp_path / "out" / entry["name"]
        before = sidecar_path(shard).stat().st_mtime_ns
        index = load_index(shard)
        assert sidecar_path(shard).stat().st_mtime_ns == before  # fresh: not made again
        assert (len(index), index.size, index.fingerprint) == (entry["count"], entry["size"], entry["fingerprint"])


def test_the_same_input_gives_the_same_bytes(captioned, tmp_path, monkeypatch):
    pack(captioned, tmp_path / "one", shard_size=2)
    twin = tmp_path / "elsewhere"
    for path in sorted(captioned.rglob("*.*"), reverse=True):  # other order of creation, times and place
        os.utime(write(twin / path.relative_to(captioned), path.read_bytes()), (5, 5))
    monkeypatch.setenv("USER", "another")
    pack(twin, tmp_path / "two", shard_size=2)
    for path in sorted((tmp_path / "one").iterdir()):
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes(), path.name
    times = {path.name: path.stat().st_mtime for path in (tmp_path / "one").glob("*.tar")}
    assert len(set(times.values())) == len(times) == 3  # another content, another time: its sidecar is not taken for it
    assert all(0 < value < time.time() for value in times.values())
    with tarfile.open(tmp_path / "one" / "00000.tar") as tar:
        assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in tar} == {(0, 0, 0, "", "", 0o644)}


def test_class_folders(tmp_path):
    source = tmp_path / "in"
    write(source / "red_bicycle" / "b.png", picture(shade=2))
    write(source / "red_bicycle" / "deep" / "a.png", picture(shade=1))
    write(source / "cat" / "a.png", picture(shade=3))
    write(source / "stray.png", picture())
    (source / "empty").mkdir()
    report = pack(source, tmp_path / "out")
    assert (tmp_path / "out" / "classnames.txt").read_text() == "cat\nempty\nred bicycle\n"
    assert [(s["cls"], s["txt"]) for s in samples(tmp_path / "out")] == [
        (b"0", b"cat"),
        (b"2", b"red bicycle"),
        (b"2", b"red bicycle"),
    ]
    assert report.skipped == {"outside_class_folders": 1, "empty_class": 1}
    assert report.examples["empty_class"] == (f"{source}/empty",)


def test_names_of_classes_may_be_given(tmp_path):
    source = tmp_path / "in"
    write(source / "n01" / "a.png", picture())
    write(source / "n02" / "a.png", picture())
    write(source / "classnames.txt", "tench\ngoldfish\n")
    report = pack(source, tmp_path / "out")
    assert [s["txt"] for s in samples(tmp_path / "out")] == [b"tench", b"goldfish"]
    assert report.skipped == {}
    write(source / "classnames.txt", "tench\n")
    with pytest.raises(ValueError, match="1 names for 2 class folders"):
        pack(source, tmp_path / "other")


@pytest.mark.parametrize("separator", [",", "\t", ";", "|"])
@pytest.mark.parametrize("columns", [("filepath", "title"), ("Image", "caption"), ("path", "text")])
def test_tables(tmp_path, separator, columns):
    write(tmp_path / "data" / "images" / "a.png", picture())
    outside = write(tmp_path / "outside.jpg", picture("JPEG"))
    lines = [separator.join(["n", *columns]), separator.join(["0", "images/a.png", f'"one{separator} and ""two"""'])]
    lines += [separator.join(["1", str(outside), "three"]), "", separator.join(["2", "../outside.jpg", "four\r"])]
    table = write(tmp_path / "data" / "table.csv", "\ufeff" + "\n".join(lines))
    report = pack(table, tmp_path / "out")
    assert [s["txt"] for s in samples(tmp_path / "out")] == [f'one{separator} and "two"'.encode(), b"three", b"four"]
    assert report.skipped == {}


def test_a_cell_of_several_lines_is_one_caption(tmp_path):
    write(tmp_path / "a.png", picture())
    table = write(tmp_path / "t.csv", 'filepath,caption\na.png,"a red\nbicycle"\n')
    pack(table, tmp_path / "out")
    (sample,) = samples(tmp_path / "out")
    assert sample["txt"] == b"a red bicycle"


def test_columns_by_name(tmp_path):
    write(tmp_path / "a.png", picture())
    table = write(tmp_path / "t.tsv", "link\tfile\tcaption\talt\nx\ta.png\tno\tyes\n")
    with pytest.raises(
        ValueError, match=r"t\.tsv:1: the columns are link, file, caption, alt; needed: one of filepath"
    ):
        pack(table, tmp_path / "out")
    pack(table, tmp_path / "out", image_column="file", caption_column="alt")
    assert samples(tmp_path / "out")[0]["txt"] == b"yes"


def test_json_lines(tmp_path):
    write(tmp_path / "a.png", picture())
    rows = [
        {"image": "a.png", "caption": "single"},
        {"path": "a.png", "captions": ["first é", " ", "second"]},
        {"filepath": "a.png", "text": ["only"]},
        {"image": "a.png", "captions": []},
        {"caption": "no image"},
        ["no", "object"],
    ]
    lines = write(tmp_path / "t.jsonl", "\n".join(map(json.dumps, rows)) + "\n{broken\n\n")
    report = pack(lines, tmp_path / "out")
    found = samples(tmp_path / "out")
    assert [s["txt"].decode() for s in found] == ["single", "first é", "only"]
    assert [json.loads(s["json"]) if "json" in s else None for s in found] == [
        None,
        {"captions": ["first é", "second"]},
        {"captions": ["only"]},
    ]
    assert report.skipped == {"no_caption": 1, "no_image_path": 1, "bad_json": 2}
    assert report.examples["bad_json"] == (f"{lines}:6", f"{lines}:7")


def test_what_cannot_be_used_is_counted_by_cause(captioned, tmp_path):
    bomb = bytearray(picture())
    bomb[16:24] = (60_000).to_bytes(4, "big") * 2
    bomb[29:33] = zlib.crc32(bomb[12:29]).to_bytes(4, "big")
    for name, content in {
        "format": b"II*\0 a tiff",
        "text": "<svg/>",
        "empty": b"",
        "damaged": picture()[:20],
        "too_large": bytes(bomb),
        "aspect": picture(size=(2000, 2)),
    }.items():
        write(captioned / "bad" / f"{name}.png", content)
        write(captioned / "bad" / f"{name}.txt", "a caption")
    write(captioned / "bad" / "none.png", picture())
    write(captioned / "bad" / "blank.png", picture())
    write(captioned / "bad" / "blank.txt", " \n")
    write(captioned / "bad" / "latin.png", picture())
    write(captioned / "bad" / "latin.txt", "é".encode("latin-1"))
    write(captioned / "bad" / "list.png", picture())
    write(captioned / "bad" / "list.json", "[1]")
    write(captioned / "bad" / "lonely.txt", "no image")
    write(captioned / "bad" / "film.mp4", b"x")
    write(captioned / ".hidden" / "a.png", picture())
    (captioned / "loop").symlink_to(captioned)
    report = pack(captioned, tmp_path / "out")
    assert report.samples == 5
    assert report.skipped == {
        "format": 2,
        "empty": 1,
        "damaged": 1,
        "too_large": 1,
        "aspect": 1,
        "no_caption": 2,
        "bad_encoding": 1,
        "bad_json": 1,
        "caption_without_image": 1,
        "no_image_file": 1,
        "linked_folder": 1,
    }
    assert f"skipped, empty: 1 ({captioned}/bad/empty.png)" in str(report)


def test_rows_that_cannot_be_used(tmp_path):
    write(tmp_path / "a.png", picture())
    table = write(
        tmp_path / "t.csv",
        "\ufeffimage,caption\na.png,ok\nb.png,gone\n,x\na.png,\na.png,x,y\na.png\nhttp://a/b.png,x\na.png,nan\na.png,N/A\n",
    )
    report = pack(table, tmp_path / "out")
    assert report.samples == 1
    assert report.skipped == {
        "missing": 1,
        "no_image_path": 1,
        "no_caption": 1,
        "nan_caption": 2,
        "columns": 2,
        "url": 1,
    }
    assert report.examples["missing"] == (f"{table}:3 (b.png)",)
    assert f"skipped, url: 1 ({table}:8 (http://a/b.png)); nothing is downloaded here: fetch" in str(report)


@pytest.mark.parametrize("name", ["../../evil", "a.b.c", "-", "ж", "x" * 200, "a b/c"])
def test_keys_are_safe(tmp_path, name):
    write(tmp_path / "d" / f"{name}.png", picture())
    rows = [json.dumps({"image": f"d/{name}.png", "text": "x"})] * 2
    pack(write(tmp_path / "t.jsonl", "\n".join(rows)), tmp_path / "out")
    with tarfile.open(tmp_path / "out" / "00000.tar") as tar:
        names = tar.getnames()
    assert len(set(names)) == 4
    for packed in names:
        assert packed.count(".") == 1
        assert len(packed) < 60
        assert packed.replace("-", "").replace("_", "").replace(".", "").isalnum()
        assert packed.isascii()
    assert len(load_index(tmp_path / "out" / "00000.tar")) == 2


@pytest.mark.parametrize(
    ("prepare", "said"),
    [
        (lambda s: s.mkdir(), "nothing to pack; needed: images with"),
        (lambda s: write(s / "a.png", picture()), "images without captions; put NAME.txt"),
        (lambda s: write(s.with_suffix(".csv"), ""), "no such file or folder"),
        (lambda s: write(s / "a.png", b"") and write(s / "a.txt", "x"), "skipped, empty: 1"),
        (lambda s: write(s, "x"), "neither a folder nor a .csv, .tsv, .jsonl or .parquet"),
    ],
)
def test_nothing_usable(tmp_path, prepare, said):
    source = tmp_path / "in"
    prepare(source)
    with pytest.raises(ValueError, match=said):
        pack(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".out*"))


def test_a_table_that_breaks_off_leaves_nothing(tmp_path):
    write(tmp_path / "a.png", picture())
    table = write(tmp_path / "t.csv", 'image,caption\na.png,ok\na.png,"open\n')
    with pytest.raises(ValueError, match="cannot be read as a table"):
        pack(table, tmp_path / "out")
    with pytest.raises(ValueError, match="cannot be read as a table"):
        pack(write(tmp_path / "t.csv", b"image,caption\na.png,\xff\n"), tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "t.csv"]


def test_nothing_is_overwritten(captioned, tmp_path):
    (tmp_path / "empty").mkdir()
    assert pack(captioned, tmp_path / "empty").samples == 5
    before = {path.name: path.read_bytes() for path in (tmp_path / "empty").iterdir()}
    with pytest.raises(ValueError, match="is no empty folder; choose another, nothing is overwritten"):
        pack(captioned, tmp_path / "empty")
    assert {path.name: path.read_bytes() for path in (tmp_path / "empty").iterdir()} == before
    write(tmp_path / "file", "x")
    with pytest.raises(ValueError, match="is no empty folder"):
        pack(captioned, tmp_path / "file")
    with pytest.raises(ValueError, match="shard_size=0"):
        pack(captioned, tmp_path / "new", shard_size=0)


def test_a_kill_leaves_no_half_folder(captioned, tmp_path):
    code = (
        "import os, signal, clipkit.data.pack as p\n"
        "p.write_folder_index = lambda folder: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"p.pack({str(captioned)!r}, {str(tmp_path / 'out')!r})"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False)
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    assert pack(captioned, tmp_path / "out").samples == 5


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """120 rows; every image file lies there twice, in two folders, and the second has another caption."""
    folder = tmp_path_factory.mktemp("table")
    lines = ["filepath,caption,width,source"]
    for number in range(60):
        content = picture("PNG", size=(40 + number, 30), shade=number)
        for copy in "ab":
            write(folder / copy / f"{number}.png", content)
            lines.append(f"{copy}/{number}.png,caption {copy} {number},{40 + number},web")
    return write(folder / "pairs.csv", "\n".join(lines))


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_split_never_parts_equal_images(table, tmp_path):
    report = pack(table, tmp_path / "out", split=("val", 0.3), shard_size=30)
    images = {name: {s["png"] for s in samples(tmp_path / "out" / name)} for name in ("train", "val")}
    assert not images["train"] & images["val"]
    assert 10 <= len(images["val"]) <= 26
    assert report.samples == 120 == sum(count for count, _ in report.splits.values())
    assert report.splits["val"] == (2 * len(images["val"]), len(list((tmp_path / "out" / "val").glob("*.tar"))))
    assert f"val: {report.splits['val'][0]} samples in" in str(report)
    from clipkit.evaluation.datasets import open_retrieval

    assert len(open_retrieval(tmp_path / "out" / "val").images) == report.splits["val"][0]
    with pytest.raises(ValueError, match=r"split val=1e-06 of 120 samples leaves none for val"):
        pack(table, tmp_path / "none", split=("val", 1e-6))
    with pytest.raises(ValueError, match="needed are a name other than train"):
        PackOptions(split=("train", 0.1))


def test_workers_change_no_byte(table, tmp_path):
    for workers in (1, 2):
        pack(table, tmp_path / str(workers), split=("val", 0.3), shard_size=30, resize=20, workers=workers)
    assert contents(tmp_path / "1") == contents(tmp_path / "2")


KILLED = """
import os, signal
from pathlib import Path
from clipkit.data.pack import PackOptions, pack, ShardWriter
write, count = ShardWriter.write, [0]
def counted(self, *args):
    count[0] += 1
    if count[0] == {after}:
        os.kill(os.getpid(), signal.SIGKILL)
    return write(self, *args)
ShardWriter.write = counted
pack(Path({table!r}), Path({out!r}), PackOptions(shard_size=25, split=("val", 0.3)))
"""


@pytest.fixture(scope="module")
def killed(table, tmp_path_factory):
    """What a pack leaves that was killed at its hundredth sample."""
    out = tmp_path_factory.mktemp("killed") / "out"
    code = KILLED.format(table=str(table), out=str(out), after=100)
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGKILL
    return out.with_name(".out.part")


@pytest.mark.parametrize("change", ["none", "finished", "open", "source"])
def test_a_killed_pack_goes_on_with_the_same_bytes(table, killed, tmp_path, change):
    options = {"shard_size": 25, "split": ("val", 0.3)}
    pack(table, tmp_path / "whole", **options)
    out, part = tmp_path / "out", tmp_path / ".out.part"
    shutil.copytree(killed, part)
    assert json.loads((part / ".progress.json").read_text())["done"] >= 64
    spoiled = {"finished": "00000.tar", "open": "00002.tar"}.get(change)
    if spoiled:
        with (part / "train" / spoiled).open("r+b") as file:
            file.seek(600)
            file.write(b"!")
    if change == "source":
        os.utime(table.parent / "a" / "0.png")
    report = pack(table, out, **options)
    said = "went on after 96 entries" if change == "none" else "is made anew"
    assert said in report.notes[0]
    assert contents(out) == contents(tmp_path / "whole")
    assert not part.exists()
    assert report.fields == {"png": 120, "txt": 120}


def test_resizing_shrinks_only(table, tmp_path):
    pack(table, tmp_path / "out", resize=30, shard_size=500)
    sizes = {Image.open(io.BytesIO(s["png"])).size for s in samples(tmp_path / "out")}
    assert sizes == {(40 + n, 30) for n in range(60)}
    pack(table, tmp_path / "small", resize=15)
    sizes = {Image.open(io.BytesIO(s["png"])).size for s in samples(tmp_path / "small")}
    assert {height for _, height in sizes} == {15}
    assert {width for width, _ in sizes} == {round((40 + n) / 2) for n in range(60)}


def test_fields_are_an_allow_list(table, captioned, tmp_path):
    write(captioned / "z.jpg", picture("PNG"))
    write(captioned / "z.json", '{"captions": ["first"], "width": 8, "gps": "51.5,0.1"}')
    pack(captioned, tmp_path / "out", fields=("width",))
    assert json.loads(samples(tmp_path / "out")[-1]["json"]) == {"captions": ["first"], "width": 8}
    pack(table, tmp_path / "rows", fields=("width", "source"))
    assert json.loads(samples(tmp_path / "rows")[0]["json"]) == {"width": 40, "source": "web"}
    with pytest.raises(ValueError, match=r"pairs\.csv:1: no column height; the columns are filepath"):
        pack(table, tmp_path / "no", fields=("height",))


def test_webdataset_reads_it(captioned, tmp_path):
    import webdataset

    pack(captioned, tmp_path / "out", shard_size=2)
    shards = [str(path) for path in sorted((tmp_path / "out").glob("*.tar"))]
    read = list(webdataset.WebDataset(shards, shardshuffle=False, empty_check=False))
    assert [sample["txt"].decode() for sample in read if "txt" in sample] == [f"caption {n} é" for n in range(5)]


def test_on_the_command_line(captioned, tmp_path, capsys):
    out = str(tmp_path / "out")
    assert run(["data", "pack", str(captioned), "--out", out, "--split", "val"]) == 2
    assert "--split val: write NAME=SHARE" in capsys.readouterr().err
    assert run(["data", "pack", str(captioned), "--out", out, "--shard-size", "2"]) == 0
    shown = capsys.readouterr().out
    assert (
        shown
        == f"5 samples in 3 shards: {out}/{{00000..00002}}.tar\nfields: bmp 1, gif 1, jpg 1, png 1, txt 5, webp 1\n"
    )
    assert run(["data", "pack", str(captioned), "--out", out]) == 2
    assert "nothing is overwritten" in capsys.readouterr().err
    assert run(["data", "pack", str(captioned), "--out", out + "2", "--shard-size", "many"]) == 2
    assert "--shard-size many: expected a count" in capsys.readouterr().err

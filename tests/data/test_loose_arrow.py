import json
import os
import shutil
import subprocess
import sys
from datetime import date

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
import pytest

from clipkit.data.pack import PackOptions, pack
from tests.data.test_pack import contents, picture, samples, write

IMAGES = [picture("JPEG" if n % 2 else "PNG", size=(40 + n, 30), shade=n) for n in range(40)]
STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def columns(count=40, **more):
    """A table as `datasets` writes it: images of bytes and path, captions, and some columns besides."""
    rows = range(count)
    given = {
        "image": pa.array([{"bytes": IMAGES[n], "path": f"{n}.png"} for n in rows], STRUCT),
        "caption": pa.array([f"caption {n} é" for n in rows]),
        "width": pa.array([40 + n for n in rows]),
    }
    return pa.table(given | more)


def as_parquet(folder, table):
    pq.write_table(table, folder / "t.parquet", row_group_size=12)
    return folder / "t.parquet"


def as_parquet_folder(folder, table):
    (folder / "hub").mkdir()
    pq.write_table(table.slice(0, 25), folder / "hub" / "train-00000-of-00002.parquet")
    pq.write_table(table.slice(25), folder / "hub" / "train-00001-of-00002.parquet")
    return folder / "hub"


def as_saved(folder, table):
    import datasets

    datasets.disable_progress_bars()
    try:
        datasets.Dataset(table).cast_column("image", datasets.Image()).save_to_disk(folder / "saved", num_shards=2)
    finally:
        datasets.enable_progress_bars()
    return folder / "saved"


def as_arrow_file(folder, table):
    with pa.ipc.new_file(folder / "t.arrow", table.schema) as writer:
        writer.write_table(table, max_chunksize=7)
    return folder / "t.arrow"


ALL = PackOptions(shard_size=15, split=("val", 0.3), resize=20, strip_exif=True, fields=("width",))


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """What the table gives as one parquet file, packed by two workers."""
    folder = tmp_path_factory.mktemp("packed")
    pack(as_parquet(folder, columns()), folder / "out", ALL, workers=2)
    return contents(folder / "out")


@pytest.mark.parametrize("write_as", [as_parquet, as_parquet_folder, as_saved, as_arrow_file])
def test_whatever_holds_the_columns_the_shards_are_the_same_bytes(tmp_path, packed, write_as):
    report = pack(write_as(tmp_path, columns()), tmp_path / "out", ALL)
    assert (report.samples, report.skipped) == (40, {})
    found = [sample for split in ("train", "val") for sample in samples(tmp_path / "out" / split)]
    assert sorted(s["txt"].decode() for s in found) == sorted(f"caption {n} é" for n in range(40))
    assert {json.loads(s["json"])["width"] for s in found} == set(range(40, 80))
    assert contents(tmp_path / "out") == packed


def test_bytes_paths_and_several_captions(tmp_path):
    write(tmp_path / "a.png", IMAGES[0])
    table = pa.table(
        {
            "filepath": ["a.png", "gone.png", "https://x/y.png", "", None],
            "captions": [["one", " ", "two"], ["x"], ["x"], ["x"], ["x"]],
        }
    )
    report = pack(as_parquet(tmp_path, table), tmp_path / "paths")
    assert report.skipped == {"missing": 1, "url": 1, "no_image_path": 2}
    assert json.loads(samples(tmp_path / "paths")[0]["json"]) == {"captions": ["one", "two"]}
    plain = {
        "jpg": [IMAGES[0], b"", b"no image", None, IMAGES[1], IMAGES[2]],
        "alt": ["one", "x", "x", "x", None, "nan"],
        "when": [date(2020, 1, 2)] * 6,
        "score": [float("nan")] * 6,
    }
    options = PackOptions(image_column="jpg", caption_column="alt", fields=("when", "score"))
    report = pack(as_parquet(tmp_path, pa.table(plain)), tmp_path / "bytes", options)
    assert report.skipped == {"no_image_path": 2, "format": 1, "no_caption": 1, "nan_caption": 1}
    (sample,) = samples(tmp_path / "bytes")
    assert sample["png"] == IMAGES[0]
    assert json.loads(sample["json"]) == {"when": "2020-01-02", "score": None}


def test_a_pack_of_columns_that_was_stopped_goes_on(tmp_path, monkeypatch):
    from clipkit.data import pack as module

    source, options = as_parquet(tmp_path, columns()), PackOptions(shard_size=8)
    write_sample, count = module.ShardWriter.write, [0]

    def stopped(self, stem, members):
        count[0] += 1
        if count[0] == 36:
            raise KeyboardInterrupt
        return write_sample(self, stem, members)

    monkeypatch.setattr(module.ShardWriter, "write", stopped)
    with pytest.raises(KeyboardInterrupt):
        pack(source, tmp_path / "out", options)
    monkeypatch.undo()
    assert pack(source, tmp_path / "out", options).notes == (
        "went on after 32 entries of an earlier pack that did not end",
    )
    pack(source, tmp_path / "whole", options)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


@pytest.mark.parametrize(("name", "key"), [("metadata.csv", "text"), ("metadata.jsonl", "caption")])
def test_an_image_folder_with_a_metadata_file(tmp_path, name, key):
    write(tmp_path / "in" / "sub" / "a.png", IMAGES[0])
    rows = (
        f"file_name,{key}\nsub/a.png,one\n" if name.endswith("csv") else f'{{"file_name": "sub/a.png", "{key}": "one"}}'
    )
    write(tmp_path / "in" / name, rows)
    pack(tmp_path / "in", tmp_path / "out")
    assert [(s["txt"], s["png"]) for s in samples(tmp_path / "out")] == [(b"one", IMAGES[0])]


def spoiled(folder):
    path = as_parquet(folder, columns())
    path.write_bytes(path.read_bytes()[:-40] + b"x" * 40)
    return path


def several_splits(folder):
    for name in ("train", "test"):
        write(folder / "dd" / name / "state.json", "{}")
    write(folder / "dd" / "dataset_dict.json", '{"splits": ["train", "test"]}')
    return folder / "dd"


def elsewhere(folder):
    write(folder / "secret.arrow", b"x")
    write(folder / "saved" / "state.json", '{"_data_files": [{"filename": "../secret.arrow"}]}')
    return folder / "saved"


@pytest.mark.parametrize(
    ("make", "options", "said"),
    [
        (spoiled, {}, r"t\.parquet: cannot be read"),
        (several_splits, {}, r"holds the splits test, train; name one, as in .*dd/train"),
        (elsewhere, {}, r"1 of 1 files are missing: secret\.arrow"),
        (lambda f: write(f / "saved" / "state.json", "[]").parent, {}, "does not name the data's files"),
        (lambda f: as_parquet(f, pa.table({"image": ["a"], "label": [1]})), {}, "the columns are image, label; needed"),
        (lambda f: as_parquet(f, columns(caption=pa.array(range(40)))), {}, "caption is of type int64, which holds no"),
        (lambda f: as_parquet(f, columns(image=pa.array(range(40)))), {}, "image is of type int64, which holds no"),
        (lambda f: as_parquet(f, columns()), {"fields": ("height",)}, "no column height; the columns are image"),
        (lambda f: as_parquet(f, columns()), {"fields": ("image",)}, "the column image holds bytes, which JSON cannot"),
    ],
)
def test_what_cannot_be_used_is_named(tmp_path, make, options, said):
    with pytest.raises(ValueError, match=said):
        pack(make(tmp_path), tmp_path / "out", PackOptions(**options))
    assert not (tmp_path / "out").exists()


def test_without_pyarrow_the_install_line_is_named(tmp_path, monkeypatch):
    source = as_parquet(tmp_path, columns(1))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ValueError, match=r"pip install 'clipkit-train\[parquet\]'"):
        pack(source, tmp_path / "out")


def test_no_code_of_a_file_runs(tmp_path):
    """The pickle that pyarrow once ran when it met its own extension type in a schema."""
    ran = tmp_path / "ran"
    evil = f"cbuiltins\nexec\n(V__import__('pathlib').Path({str(ran)!r}).touch()\ntR.".encode()
    metadata = {b"ARROW:extension:name": b"arrow.py_extension_type", b"ARROW:extension:metadata": evil}
    table = columns(3)
    schema = table.schema.set(2, pa.field("width", pa.int64(), metadata=metadata))
    source = as_parquet(tmp_path, pa.table(table.columns, schema=schema))
    assert pack(source, tmp_path / "out", PackOptions(fields=("width",))).samples == 3
    assert not ran.exists()


def test_memory_does_not_grow_with_a_row_group(tmp_path):
    """One row group of 96 MiB in small pages, read in a fresh process; read whole it would add some 140 MiB."""
    rng = np.random.default_rng(0)
    blobs = [rng.bytes(1 << 19) for _ in range(192)]
    table = pa.table({"image": pa.array(blobs, pa.binary()), "caption": ["x"] * len(blobs)})
    pq.write_table(table, tmp_path / "t.parquet", compression="none", use_dictionary=False, write_batch_size=4)
    assert pq.ParquetFile(tmp_path / "t.parquet").num_row_groups == 1
    code = (
        "import sys\nfrom pathlib import Path\nfrom clipkit.data.loose import open_loose\nimport pyarrow.parquet\n"
        "peak = lambda: int(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0])\n"
        "before = peak()\nassert sum(1 for _ in open_loose(Path(sys.argv[1])).entries) == 192\nprint(peak() - before)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "t.parquet")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    shutil.rmtree(tmp_path)
    assert int(done.stdout) < 100 * 1024

"""From loose data to a trained model in one command."""

import csv
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import clipkit
from clipkit.cli.main import run as command_line
from clipkit.config import load_config
from clipkit.data.pack import PackOptions
from clipkit.data.packed import packed
from clipkit.packing import pack_loose
from tests.conftest import TINY_MODEL

SMALL = ("data.batch_size=16", "data.workers=0", "trainer.length=3 epochs", "optim.lr=1e-3", "trainer.accelerator=cpu")


def make_pairs(folder, count=90, name="pairs.csv"):
    """Squares of a colour each, and a CSV with a caption for each; the last three rows cannot be used."""
    (folder / "images").mkdir(exist_ok=True)
    rows = [("file", "alt", "note")]
    for i in range(count):
        pixels = np.full((16, 16, 3), np.random.default_rng(i).integers(0, 256, 3), np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{i}.png")
        rows.append((f"images/{i}.png", f"square number {i}", "x"))
    rows += [("images/0.png", "nan", ""), ("https://a/b.png", "c", ""), ("gone.png", "c", "")]
    with (folder / name).open("w", newline="") as file:
        csv.writer(file, delimiter=";").writerows(rows)
    return folder / name


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CLIPKIT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "tiny.json").write_text(json.dumps(TINY_MODEL))
    make_pairs(tmp_path)
    return tmp_path


def test_from_a_csv_in_one_command(place, capsys):
    command = ["fit", "finetune", "data.train=pairs.csv", "model=tiny.json", *SMALL]
    command += ["--image-column", "file", "--caption-column", "alt"]
    assert command_line(command) == 0
    said = capsys.readouterr().err
    for words in (
        "2% of 90 images would hold out",
        "holding out 11",
        "skipped, nan_caption: 1",
        "skipped, missing: 1",
        "skipped, url: 1",
        "img2dataset",
        "evaluated at step 0 on 1 rank(s)",
        "best checkpoint: runs/finetune/checkpoints/",
        "next: clipkit evaluate runs/finetune/checkpoints/",
        "next: clipkit export runs/finetune/checkpoints/",
    ):
        assert words in said, words
    lines = [json.loads(line) for line in Path("runs/finetune/metrics.jsonl").read_text().splitlines()]
    evaluated = [line for line in lines if "val/pairs/samples" in line]
    assert [line["step"] for line in evaluated] == [0, 5, 10, 15]
    assert {line["val/pairs/samples"] for line in evaluated} == {11}
    figures = [f"{line['val/pairs/image_retrieval_recall@1']:.1%}".replace("%", " %") for line in evaluated]
    assert f"pairs: image R@1 {figures[0]} -> {figures[-1]}, text R@1 " in said
    best = max(evaluated[1:], key=lambda line: (line["val/pairs/image_retrieval_recall@5"], line["step"]))
    assert f"best checkpoint: runs/finetune/checkpoints/{best['step']} (val/pairs/image_retrieval_recall@5" in said
    assert Path("runs/finetune/checkpoints", str(best["step"]), "manifest.json").is_file()

    capsys.readouterr()
    assert command_line(command) == 0
    said = capsys.readouterr().err
    assert "packed before, unchanged since" in said
    assert "skipped, url: 1" in said
    assert "runs/finetune is finished" in said

    Path("pairs.csv").write_text(Path("pairs.csv").read_text().replace("square number 7\n", "a square\n"))
    with Path("pairs.csv").open("a") as file:
        file.write("images/3.png;one more;\n")
    assert command_line(command) == 2
    said = capsys.readouterr().err
    assert "changed since it was packed" in said
    assert "data.train.pairs.shards" in said


def test_what_was_measured_at_the_start_is_kept_by_a_run_that_goes_on_and_made_anew_by_one_that_starts_again(
    place, capsys
):
    overrides = {
        "data.train": "pairs.csv",
        "model": "tiny.json",
        "run": "runs/x",
        "data.workers": 0,
        "evaluate.every": None,
    }
    overrides |= {"data.pack.image_column": "file", "data.pack.caption_column": "alt", "data.batch_size": 16}
    overrides |= {"trainer.length": "2 steps", "optim.warmup": "0 steps", "trainer.accelerator": "cpu"}
    overrides |= {"checkpoint.every": "1 steps", "checkpoint.keep_last": 2}
    folder = clipkit.fit("finetune", overrides).folder
    whole = (folder / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in whole] == [0, 2, 2]
    for lost, start in (["2"], "resuming"), (["2", "1"], "evaluated at step 0"):  # as if it had been killed there
        for name in lost:
            (folder / "checkpoints" / name / "manifest.json").unlink()
        capsys.readouterr()
        clipkit.fit("finetune", overrides)
        said = capsys.readouterr().err
        assert start in said
        assert ("resuming" in said) != ("evaluated at step 0" in said)
        assert "pairs: image R@1" in said
        again = (folder / "metrics.jsonl").read_text().splitlines()
        assert [again[0], again[-1]] == [whole[0], whole[-1]]
        assert len(again) == 3


def test_of_several_that_want_the_same_data_one_packs(place):
    """Threads stand for processes: each opens the lock's file anew, and that is what holds it."""
    options = PackOptions(image_column="file", caption_column="alt", split=("val", 0.02))
    said = []

    def ask(_):
        return packed(Path("pairs.csv"), place / "cache", options, workers=1, say=said.append)

    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(ask, range(3)))
    assert found[0] == found[1] == found[2]
    assert [sum(words in line for line in said) for words in ("packing it into", "packed before")] == [1, 2]
    (folder,) = (path for path in (place / "cache" / "packed").iterdir() if path.is_dir())
    folder.with_name(f"{folder.name}.json").unlink()  # killed after the folder, before the word that it is whole
    (folder / "train" / "00000.tar").write_bytes(b"half")
    assert ask(0) == found[0]
    assert (folder / "train" / "00000.tar").stat().st_size > 1000


def test_a_folder_of_tars_is_shards_and_a_folder_of_classes_is_a_zero_shot_task(place, shards):
    config = pack_loose(load_config("demo", [f"data.train={shards}", "data.val=pairs.csv", *COLUMNS]))
    assert config.data.train["shards"].shards == [str(shards)]
    assert config.data.val["pairs"].loose is None
    assert list(config.evaluate.tasks) == ["style_transfer"]
    with pytest.raises(ValueError, match="nothing to evaluate"):
        pack_loose(load_config("finetune", [f"data.train={shards}"]))
    for i in range(40):
        target = place / "photos" / ("cat" if i % 2 else "dog") / f"{i}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        (place / "images" / f"{i}.png").rename(target)
    config = pack_loose(load_config("finetune", ["data.train=photos"]))
    assert config.evaluate.tasks["photos"].kind == "zero_shot"
    assert config.best_figure == "val/photos/acc1"


COLUMNS = ("data.pack.image_column=file", "data.pack.caption_column=alt")


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["data.train=nowhere.csv"], "nowhere.csv: no such file or folder"),
        (["data.train=pairs.csv"], "the columns are file, alt, note; needed: one of filepath"),
        (["data.train=pairs.csv", *COLUMNS, "data.batch_size=1000"], "data.batch_size=79 or less"),
    ],
)
def test_what_cannot_be_is_said_with_the_cure_and_leaves_no_run(place, overrides, said, capsys):
    assert command_line(["fit", "finetune", "model=tiny.json", "data.workers=0", *overrides]) == 2
    assert said in capsys.readouterr().err
    assert not (place / "runs").exists()


def test_of_listed_captions_one_is_drawn(place):
    rows = [{"image": f"images/{i}.png", "captions": [f"square {i}", f"colour {i}"]} for i in range(60)]
    Path("listed.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for _ in range(2):  # packed, and found
        config = pack_loose(load_config("finetune", ["data.train=listed.jsonl"]))
        assert config.data.train["listed"].fields["text"] == ["json.captions"]
    from clipkit.evaluation.datasets import open_retrieval

    assert {len(captions) for captions in open_retrieval(config.evaluate.tasks["listed"].data).captions} == {2}
    own = ["data.train={listed: {loose: listed.jsonl, fields: {image: png, text: txt}}}"]
    assert pack_loose(load_config("finetune", own)).data.train["listed"].fields["text"] == ["txt"]


def test_lines_of_a_caption_are_one_caption_of_the_held_out_part(place):
    rows = [{"image": f"images/{i}.png", "captions": [f"a\nsquare {i}"]} for i in range(60)]
    Path("lines.jsonl").write_text("\n".join(map(json.dumps, rows)))
    config = pack_loose(load_config("finetune", ["data.train=lines.jsonl"]))
    from clipkit.evaluation.datasets import open_retrieval

    found = open_retrieval(config.evaluate.tasks["lines"].data)
    assert {len(captions) for captions in found.captions} == {1}


def test_an_image_with_several_rows_is_one_image_of_the_held_out_part(place):
    lines = ["filepath,caption", *(f"images/{i}.png,{what} {i}" for what in ("a square", "colour") for i in range(90))]
    Path("twice.csv").write_text("\n".join(lines))
    config = pack_loose(load_config("finetune", ["data.train=twice.csv", "data.pack.split=0.2"]))
    from clipkit.evaluation.datasets import open_retrieval

    found = open_retrieval(config.evaluate.tasks["twice"].data)
    assert len(found.images) > 10
    assert all(len(captions) == 2 for captions in found.captions)
    assert len({image.read() for image in found.images}) == len(found.images)

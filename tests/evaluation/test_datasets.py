"""Every layout that DATA may have, and every way in which it can be wrong."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from clip_benchmark.datasets.builder import build_wds_dataset

from clipkit.evaluation.datasets import open_classification, open_retrieval, task_of

from .conftest import COLOURS, png

Squares = Callable[..., Path]


def test_shards_of_a_classification_set(squares: Squares) -> None:
    found = open_classification(squares())
    assert (len(found), found.classnames, found.templates) == (10, tuple(COLOURS), ("a {c} square", "it is {c}"))
    assert found.labels.tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 0, 1]
    assert found.images[6].read() == png(COLOURS["blue"])
    assert str(found.images[6]).endswith("1.tar, sample 's0000006'")


def test_shards_are_read_as_clip_benchmark_reads_them(squares: Squares) -> None:
    root = squares()
    theirs = build_wds_dataset("x", transform=None, data_dir=str(root))
    ours = open_classification(root)
    assert [label for _, label in theirs] == ours.labels.tolist()
    assert (theirs.classes, theirs.templates) == (list(ours.classnames), list(ours.templates or ()))


def test_a_folder_of_shards_may_be_named_itself(squares: Squares) -> None:
    root = squares("retrieval")
    assert open_retrieval(root / "test").captions == open_retrieval(root).captions


def test_captions_are_lines_with_escaped_line_feeds(squares: Squares) -> None:
    found = open_retrieval(squares("retrieval"))
    assert found.captions[1] == ("a green square", "all green\nand nothing else")
    assert len(found.texts) == 20
    assert found.owner.tolist() == [image for image in range(10) for _ in range(2)]


def test_the_users_names_and_templates_win(squares: Squares) -> None:
    found = open_classification(squares(), classnames=["a", "b", "c", "d"], templates=["{c}!"])
    assert (found.classnames, found.templates) == (("a", "b", "c", "d"), ("{c}!",))


def test_class_folders(tmp_path: Path) -> None:
    for name in ("traffic_light", "bus"):
        (tmp_path / name / "deeper").mkdir(parents=True)
        (tmp_path / name / "deeper" / "1.PNG").write_bytes(png(COLOURS["red"]))
        (tmp_path / name / "2.png").write_bytes(png(COLOURS["red"]))
    found = open_classification(tmp_path)
    assert found.classnames == ("bus", "traffic light")
    assert found.labels.tolist() == [0, 0, 1, 1]
    assert torch.equal(found.labels, open_classification(tmp_path, classnames=["x", "y"]).labels)
    assert task_of(tmp_path) == "zero_shot"


def test_images_with_captions_beside_them(tmp_path: Path) -> None:
    for name, captions in {"a": "one\ntwo\n", "b": "three"}.items():
        (tmp_path / f"{name}.png").write_bytes(png(COLOURS["red"]))
        (tmp_path / f"{name}.txt").write_text(captions)
    assert open_retrieval(tmp_path).captions == [("one", "two"), ("three",)]
    assert task_of(tmp_path) == "retrieval"


@pytest.mark.parametrize(("header", "separator"), [("filepath,caption", ","), ("title\tfilepath", "\t")])
def test_a_csv(tmp_path: Path, header: str, separator: str) -> None:
    (tmp_path / "images").mkdir()
    rows = [("images/a.png", "one"), ("images/b.png", "two"), ("images/a.png", '"three, four"')]
    if header.startswith("title"):
        rows = [(caption, path) for path, caption in rows]
    for name in "ab":
        (tmp_path / "images" / f"{name}.png").write_bytes(png(COLOURS["red"]))
    (tmp_path / "set.csv").write_text("\n".join([header, *(separator.join(row) for row in rows)]))
    found = open_retrieval(tmp_path / "set.csv")
    assert found.captions == [("one", "three, four"), ("two",)]
    assert found.name == "set"
    assert task_of(tmp_path / "set.csv") == "retrieval"


def test_a_caption_may_hold_any_line_separator_but_a_line_feed(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(COLOURS["red"]))
    (tmp_path / "a.txt").write_text("one\u2028still one\ntwo\r\n", encoding="utf-8", newline="")
    (tmp_path / "set.csv").write_text(
        'filepath,caption\na.png,one\u2028still one\na.png,"two\nlines"\n', encoding="utf-8"
    )
    assert open_retrieval(tmp_path).captions == [("one\u2028still one", "two")]
    assert open_retrieval(tmp_path / "set.csv").captions == [("one\u2028still one", "two\nlines")]


def test_a_linked_set_keeps_the_name_of_the_link(squares: Squares, tmp_path: Path) -> None:
    (tmp_path / "mine").symlink_to(squares())
    assert open_classification(tmp_path / "mine").name == "mine"


def test_the_type_tells_the_task(squares: Squares) -> None:
    assert task_of(squares("retrieval")) == "retrieval"
    assert task_of(squares()) == "zero_shot"


QUESTIONS = {
    "labels.jsonl": ('{"image": "a.png", "labels": ["red"]}', "multi_label"),
    "pairs.jsonl": ('{"image": "a.png", "captions": ["one", "two"]}', "compositional"),
    "examples.jsonl": (
        '{"id": 0, "image_0": "a", "image_1": "b", "caption_0": "c", "caption_1": "d"}',
        "compositional",
    ),
    "swap.json": ('{"0": {"filename": "a.png", "caption": "b", "negative_caption": "c"}}', "compositional"),
    "visual_genome_relation.json": (
        '[{"image_path": "a.png", "true_caption": "b", "false_caption": "c"}]',
        "compositional",
    ),
    "captions_val.json": ('{"images": [{"id": 1, "file_name": "a.png"}], "annotations": []}', "retrieval"),
}


@pytest.mark.parametrize("name", QUESTIONS)
def test_the_content_of_a_file_tells_the_task(tmp_path: Path, name: str) -> None:
    text, task = QUESTIONS[name]
    (tmp_path / name).write_text("\n" + text)
    assert task_of(tmp_path / name) == task
    (tmp_path / "images").mkdir()
    assert task_of(tmp_path) == (task if task == "compositional" else "zero_shot")


def test_a_jsonl_of_something_else_tells_no_task(tmp_path: Path) -> None:
    (tmp_path / "notes.jsonl").write_text('{"note": "captions"}')
    with pytest.raises(ValueError, match="its first line is neither .*name the task"):
        task_of(tmp_path / "notes.jsonl")


def test_multi_label_shards_tell_their_task(squares: Squares) -> None:
    root = squares()
    multilabel(root)
    assert task_of(root) == "multi_label"


def break_label(root: Path) -> None:
    (root / "classnames.txt").write_text("red\ngreen\nblue\n")


def break_template(root: Path) -> None:
    (root / "zeroshot_classification_templates.txt").write_text("a {c} square\nit is {}\n")


def break_names(root: Path) -> None:
    (root / "classnames.txt").write_text("red\n\ngreen\nblue\nyellow\n")


def lose_names(root: Path) -> None:
    (root / "classnames.txt").unlink()


def lose_shard(root: Path) -> None:
    (root / "test" / "1.tar").unlink()


def add_shard(root: Path) -> None:
    (root / "test" / "2.tar").write_bytes((root / "test" / "1.tar").read_bytes())


def cut_shard(root: Path) -> None:
    path = root / "test" / "1.tar"
    path.write_bytes(path.read_bytes()[:3000])


def lose_counter(root: Path) -> None:
    (root / "test" / "nshards.txt").unlink()


def break_counter(root: Path) -> None:
    (root / "test" / "nshards.txt").write_text("two")


def break_type(root: Path) -> None:
    (root / "dataset_type.txt").write_text("segmentation")


def multilabel(root: Path) -> None:
    (root / "dataset_type.txt").write_text("multilabel")


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (
            break_label,
            "0.tar, sample 's0000003': label 3, but there are 3 class names (0 to 2); complete classnames.txt",
        ),
        (break_template, "zeroshot_classification_templates.txt: template 2 has no {c}: 'it is {}'; write {c} where"),
        (break_names, "classnames.txt:2: blank line; it would shift every entry after it"),
        (lose_names, "classnames.txt: missing; write one class name a line"),
        (lose_shard, "nshards.txt says 2 shards, 0.tar to 1.tar: 1 missing (1.tar); fetch the set again"),
        (add_shard, "nshards.txt says 2 shards, 0.tar to 1.tar: 1 extra (2.tar)"),
        (cut_shard, "1.tar: "),
        (lose_counter, "test: shards without nshards.txt"),
        (break_counter, "nshards.txt: 'two' is no number of shards"),
        (break_type, "dataset_type.txt: unknown type 'segmentation'; known are classification, retrieval"),
        (multilabel, "says multilabel, the task zero_shot takes classification; evaluate it with --task multi_label"),
    ],
)
def test_a_broken_classification_set_is_refused(squares: Squares, harm: Callable[[Path], None], said: str) -> None:
    root = squares()
    harm(root)
    with pytest.raises(ValueError, match=re.escape(said)):
        open_classification(root)


def test_a_shard_that_was_cut_is_said_to_be(squares: Squares) -> None:
    root = squares()
    cut_shard(root)
    with pytest.raises(ValueError, match="cut short"):
        open_classification(root)


def test_the_wrong_task_is_refused(squares: Squares) -> None:
    with pytest.raises(
        ValueError, match="says retrieval, the task zero_shot takes classification; evaluate it with --task"
    ):
        open_classification(squares("retrieval"))
    with pytest.raises(ValueError, match="says classification, the task retrieval takes retrieval"):
        open_retrieval(squares())


def test_broken_class_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no images at all"):
        open_classification(tmp_path)
    (tmp_path / "a").mkdir()
    with pytest.raises(ValueError, match="a: a class without images"):
        open_classification(tmp_path)
    (tmp_path / "a" / "1.png").write_bytes(png(COLOURS["red"]))
    with pytest.raises(ValueError, match="1 class folders, but 2 class names"):
        open_classification(tmp_path, classnames=["x", "y"])
    (tmp_path / "2.png").write_bytes(png(COLOURS["red"]))
    with pytest.raises(ValueError, match=r"1 images lie outside the class folders \(2.png\)"):
        open_classification(tmp_path)


def test_broken_caption_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no images at all"):
        open_retrieval(tmp_path)
    (tmp_path / "a.png").write_bytes(png(COLOURS["red"]))
    with pytest.raises(ValueError, match=r"a.png: no caption, a.txt is missing"):
        open_retrieval(tmp_path)
    (tmp_path / "a.txt").write_text(" \n")
    with pytest.raises(ValueError, match=r"a.png: no caption, a.txt is empty"):
        open_retrieval(tmp_path)
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "a.jpg").write_bytes(png(COLOURS["red"]))
    with pytest.raises(ValueError, match=r"a.txt belongs to both a.jpg and a.png"):
        open_retrieval(tmp_path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("path,caption\n", "set.csv:1: the columns are ['path', 'caption']; filepath and caption"),
        ("filepath,caption\n", "set.csv: no images at all"),
        ("filepath,caption\nb.png,one\n", "set.csv:2: "),
        ("filepath,caption\na.png,one, two\n", "set.csv:2: more fields than the 2 columns; put quotes around"),
        ("filepath,caption\na.png,one\na.png,\n", "set.csv:3: a.png has no caption"),
    ],
)
def test_a_broken_csv_is_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "a.png").write_bytes(png(COLOURS["red"]))
    (tmp_path / "set.csv").write_text(text)
    with pytest.raises(ValueError, match=re.escape(said)):
        open_retrieval(tmp_path / "set.csv")


def test_what_is_not_there_is_refused(tmp_path: Path) -> None:
    for opened in (open_classification, open_retrieval, task_of):
        with pytest.raises(ValueError, match="nowhere: no such file or folder"):
            opened(tmp_path / "nowhere")


def test_a_sample_without_label_or_image_is_refused(squares: Squares) -> None:
    root = squares("retrieval")
    (root / "dataset_type.txt").unlink()
    (root / "classnames.txt").write_text("red\n")
    with pytest.raises(ValueError, match=r"0.tar, sample 's0000000': no .cls"):
        open_classification(root)


def test_files_that_are_no_images_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.png").write_bytes(png(COLOURS["red"]))
    (tmp_path / "a" / "2.tiff").write_bytes(b"")
    open_classification(tmp_path)
    assert "1 files are no" in caplog.text
    assert "2.tiff" in caplog.text

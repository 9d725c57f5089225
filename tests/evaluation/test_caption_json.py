"""COCO's and Karpathy's files of captions, right and wrong."""

import json

import pytest

from clipkit.evaluation.datasets import open_retrieval, task_of

from .conftest import COLOURS, png

COCO = {
    "images": [{"id": 7, "file_name": "a.png"}, {"id": 3, "file_name": "b.png"}],
    "annotations": [
        {"image_id": 3, "caption": "two"},
        {"image_id": 7, "caption": "one\n"},
        {"image_id": 7, "caption": "uno"},
    ],
}
KARPATHY = {
    "dataset": "coco",
    "images": [
        {"filepath": "val2014", "filename": "a.png", "split": "test", "sentences": [{"raw": "one"}, {"raw": "uno"}]},
        {"filepath": "val2014", "filename": "b.png", "split": "restval", "sentences": [{"raw": "two"}]},
    ],
}


@pytest.fixture
def place(tmp_path):
    for folder in ("annotations", "val2014"):
        (tmp_path / folder).mkdir()
    for name in "ab":
        (tmp_path / "val2014" / f"{name}.png").write_bytes(png(COLOURS["red"]))

    def write(tree):
        path = tmp_path / "annotations" / "captions.json"
        path.write_text(json.dumps(tree))
        return path

    return write


def test_coco(place):
    path = place(COCO)
    found = open_retrieval(path)
    assert found.captions == [("one", "uno"), ("two",)]
    assert [file.path.name for file in found.images] == ["a.png", "b.png"]
    assert task_of(path) == "retrieval"


def test_karpathys_split(place):
    assert open_retrieval(place(KARPATHY)).captions == [("one", "uno")]
    assert open_retrieval(place(KARPATHY), split="restval").captions == [("two",)]
    assert open_retrieval(place(KARPATHY), images=place(KARPATHY).parent.parent).captions == [("one", "uno")]


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        ([], "no list of images"),
        ({"images": []}, "no list of images"),
        ({**COCO, "annotations": COCO["annotations"][:1]}, "the image a.png has no caption"),
        ({**COCO, "annotations": [{"image_id": 9, "caption": "x"}]}, "1 captioned images are not listed, such as id 9"),
        ({**COCO, "annotations": [{"image_id": 3, "bbox": []}]}, r"annotations without captions .instances"),
        (
            {**COCO, "images": [{"id": 3, "file_name": "c.png"}], "annotations": COCO["annotations"][:1]},
            "c.png is in none",
        ),
        ({"images": [{**KARPATHY["images"][0], "split": "train"}]}, r"no split 'test'; there are train \(1\)"),
    ],
)
def test_a_broken_file_is_refused(place, tree, said):
    with pytest.raises(ValueError, match=said):
        open_retrieval(place(tree))


def test_keys_of_a_json_belong_to_a_json(tmp_path):
    with pytest.raises(ValueError, match="belong to a JSON file"):
        open_retrieval(tmp_path, split="val")

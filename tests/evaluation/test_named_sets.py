"""Class names and templates by name: counted, whole, and the same as where they come from."""

import json
from pathlib import Path

import clip_benchmark
import open_clip
import pytest
from clip_benchmark.datasets.builder import all_imagenet_wordnet_ids

from clipkit.evaluation.datasets import open_classification
from clipkit.evaluation.named_sets import classnames_of, named_set, set_names, templates_of
from clipkit.evaluation.zero_shot import ZeroShot

CLASSES = {
    "birdsnap": 500, "caltech101": 102, "caltech101_vtab": 102, "cars": 196, "cifar10": 10, "cifar100": 100,
    "clevr_closest_object_distance": 6, "clevr_count_all": 8, "country211": 211, "diabetic_retinopathy": 5, "dmlab": 6,
    "dtd": 47, "eurosat": 10, "fer2013": 7, "fgvc_aircraft": 100, "flowers": 102, "food101": 101, "gtsrb": 43,
    "hateful_memes": 2, "imagenet-a": 200, "imagenet-o": 200, "imagenet-r": 200, "imagenet1k": 1000,
    "imagenet1k_ar": 1000, "imagenet1k_cn": 1000, "imagenet1k_it": 1000, "imagenet1k_jp": 1000, "kinetics700": 700,
    "kitti_closest_vehicle_distance": 4, "mnist": 10, "pcam": 2, "pets": 37, "renderedsst2": 2, "resisc45": 45,
    "stl10": 10, "sun397": 397, "svhn": 10, "ucf101": 101, "voc2007": 20,
}  # fmt: skip
TEMPLATES = {"openai80": 80, "simple7": 7}
# names that the sources give twice, or leave empty
TWICE = {"imagenet1k": 2, "imagenet1k_ar": 4, "imagenet1k_cn": 1, "imagenet1k_it": 19, "imagenet1k_jp": 9}
TEMPLATES_TWICE = {"imagenet1k_cn": 2, "imagenet1k_it": 3}
EMPTY = {"clevr_closest_object_distance": 1}
PEER = Path(clip_benchmark.__file__).parent / "datasets"


def test_no_set_is_without_its_count():
    assert set(set_names()) == CLASSES.keys() | TEMPLATES.keys()
    assert len(CLASSES) >= 30


@pytest.mark.parametrize("name", CLASSES)
def test_class_names(name):
    found = named_set(name)
    names = found.classnames
    assert len(names) == CLASSES[name]
    assert sum(names.count(one) > 1 and names.index(one) == at for at, one in enumerate(names)) == TWICE.get(name, 0)
    assert sum(not one for one in names) == EMPTY.get(name, 0)
    assert all((one == one.strip() or name == "imagenet1k_ar") and "{" not in one and "\n" not in one for one in names)


@pytest.mark.parametrize("name", [*CLASSES, *TEMPLATES])
def test_templates_and_source(name):
    found = named_set(name)
    assert found.templates
    assert len(found.templates) - len(set(found.templates)) == TEMPLATES_TWICE.get(name, 0)
    assert all(template.count("{c}") == 1 and "{}" not in template for template in found.templates)
    assert len(found.templates) == TEMPLATES.get(name, len(found.templates))
    assert found.source
    assert all(line.startswith("https://github.com/") and line.endswith("MIT)") for line in found.source)


def test_imagenet_is_open_clips():
    assert named_set("imagenet1k").classnames == tuple(open_clip.IMAGENET_CLASSNAMES)
    assert templates_of("openai80") == tuple(template("{c}") for template in open_clip.OPENAI_IMAGENET_TEMPLATES)
    assert templates_of("simple7") == tuple(template("{c}") for template in open_clip.SIMPLE_IMAGENET_TEMPLATES)
    assert len(all_imagenet_wordnet_ids) == 1000
    for name in ("imagenet-a", "imagenet-o", "imagenet-r"):
        assert set(named_set(name).classnames) <= set(open_clip.IMAGENET_CLASSNAMES)
        assert named_set(name).templates == templates_of("openai80")


def test_what_clip_benchmark_has_is_the_same():
    names = json.loads((PEER / "en_classnames.json").read_text())
    templates = json.loads((PEER / "en_zeroshot_classification_templates.json").read_text())
    assert names.keys() <= set(set_names())
    assert all(named_set(name).classnames == tuple(names[name]) for name in names)
    both = templates.keys() & set(set_names())
    assert len(both) >= 25
    assert all(named_set(name).templates == tuple(templates[name]) for name in both)


def test_zero_shot_takes_names(tmp_path):
    for label in range(2):
        (tmp_path / str(label)).mkdir()
        (tmp_path / str(label) / "a.png").write_bytes(b"not looked at yet")
    evaluator = ZeroShot(tmp_path, classnames="pcam", templates="simple7")
    assert evaluator.data.classnames == ("lymph node", "lymph node containing metastatic tumor tissue")
    assert len(evaluator.templates) == 7
    listed = open_classification(tmp_path, classnames=["pcam"], templates=["simple7"])  # as a configuration gives them
    assert (listed.classnames, listed.templates) == (evaluator.data.classnames, evaluator.templates)
    with pytest.raises(ValueError, match="2 class folders, but 1000 class names"):
        ZeroShot(tmp_path, classnames="imagenet1k")


def test_unknown_names():
    with pytest.raises(ValueError, match="no class names or templates are called 'imagenet2k': near it: imagenet1k"):
        classnames_of("imagenet2k")
    with pytest.raises(ValueError, match=r"'openai8' has no {c} and is no set's name \(near it: openai80\); write {c}"):
        templates_of(["openai8"])
    with pytest.raises(ValueError, match="openai80 holds templates alone"):
        classnames_of("openai80")
    assert classnames_of(["one", "two"]) == ("one", "two")

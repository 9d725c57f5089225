"""Stages and views: chosen by the position alone, whatever the workers, how they start, and where a run was stopped."""

import json

import numpy as np
import pytest
import torch

from clipkit.data.augment import Augment
from clipkit.data.source import Source
from clipkit.data.stages import Schedule, Stage, transformed, view_number
from clipkit.data.transforms import Preprocess

from .conftest import tokenize
from .test_datamodule import batches, module

VIEWS = {"image_view1": Augment((16, 16), scale=(0.3, 1.0), flip=0.5), "image_view2": Preprocess((16, 16))}


def short(texts):
    return tokenize(texts)[:, :1]


SMALL = Stage({"image": Augment((8, 8)), "image_view1": Augment((8, 8), flip=1.0)}, short, name="small")
MIDDLE = Stage({"image": Augment((12, 12))}, tokenize, name="middle")


def staged(source, **changes):
    return module(source, **({"stages": [(20, SMALL), (40, MIDDLE)], "views": VIEWS, "length": 64} | changes))


@pytest.fixture
def source(make_shards):
    return Source("pairs", make_shards([30, 41]))


def equal(left, right):
    assert left.keys() == right.keys()
    for name, value in left.items():
        assert torch.equal(value, right[name]) if isinstance(value, torch.Tensor) else True, name
    assert left["key"] == right["key"]


def test_a_stage_begins_at_a_batch(source):
    found = batches(staged(source))
    sizes = [batch["image"].shape[2] for batch in found]
    assert sizes == [8, 8, 8, 12, 12, 16, 16, 16]  # batches of 8: 20 samples end in the third batch
    assert [batch["text"].shape[1] for batch in found] == [1, 1, 1, 2, 2, 2, 2, 2]
    assert ["image_view1" in batch for batch in found] == [True] * 3 + [False] * 2 + [True] * 3
    assert ["image_view2" in batch for batch in found] == [False] * 5 + [True] * 3
    plain = batches(module(source, length=64))
    assert [batch["key"] for batch in found] == [batch["key"] for batch in plain]  # the order knows no stages


def test_ranks_do_not_matter(source):
    whole = batches(staged(source))
    for rank in (0, 1):
        for part, batch in zip(batches(staged(source, ranks=(rank, 2))), whole, strict=True):
            for name in {"image", "image_view1", "image_view2", "text"} & set(batch):
                assert torch.equal(part[name], batch[name][rank::2])


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_workers_and_how_they_start_do_not_matter(source, method):
    alone = batches(staged(source))
    loader = staged(source, workers=2 if method == "fork" else 1, start_method=method)
    for left, right in zip(alone, batches(loader), strict=True):
        equal(left, right)


def test_resumed_inside_a_stage(source):
    whole = batches(staged(source))
    for cut in (1, 3, 4, 6):
        first = staged(source)
        batches(first, cut)
        second = staged(source, workers=1)
        second.load_state_dict(json.loads(json.dumps(first.state_dict())))
        for left, right in zip(whole[cut:], batches(second), strict=True):
            equal(left, right)


def test_other_data_do_not_begin_the_stages_again(source, make_shards):
    first = staged(source)
    batches(first, 4)  # 32 samples: inside the second stage, which ends at 40
    other = staged(Source("pairs", make_shards([50], "other")), allow_mismatch=True)
    other.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert [batch["image"].shape[2] for batch in batches(other)] == [12, 16, 16, 16]


def test_ends_may_depend_on_the_epoch(source):
    data = staged(source, stages=[(lambda batch_size, epoch: epoch - 2 * batch_size, SMALL)], length=71)
    assert [batch["image"].shape[2] for batch in batches(data)] == [8] * 7 + [16] * 2  # 55 of 71


def test_views_have_draws_of_their_own_and_the_first_is_the_image(source):
    augment = Augment((16, 16), scale=(0.2, 1.0), flip=0.5)
    data = module(source, augment=augment, views={f"image_view{n}": augment for n in (1, 2)})
    batch = batches(data, 1)[0]
    assert torch.equal(batch["image"], batches(module(source, augment=augment), 1)[0]["image"])
    for left, right in (("image", "image_view1"), ("image_view1", "image_view2")):
        assert not torch.equal(batch[left], batch[right])


def test_validation_has_the_views_and_no_other_randomness(source, make_shards):
    val = Source("val", make_shards([16], "val"))
    data = staged(source, val=[val])
    first, again = (list(data.val_batches()) for _ in range(2))
    assert len(first) == 2
    for left, right in zip(first, again, strict=True):
        equal(left, right)
        assert torch.equal(left["image"], left["image_view2"])  # an evaluation view of the same image
        assert left["image_view1"].shape == left["image"].shape


@pytest.mark.parametrize(
    ("stages", "says"),
    [
        ([("a", 16), ("b", 16)], "'b' ends at 16 samples and holds no batch: compare its start, 16"),
        ([("a", 20), ("b", 22)], "'b' ends at 22 .* its start, 24"),
        ([("a", 60), ("b", 80)], "'b' ends at 80 .* the run, 60"),
    ],
)
def test_stages_without_a_batch_are_refused(stages, says):
    with pytest.raises(ValueError, match=says):
        Schedule(stages, batch_size=8, length=60)


@pytest.mark.parametrize("name", ["image_view0", "image_view", "image_view01", "view1", "text_view1"])
def test_names_of_views(name):
    with pytest.raises(ValueError, match=name):
        Stage({name: Preprocess((8, 8))}, tokenize)
    assert view_number("image_view12") == 12


def test_an_evaluation_transform_draws_nothing():
    images = [torch.randint(0, 256, (3, 20, 30), dtype=torch.uint8)]
    found = [
        transformed(Preprocess((8, 8)), "image_view1", images, seed=seed, positions=np.array([seed])) for seed in (0, 1)
    ]
    assert torch.equal(*found)

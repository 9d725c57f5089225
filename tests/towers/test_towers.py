import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clipkit.towers.base import Features, Tower, unit
from clipkit.towers.scale import LogitScale
from clipkit.towers.towers import Towers, batchnorm_names


class Words(Tower):
    """A causal toy: the pooled feature reads tokens up to the last that is not 0."""

    def __init__(self, dropout=0.0):
        super().__init__()
        torch.manual_seed(0)
        self.table = torch.nn.Embedding(10, 6)
        self.dropout = torch.nn.Dropout(dropout)
        self.seen = []

    def lengths(self, x):
        return ((x != 0) * torch.arange(1, x.shape[1] + 1)).amax(1).tolist()

    def forward(self, x):
        self.seen.append(tuple(x.shape))
        mask = (x != 0)[..., None]
        return Features(self.dropout(self.table(x) * mask).sum(1))


def tokens(lengths, width=24):
    x = torch.zeros(len(lengths), width, dtype=torch.int64)
    for row, length in enumerate(lengths):
        x[row, :length] = torch.arange(length) % 9 + 1
    return x


@settings(max_examples=40, deadline=None)
@given(lengths=st.lists(st.integers(1, 24), min_size=1, max_size=12), size=st.integers(1, 13))
def test_micro_batches_sorted_by_length_change_neither_features_nor_gradients(lengths, size):
    x = tokens(lengths)
    whole, cut = Words().double(), Words().double()
    weight = torch.randn(len(lengths), 6, dtype=torch.float64)
    want = whole(x).pooled
    towers = Towers({"text": cut}, micro_batch=size)
    got = towers({"text": x, "lengths": {"text": lengths}})["text"].pooled
    torch.testing.assert_close(got, want, rtol=0, atol=1e-12)
    (want * weight).sum().backward()
    (got * weight).sum().backward()
    torch.testing.assert_close(cut.table.weight.grad, whole.table.weight.grad, rtol=0, atol=1e-12)


def test_each_micro_batch_is_cut_to_its_own_longest_in_steps_of_eight():
    tower = Words().eval()
    with torch.no_grad():
        Towers({"text": tower}, micro_batch=2)({"text": tokens([20, 3, 9, 2]), "lengths": {"text": [20, 3, 9, 2]}})
    assert tower.seen == [(2, 8), (2, 24)]


def test_dropout_masks_are_drawn_again_as_they_were():
    towers = Towers({"text": Words(dropout=0.5).double()}, micro_batch=2)
    x = tokens([4, 4, 4, 4, 4])
    torch.manual_seed(5)
    plain = torch.cat([towers["text"](part).pooled for part in x.split(2)])
    (want,) = torch.autograd.grad(plain.square().sum(), towers["text"].table.weight)
    torch.manual_seed(5)
    pooled = towers({"text": x})["text"].pooled
    (got,) = torch.autograd.grad(pooled.square().sum(), towers["text"].table.weight)
    torch.testing.assert_close(pooled, plain)
    torch.testing.assert_close(got, want)


def test_an_empty_batch_passes():
    assert Towers({"text": Words()})({"text": tokens([])})["text"].pooled.shape == (0, 6)


def test_batch_norms_are_named():
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4), torch.nn.GroupNorm(2, 4))
    assert batchnorm_names(model) == ["1"]


def test_a_micro_batch_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least 1, got 0"):
        Towers({}, micro_batch=0)


def test_the_scale_is_exponentiated_and_stays_between_1_and_100():
    scale = LogitScale()
    assert scale().item() == pytest.approx(1 / 0.07)
    for value, want in ((-3.0, 1.0), (9.0, 100.0)):
        scale.log_scale.data.fill_(value)
        scale.clamp_()
        assert scale().item() == pytest.approx(want)


class Normed(Tower):
    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4), torch.nn.Flatten())

    def forward(self, x):
        return Features(unit(self.layers(x)))


@pytest.mark.parametrize("tracked", [True, False])
def test_batch_norms_in_micro_batches_learn_once_a_step(tracked):
    torch.manual_seed(0)
    once = Normed()
    if not tracked:
        once.layers[1] = torch.nn.BatchNorm2d(4, track_running_stats=False)
    twice = copy.deepcopy(once)
    images = torch.rand(6, 3, 2, 2)
    parts = torch.cat([once(part).pooled for part in images.split(2)])  # the same micro-batches without a checkpoint
    parts.square().cos().sum().backward()
    features = Towers({"image": twice}, micro_batch=2)({"image": images})["image"].pooled
    assert torch.equal(features, parts)
    features.square().cos().sum().backward()
    assert {n: b.tolist() for n, b in twice.named_buffers()} == {n: b.tolist() for n, b in once.named_buffers()}
    for (name, mine), (_, theirs) in zip(twice.named_parameters(), once.named_parameters(), strict=True):
        assert torch.allclose(mine.grad, theirs.grad, atol=1e-6), name


def test_views_share_the_tower_of_their_field():
    torch.manual_seed(0)
    tower = Words()
    first, second, third = tokens([3, 9, 20]), tokens([5, 1, 2]), tokens([7, 7, 7])
    batch = {
        "text": first,
        "text_view1": second,
        "text_view12": third,
        "text_view": 1,
        "other_view1": second,
        "id": third,
    }
    for micro_batch in (None, 2):
        towers = Towers({"text": tower}, micro_batch=micro_batch)
        batch["lengths"] = towers.lengths({name: value for name, value in batch.items() if name != "lengths"})
        found = towers(batch)
        assert set(found) == {"text", "text_view1", "text_view12"} == set(batch["lengths"])
        for name, x in (("text", first), ("text_view1", second), ("text_view12", third)):
            torch.testing.assert_close(found[name].pooled, tower(x).pooled)


@pytest.mark.parametrize(("micro_batch", "computed"), [(None, 12 * 24), (4, 4 * 8 + 4 * 16 + 4 * 24)])
def test_the_share_of_tokens_that_is_computed_is_what_the_tower_saw(micro_batch, computed):
    tower = Words().eval()
    towers = Towers({"text": tower}, micro_batch=micro_batch)
    batch = {"text": tokens([3, 12, 20] * 4)}
    batch["lengths"] = towers.lengths(batch)
    with torch.no_grad():
        towers(batch)
    assert sum(rows * width for rows, width in tower.seen) == computed
    assert towers.trimmed(batch) == {"text": (pytest.approx(35 / 3), computed / (12 * 24))}
    assert towers.trimmed({"text": batch["text"], "lengths": {}}) == {}  # never cut, so nothing to say

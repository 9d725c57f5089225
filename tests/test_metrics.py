"""Every metric against a slow loop over plain numbers, and against CLIP_benchmark's own code."""

import itertools
from typing import Any

import pytest
import torch
from clip_benchmark.metrics import zeroshot_classification, zeroshot_retrieval
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score
from torch import Tensor
from torch.nn.functional import normalize

from clipkit import metrics


@st.composite
def retrieval_problems(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor, int]:
    """Coarse integer embeddings: many exact ties, duplicates, negative and zero scores, owners in any order."""
    n = draw(st.integers(1, 9))
    extra = draw(st.lists(st.integers(0, n - 1), max_size=12))
    owner = draw(st.permutations(list(range(n)) + extra))
    seed = draw(st.integers(0, 10_000))
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(-2, 3, (n, 2), generator=generator).float()
    text = torch.randint(-2, 3, (len(owner), 2), generator=generator).float()
    return image, text, torch.tensor(owner), draw(st.integers(1, 7))


def slow_ranks(image: Tensor, text: Tensor, owner: Tensor) -> tuple[list[int], list[int], list[int]]:
    def score(i: int, t: int) -> float:
        return sum(a * b for a, b in zip(image[i].tolist(), text[t].tolist(), strict=True))

    of_captions, of_images, of_own = [], [], []
    for t in range(len(text)):
        right = int(owner[t])
        of_captions.append(sum(score(i, t) >= score(right, t) for i in range(len(image)) if i != right))
    for i in range(len(image)):
        best = max(score(i, t) for t in range(len(text)) if owner[t] == i)
        of_images.append(sum(score(i, t) >= best for t in range(len(text)) if owner[t] != i))
    for t in range(len(text)):
        i = int(owner[t])
        of_own.append(sum(score(i, u) >= score(i, t) for u in range(len(text)) if owner[u] != i))
    return of_captions, of_images, of_own


@settings(deadline=None, max_examples=200)
@given(retrieval_problems())
def test_ranks_equal_a_slow_loop(problem: tuple[Tensor, Tensor, Tensor, int]) -> None:
    image, text, owner, tile = problem
    found = metrics.ranks(image, text, owner, tile=tile)
    assert tuple(values.tolist() for values in found) == slow_ranks(image, text, owner)


def test_ranks_equal_a_float64_loop_where_float32_cannot_tell() -> None:
    """Scores a few units of float32 apart, far inside the rounding of a float32 product: only the second look is right."""
    torch.manual_seed(3)
    base = normalize(torch.randn(1, 700, dtype=torch.float64), dim=1)
    image = normalize(base + 2e-7 * torch.randn(90, 700, dtype=torch.float64), dim=1).float()
    image[40:60] = image[7]
    text = normalize(base + 0.5 * torch.randn(200, 700, dtype=torch.float64), dim=1).float()
    owner = torch.cat([torch.arange(90), torch.randint(0, 90, (110,))])
    scores = metrics.cosines(image, text)  # (N, M), all at once
    naive = image @ text.T
    other = owner[None, :] != torch.arange(90)[:, None]
    own = scores[owner, torch.arange(200)]
    expected = ((scores >= own) & other).sum(0)
    assert not torch.equal(((naive >= naive[owner, torch.arange(200)]) & other).sum(0), expected), "an easy problem"
    for tile in (16, 37, 1024):
        found = metrics.ranks(image, text, owner, tile=tile)
        assert torch.equal(found.image, expected)
        assert torch.equal(found.caption, ((scores[owner] >= own[:, None]) & other[owner]).sum(1))
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")  # what training may have chosen: bfloat16 inside float32 products
    try:
        assert torch.equal(metrics.ranks(image, text, owner).image, expected)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


@settings(deadline=None, max_examples=100)
@given(retrieval_problems(), st.integers(1, 6))
def test_true_recall_and_ap_at_r_equal_a_walk_down_the_list(problem: Any, k: int) -> None:
    image, text, owner, _ = problem
    found = metrics.ranks(image, text, owner)
    _, _, of_own = slow_ranks(image, text, owner)
    for i in range(len(image)):
        # The image's list from the top: other captions that reach an own one stand before it.
        right = [wrong + nth for nth, wrong in enumerate(sorted(of_own[t] for t in (owner == i).nonzero().flatten()))]
        assert float(metrics.true_recall(found.caption, owner, k)[i]) == sum(at < k for at in right) / len(right)
        precisions = [sum(place <= at for place in right) / (at + 1) for at in right if at < len(right)]
        ap = float(metrics.average_precision_at_r(found.caption, owner)[i])
        assert ap == pytest.approx(sum(precisions) / len(right), abs=1e-12)


@pytest.mark.parametrize(("captions", "tile"), list(itertools.product([1, 3], [7, 64, 4096])))
def test_recall_equals_clip_benchmark(captions: int, tile: int) -> None:
    torch.manual_seed(captions)
    n = 60
    owner = torch.cat([torch.arange(n), torch.randint(0, n, (n * (captions - 1),))])
    image = normalize(torch.randn(n, 16), dim=1)
    text = normalize(image[owner] + 0.8 * torch.randn(len(owner), 16), dim=1)

    scores = text @ image.T
    positive = torch.zeros_like(scores, dtype=torch.bool)
    positive[torch.arange(len(owner)), owner] = True
    found = metrics.ranks(image, text, owner, tile=tile)
    for k in (1, 5, 10):
        theirs_image = (zeroshot_retrieval.recall_at_k(scores, positive, k) > 0).double().mean()
        theirs_text = (zeroshot_retrieval.recall_at_k(scores.T, positive.T, k) > 0).double().mean()
        assert metrics.recall_at(found.image, k) == pytest.approx(float(theirs_image), abs=1e-12)
        assert metrics.recall_at(found.text, k) == pytest.approx(float(theirs_text), abs=1e-12)
        assert 0 < metrics.recall_at(found.image, k) <= 1
        true_recall = zeroshot_retrieval.recall_at_k(scores.T, positive.T, k).double().mean()
        assert float(metrics.true_recall(found.caption, owner, k).mean()) == pytest.approx(float(true_recall), abs=1e-6)


def test_equal_images_tie_wherever_they_stand_in_the_tiles() -> None:
    torch.manual_seed(0)
    image = normalize(torch.randn(1, 513), dim=1).repeat(67, 1)
    text = normalize(torch.randn(67, 513), dim=1)
    for tile in (1, 5, 64, 67):
        found = metrics.ranks(image, text, torch.arange(67), tile=tile)
        assert found.image.tolist() == [66] * 67


def test_a_collapsed_encoder_scores_nothing() -> None:
    same = torch.ones(12, 1)
    found = metrics.ranks(same, same, torch.arange(12))
    assert metrics.recall_at(found.image, 10) == metrics.recall_at(found.text, 10) == 0.0
    assert metrics.topk_accuracy(torch.zeros(3, 6), torch.tensor([0, 1, 5]), 5) == 0.0


@settings(deadline=None, max_examples=100)
@given(st.integers(1, 8), st.integers(1, 30), st.integers(0, 10_000), st.integers(1, 6))
def test_topk_equals_a_slow_loop(classes: int, samples: int, seed: int, k: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(-3, 4, (samples, classes), generator=generator).float()
    labels = torch.randint(0, classes, (samples,), generator=generator)
    hits = 0
    for row, label in zip(scores.tolist(), labels.tolist(), strict=True):
        hits += sum(value >= row[label] for c, value in enumerate(row) if c != label) < k
    assert metrics.topk_accuracy(scores, labels, k) == (None if classes < k else hits / samples)


def test_classification_equals_clip_benchmark_and_sklearn(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(1)
    scores, labels = torch.randn(200, 9), torch.randint(0, 7, (200,))  # classes 7 and 8 never occur
    scores[torch.arange(200), labels] += 0.7
    with monkeypatch.context() as patch:  # theirs calls float() on an array of one element, which numpy 2.4 refuses
        patch.setattr(Tensor, "numpy", lambda value: value.squeeze())
        acc1, acc5 = zeroshot_classification.accuracy(scores, labels, topk=(1, 5))
    assert metrics.topk_accuracy(scores, labels, 1) == pytest.approx(acc1)
    assert metrics.topk_accuracy(scores, labels, 5) == pytest.approx(acc5)
    correct = metrics.label_ranks(scores, labels) == 0
    expected = balanced_accuracy_score(labels.numpy(), scores.argmax(1).numpy())
    assert metrics.mean_per_class_recall(correct, labels) == pytest.approx(expected, abs=1e-12)


def test_nothing_that_is_no_number_passes() -> None:
    good, broken = torch.eye(3), torch.eye(3)
    broken[1, 2] = torch.nan
    with pytest.raises(ValueError, match="row 1 and 0 others"):
        metrics.ranks(broken, good, torch.arange(3))
    with pytest.raises(ValueError, match="caption embeddings must be finite"):
        metrics.ranks(good, broken, torch.arange(3))
    with pytest.raises(ValueError, match="scores must be finite"):
        metrics.label_ranks(broken, torch.arange(3))
    with pytest.raises(ValueError, match="no samples"):
        metrics.recall_at(torch.empty(0, dtype=torch.int64), 1)


def test_owners_and_labels_are_checked() -> None:
    with pytest.raises(ValueError, match="image 2 has no caption"):
        metrics.ranks(torch.eye(3), torch.eye(3), torch.tensor([0, 1, 1]))
    with pytest.raises(ValueError, match="owner holds 3, but there are 3 images"):
        metrics.ranks(torch.eye(3), torch.eye(3), torch.tensor([0, 1, 3]))
    with pytest.raises(ValueError, match="labels holds -1, but there are 3 classes"):
        metrics.label_ranks(torch.eye(3), torch.tensor([0, -1, 2]))

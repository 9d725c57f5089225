import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from clipkit.losses.infonce import InfoNCE, infonce
from clipkit.towers.base import Features
from clipkit.towers.scale import LogitScale


def unit(rows, width, seed):
    x = torch.randn(rows, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return F.normalize(x, dim=1).requires_grad_()


def slow(image, text, scale, keys=None, duplicates="negatives"):
    """The definition, one pair of rows at a time."""
    n, total = len(image), 0.0
    for a, b in ((image, text), (text, image)):
        for i in range(n):
            logits = [scale * (a[i] * b[j]).sum() for j in range(n)]
            same = [j for j in range(n) if j == i or (keys is not None and bool((keys[i] == keys[j]).any()))]
            kept = [j for j in range(n) if duplicates != "ignore" or j == i or j not in same]
            positives = same if duplicates == "positives" else [i]
            denominator = torch.stack([logits[j] for j in kept]).logsumexp(0)
            total = total + denominator - torch.stack([logits[j] for j in positives]).mean()
    return total / (2 * n)


@settings(max_examples=30, deadline=None)
@given(
    rows=st.integers(1, 9),
    tile=st.integers(1, 10),
    duplicates=st.sampled_from(["negatives", "ignore", "positives"]),
    scale=st.sampled_from([1.0, 14.3, 100.0]),
    seed=st.integers(0, 99),
)
def test_loss_and_gradients_are_those_of_the_slow_definition(rows, tile, duplicates, scale, seed):
    image, text = unit(rows, 5, seed), unit(rows, 5, seed + 1000)
    log_scale = torch.tensor(math.log(scale), dtype=torch.float64, requires_grad=True)
    keys = torch.randint(0, 3, (rows, 2), generator=torch.Generator().manual_seed(seed))
    fast = infonce(image, text, log_scale.exp(), duplicates=duplicates, keys=keys, tile=tile)
    want = slow(image, text, log_scale.exp(), keys, duplicates)
    torch.testing.assert_close(fast, want, rtol=1e-12, atol=1e-12)
    inputs = (image, text, log_scale)
    for got, expected in zip(torch.autograd.grad(fast, inputs), torch.autograd.grad(want, inputs), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)


def test_without_duplicates_it_is_torch_cross_entropy():
    image, text = unit(6, 4, 0), unit(6, 4, 1)
    logits = 20 * image @ text.T
    target = torch.arange(6)
    want = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    torch.testing.assert_close(infonce(image, text, torch.tensor(20.0, dtype=torch.float64)), want)


def test_hard_logits_neither_overflow_nor_underflow_in_float32():
    x = torch.eye(3)
    assert infonce(x, x, torch.tensor(100.0)).item() == pytest.approx(0.0, abs=1e-6)
    assert infonce(x, -x, torch.tensor(100.0)).item() == pytest.approx(100 + math.log(2), rel=1e-5)


def test_autocast_leaves_the_logits_in_float32():
    image, text = unit(8, 16, 0).float(), unit(8, 16, 1).float()
    scale = torch.tensor(100.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = infonce(image, text, scale)
    assert inside.dtype == torch.float32
    assert inside.item() == infonce(image, text, scale).item()


def test_the_loss_class_reads_equal_captions_and_labels_from_the_batch():
    pooled = {"image": Features(unit(4, 8, 0)), "text": Features(unit(4, 8, 1))}
    batch = {
        "id": torch.arange(4),
        "content": {"text": torch.tensor([7, 7, 8, 9])},
        "label": torch.tensor([1, 2, 3, 3]),
    }
    loss = InfoNCE(LogitScale(), duplicates="positives")
    keys = torch.tensor([[0, 7, 1], [1, 7, 2], [2, 8, 3], [3, 9, 3]])
    want = slow(pooled["image"].pooled, pooled["text"].pooled, loss.scale().double(), keys, "positives")
    assert loss(pooled, batch).item() == pytest.approx(want.item(), rel=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: infonce(torch.eye(3), torch.eye(3)[:2], torch.tensor(1.0)), "pairs rows"),
        (lambda: infonce(torch.empty(0, 3), torch.empty(0, 3), torch.tensor(1.0)), "empty batch"),
        (lambda: infonce(torch.eye(3), torch.eye(3), torch.tensor(1.0), duplicates="ignore"), "needs keys"),
        (lambda: InfoNCE(LogitScale(), pair=("image",)), "two fields"),
        (lambda: InfoNCE(LogitScale(), duplicates="no"), "negatives, ignore or positives"),
        (lambda: InfoNCE(LogitScale(), tile=0), "at least 1"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()

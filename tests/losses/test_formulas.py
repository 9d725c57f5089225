"""Each loss and its gradients against its paper's formula, in double precision, over tiles of any size."""

import importlib.util
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from open_clip.loss import ClipLoss, SigLipLoss

from clipkit.losses.distillation import Distillation, distillation
from clipkit.losses.infonce import infonce
from clipkit.losses.mutual_information import MutualInformation, mutual_information
from clipkit.losses.sigmoid import Sigmoid, sigmoid
from clipkit.losses.slip import SLIP, nt_xent
from clipkit.losses.sogclr import SogCLR
from clipkit.losses.tile import Prefixes
from clipkit.losses.triplet import Triplet, triplet
from clipkit.towers.base import Features
from clipkit.towers.scale import LogitScale

spec = importlib.util.spec_from_file_location("formulas", Path(__file__).with_name("formulas.py"))
slow = importlib.util.module_from_spec(spec)
spec.loader.exec_module(slow)
TILES = [3, 7, 64]


def unit(rows, width, seed):
    x = torch.randn(rows, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return F.normalize(x, dim=1).requires_grad_()


def scalar(value):
    return torch.tensor(float(value), dtype=torch.float64, requires_grad=True)


def same(got, want, inputs):
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    ours, theirs = (torch.autograd.grad(loss, inputs, allow_unused=True) for loss in (got, want))
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, torch.zeros_like(mine) if other is None else other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("duplicates", ["negatives", "ignore", "positives"])
@pytest.mark.parametrize(("scale", "bias"), [(10.0, -10.0), (100.0, 3.0)])
def test_sigmoid(tile, duplicates, scale, bias):
    x, y, scale, bias = unit(8, 5, 0), unit(8, 5, 1), scalar(scale), scalar(bias)
    keys = torch.randint(0, 3, (8, 2), generator=torch.Generator().manual_seed(1))
    want = slow.sigmoid(x, y, scale, bias, keys, duplicates)
    same(sigmoid(x, y, scale, bias, duplicates=duplicates, keys=keys, tile=tile), want, (x, y, scale, bias))


def test_in_one_process_they_are_open_clips():
    x, y, scale, bias = unit(33, 8, 0), unit(33, 8, 1), scalar(20), scalar(-4)
    same(infonce(x, y, scale, tile=10), ClipLoss()(x, y, scale), (x, y, scale))
    same(sigmoid(x, y, scale, bias, tile=10), SigLipLoss()(x, y, scale, bias), (x, y, scale, bias))


@pytest.mark.parametrize("tile", TILES)
def test_label_smoothing_and_one_side(tile):
    x, y, scale = unit(8, 5, 0), unit(8, 5, 1), scalar(14)
    same(infonce(x, y, scale, label_smoothing=0.1, tile=tile), slow.smoothed(x, y, scale, 0.1), (x, y, scale))
    for sides, a, b in (("first", x, y), ("second", y, x)):
        want = F.cross_entropy(scale * a @ b.T, torch.arange(8))
        same(infonce(x, y, scale, sides=sides, tile=tile), want, (x, y, scale))


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("scale", [5.0, 100.0])
def test_distillation(tile, scale):
    x, y, scale = unit(8, 5, 0), unit(8, 5, 1), scalar(scale)
    teacher_x, teacher_y = unit(8, 3, 2).detach(), unit(8, 3, 3).detach()
    want = slow.distillation(x, y, scale, teacher_x, teacher_y, 70.0)
    same(distillation(x, y, scale, teacher_x, teacher_y, 70.0, tile=tile), want, (x, y, scale))


@pytest.mark.parametrize("tile", TILES)
def test_triplet(tile):
    x, y = unit(8, 3, 0), unit(8, 3, 1)
    same(triplet(x, y, margin=0.2, tile=tile), slow.triplet(x, y, 0.2), (x, y))
    same(triplet(x, y, margin=0.2, negatives="mean", tile=tile), slow.triplet_of_all(x, y, 0.2), (x, y))


def test_the_triplet_loss_warms_up_over_all_negatives_by_position():
    x, y = unit(6, 4, 0).detach(), unit(6, 4, 1).detach()
    features = {"image": Features(x), "text": Features(y)}
    loss, mean, hardest = Triplet(warmup=100), slow.triplet_of_all(x, y, 0.2), slow.triplet(x, y, 0.2)
    for position, want in ((0, mean), (99, mean), (100, hardest), (1000, hardest)):
        torch.testing.assert_close(loss(features, {"position": position}), want)
    torch.testing.assert_close(loss.eval()(features, {"position": 0}), hardest)
    assert not loss.state_dict()
    with pytest.raises(ValueError, match="`position`, which is missing"):
        loss.train()(features, {})


@pytest.mark.parametrize("tile", TILES)
def test_nt_xent(tile):
    first, second = unit(6, 4, 0), unit(6, 4, 1)
    same(nt_xent(first, second, 0.1, tile=tile), slow.nt_xent(first, second, 0.1), (first, second))


@pytest.mark.parametrize("tile", TILES)
def test_bounds_of_mutual_information(tile):
    x, y, scale = unit(8, 5, 0), unit(8, 5, 1), scalar(7)
    inputs = (x, y, scale)
    same(mutual_information(x, y, scale, bound="dv", tile=tile), slow.donsker_varadhan(scale * x @ y.T), inputs)
    same(mutual_information(x, y, scale, bound="infonce", tile=tile), math.log(8) - ClipLoss()(x, y, scale), inputs)
    critic = scale * x @ y.T
    js = slow.jensen_shannon(critic)
    want = js + (slow.smile(critic, 2.0) - js).detach()
    same(mutual_information(x, y, scale, bound="smile", clip=2.0, tile=tile), want, inputs)


@pytest.mark.parametrize("name", ["infonce", "sigmoid", "distillation"])
@pytest.mark.parametrize("tile", [3, 64])
def test_prefixes_are_the_loss_of_each_renormalised_prefix(name, tile):
    # rows of any norm: the gradient through the norms counts too
    x, y = (
        torch.randn(7, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(k)).requires_grad_()
        for k in (0, 1)
    )
    scale, bias = scalar(9), scalar(-2)
    teacher = [unit(7, 3, 2).detach(), unit(7, 3, 3).detach(), 50.0]
    calls = {
        "infonce": lambda a, b, **kw: infonce(a, b, scale, **kw),
        "sigmoid": lambda a, b, **kw: sigmoid(a, b, scale, bias, **kw),
        "distillation": lambda a, b, **kw: distillation(a, b, scale, *teacher, **kw),
    }
    inputs = (x, y, scale, bias) if name == "sigmoid" else (x, y, scale)
    want = sum(
        weight * calls[name](F.normalize(x[:, :width], dim=1), F.normalize(y[:, :width], dim=1))
        for width, weight in ((2, 0.5), (3, 1.0), (6, 2.0))
    )
    same(calls[name](x, y, prefixes=Prefixes((2, 3, 6), (0.5, 1.0, 2.0)), tile=tile), want, inputs)


def sogclr_step(loss, x, y, ids):
    return loss({"image": Features(x), "text": Features(y)}, {"id": ids})


def test_sogclr_over_two_batches():
    x, y, scale = unit(6, 4, 0), unit(6, 4, 1), scalar(8)
    loss = SogCLR(lambda: scale, 10, gamma=0.3, rho=6.5, eps=1e-4).double()
    ids = torch.tensor([9, 2, 4, 7, 0, 1])
    want, kept = slow.sogclr(x, y, scale, None, None, 0.3, 6.5, 1e-4)
    same(sogclr_step(loss, x, y, ids), want, (x, y, scale))
    torch.testing.assert_close(loss.log_image[ids].exp(), kept[0])
    assert loss.log_image.isnan().sum() == 4  # those not seen
    # the same samples in another order: what they remember comes with them
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    a, b = unit(6, 4, 2), unit(6, 4, 3)
    want, kept = slow.sogclr(a, b, scale, kept[0][order], kept[1][order], 0.3, 6.5, 1e-4)
    same(sogclr_step(loss, a, b, ids[order]), want, (a, b, scale))
    torch.testing.assert_close(loss.log_text[ids[order]].exp(), kept[1])
    before = loss.log_text.clone()
    sogclr_step(loss.eval(), x, y, ids)
    torch.testing.assert_close(loss.log_text, before, equal_nan=True)


def test_a_skipped_step_is_not_remembered():
    x, y, scale = unit(6, 4, 0), unit(6, 4, 1), scalar(8)
    loss, ids = SogCLR(lambda: scale, 10, gamma=0.3).double(), torch.tensor([9, 2, 4, 2, 0, 1])
    sogclr_step(loss, x, y, ids)
    before = loss.log_image.clone(), loss.log_text.clone()
    for skipped in (1.0, 0.0):
        sogclr_step(loss, torch.where(torch.arange(6)[:, None] == 3, torch.nan, x) if skipped else y, y, ids)
        assert not torch.equal(loss.log_image.nan_to_num(), before[0].nan_to_num())
        loss.take_back_(torch.tensor(skipped))
        for memory, old in zip((loss.log_image, loss.log_text), before, strict=True):
            assert torch.equal(memory.nan_to_num(), old.nan_to_num()) == bool(skipped)


def gaussians(truth, pairs, width, seed):
    """Correlated pairs and, as embeddings whose product it is, the log-ratio of their joint and marginal densities."""
    rho2 = 1 - math.exp(-2 * truth / width)
    generator = torch.Generator().manual_seed(seed)
    x, noise = (torch.randn(pairs, width, dtype=torch.float64, generator=generator) for _ in range(2))
    y = math.sqrt(rho2) * x + math.sqrt(1 - rho2) * noise
    one, cut = torch.ones(pairs, 1, dtype=torch.float64), -rho2 / (2 * (1 - rho2))
    x_norm, y_norm = (cut * z.square().sum(1, keepdim=True) for z in (x, y))
    constant = -width / 2 * math.log(1 - rho2)
    return (
        torch.cat([x * math.sqrt(rho2) / (1 - rho2), x_norm + constant, one], dim=1),
        torch.cat([y, one, y_norm], dim=1),
    )


@pytest.mark.parametrize("truth", [2.04, 6.64])
@pytest.mark.parametrize("bound", ["infonce", "dv", "smile"])
def test_estimates_on_correlated_gaussians(bound, truth):
    """With the best critic and batches of 256: within a tenth of the truth, but for InfoNCE where ln 256 = 5.55 is below it."""
    one = torch.ones((), dtype=torch.float64)
    estimates = [
        mutual_information(*gaussians(truth, 256, 20, seed), one, bound=bound, clip=10.0).item() for seed in range(40)
    ]
    mean = sum(estimates) / len(estimates)
    if bound == "infonce" and truth > math.log(256):
        assert max(estimates) <= math.log(256)
        assert mean > 0.8 * math.log(256)
    else:
        assert mean == pytest.approx(truth, rel=0.1)


def test_zeros_are_vectors_and_nan_stays_nan():
    x, y, scale, bias = unit(4, 3, 0), unit(4, 3, 1), scalar(10), scalar(-1)
    zeros = x.detach().clone()
    zeros[1] = 0
    zeros.requires_grad_()
    for loss in (
        infonce(zeros, y, scale),
        infonce(zeros, y, scale, prefixes=Prefixes((2, 3), (1.0, 1.0))),
        triplet(zeros, y),
        triplet(zeros, y, negatives="mean"),
    ):
        assert loss.isfinite()
        assert torch.autograd.grad(loss, zeros)[0].isfinite().all()
    broken = y.detach().clone()
    broken[2, 0] = math.nan
    for loss in (
        infonce(x, broken, scale),
        sigmoid(x, broken, scale, bias),
        mutual_information(x, broken, scale, bound="dv"),
        triplet(x, broken, negatives="mean"),
    ):
        assert loss.isnan()


def test_the_classes_read_fields_and_batch():
    x, y = unit(4, 3, 0), unit(4, 3, 1)
    features = {name: Features(value) for name, value in (("image", x), ("text", y))}
    scale = LogitScale(bias=-3.0).double()
    stored = {"teacher_image": torch.randn(4, 5).half(), "teacher_text": torch.randn(4, 5).half()}
    by_batch = Distillation(scale.forward)(features, stored)
    live = {name: Features(F.normalize(value.float(), dim=1)) for name, value in stored.items()}
    assert by_batch.item() == pytest.approx(Distillation(scale.forward)(features | live, {}).item(), rel=1e-6)
    got = Sigmoid(scale.forward, lambda: scale.bias)(features, {})
    assert got.item() == sigmoid(x, y, scale(), scale.bias).item()
    assert Triplet(margin=0.3)(features, {}).item() == triplet(x, y, margin=0.3).item()
    got = MutualInformation(scale.forward, bound="dv")(features, {})
    assert got.item() == -mutual_information(x, y, scale(), bound="dv").item()
    slip = SLIP(3, hidden=8, out=4).double()
    views = {"image_view1": Features(x), "image_view2": Features(y)}
    assert slip(views, {}).item() == pytest.approx(
        nt_xent(*(F.normalize(slip.head(z), dim=1) for z in (x, y)), 0.1).item()
    )


def test_repeated_ids_as_negatives_are_said_once():
    loss = Sigmoid(lambda: scalar(1), lambda: scalar(0))
    features, batch = {name: Features(unit(4, 3, 0)) for name in ("image", "text")}, {"id": torch.tensor([1, 1, 2, 2])}
    with pytest.warns(UserWarning, match="2 of 4 samples of the first batch repeat"):
        loss(features, batch)
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss(features, batch)


X = torch.eye(4)
ONE = torch.ones(())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sigmoid(X, X[:2], ONE, ONE), "pairs rows"),
        (lambda: triplet(X, X[:, :2]), "pairs rows"),
        (lambda: nt_xent(X, X[:2]), "pair rows"),
        (lambda: nt_xent(X, X, 0.0), "above 0"),
        (lambda: distillation(X, X, ONE, X[:2], X[:2], 1.0), "for 4 rows"),
        (lambda: distillation(X, X, ONE, X, X[:, :2], 1.0), "teacher"),
        (lambda: infonce(X, X, ONE, prefixes=Prefixes((8,), (1.0,))), "wider"),
        (lambda: Prefixes((4, 2), (1.0, 1.0)), "grow"),
        (lambda: Prefixes((2, 4), (1.0,)), "as many weights"),
        (lambda: mutual_information(X[:1], X[:1], ONE), "at least 2 pairs"),
        (lambda: MutualInformation(lambda: ONE, bound="mine"), "infonce, dv or smile"),
        (lambda: Triplet(margin=0.0), "above 0"),
        (lambda: Triplet(warmup=-1), "warmup must be a number of samples"),
        (lambda: triplet(X, X, negatives="semi"), "hardest or mean"),
        (lambda: triplet(X, X[:, :2], negatives="mean"), "pairs rows"),
        (lambda: Triplet()({"image": Features(X)}, {}), "'text', which no tower makes"),
        (lambda: Distillation(lambda: ONE)({"image": Features(X), "text": Features(X)}, {}), "'teacher_image'"),
        (lambda: SogCLR(lambda: ONE, 4, gamma=0.0), "gamma"),
        (lambda: SogCLR(lambda: ONE, 4)({"image": Features(X), "text": Features(X)}, {}), "`id`"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()

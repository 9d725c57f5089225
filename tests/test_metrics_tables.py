"""Tables, multi-label precision, groups, calibration and geometry against other programs and slow formulas."""

import math

import numpy as np
import pytest
import torch
from clip_benchmark.metrics import zeroshot_classification
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, confusion_matrix, precision_recall_fscore_support
from torch.nn.functional import normalize
from torchmetrics.functional.classification import multiclass_calibration_error

from clipkit import metrics


@settings(deadline=None, max_examples=50)
@given(st.integers(2, 7), st.integers(1, 40), st.integers(0, 10_000))
def test_tables_equal_scikit_learn(classes: int, samples: int, seed: int) -> None:
    torch.manual_seed(seed)
    scores = torch.randint(-2, 3, (samples, classes)).float()
    labels = torch.randint(0, classes, (samples,))
    predicted = metrics.predictions(scores, labels)
    assert torch.equal(predicted == labels, metrics.label_ranks(scores, labels) == 0)
    assert (scores.gather(1, predicted[:, None]).squeeze(1) == scores.max(1).values).all()
    table = metrics.class_table(predicted, labels, classes)
    names = list(range(classes))
    expected = precision_recall_fscore_support(labels, predicted, labels=names, zero_division=0)
    for ours, theirs in zip(table, expected, strict=True):
        assert np.allclose(ours.numpy(), theirs, atol=1e-6)
    averages = metrics.averages(predicted, labels, classes)
    for average in ("macro", "micro", "weighted"):
        occurring = sorted(set(labels.tolist()) | set(predicted.tolist()))
        theirs = precision_recall_fscore_support(labels, predicted, labels=occurring, average=average, zero_division=0)
        for name, value in zip(("precision", "recall", "f1"), theirs, strict=False):
            assert averages[f"{average}_{name}"] == pytest.approx(value, abs=1e-6)
    matrix = confusion_matrix(labels, predicted, labels=names)
    cells = metrics.confusions(predicted, labels)
    assert {(a, b): n for a, b, n in cells} == {
        (a, b): matrix[a, b] for a in names for b in names if a != b and matrix[a, b]
    }
    assert [n for _, _, n in cells] == sorted((n for _, _, n in cells), reverse=True)
    assert metrics.confusions(predicted, labels, most=2) == cells[:2]


def slow_eleven(scores: list[float], targets: list[bool]) -> float:
    order = sorted(range(len(scores)), key=lambda n: (-scores[n], targets[n]))
    total, points = sum(targets), []
    for at in range(1, len(order) + 1):
        hits = sum(targets[n] for n in order[:at])
        points.append((hits / total, hits / at))
    return sum(max(p for r, p in points if r >= tenth / 10 - 1e-12) for tenth in range(11)) / 11


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 4), st.integers(1, 40), st.integers(0, 10_000))
def test_average_precision_equals_clip_benchmark_scikit_learn_and_a_loop(classes: int, images: int, seed: int) -> None:
    torch.manual_seed(seed)
    scores = torch.rand(images, classes)
    targets = torch.rand(images, classes) < 0.3
    targets[0] = True
    area = metrics.average_precision(scores, targets)
    theirs = zeroshot_classification.average_precision_per_class(scores, targets)
    assert torch.allclose(area.float(), theirs, atol=1e-6)
    assert area.numpy() == pytest.approx(
        [average_precision_score(targets[:, c].numpy(), scores[:, c].numpy()) for c in range(classes)]
    )
    coarse = (scores * 4).round()
    for values in (scores, coarse):
        eleven = metrics.eleven_point_precision(values, targets)
        assert eleven.tolist() == pytest.approx(
            [slow_eleven(values[:, c].tolist(), targets[:, c].tolist()) for c in range(classes)]
        )


def test_ties_and_empty_classes_of_several_labels() -> None:
    scores, targets = torch.zeros(4, 2), torch.tensor([[True, False], [False, False], [False, False], [False, False]])
    area, eleven = metrics.average_precision(scores, targets), metrics.eleven_point_precision(scores, targets)
    assert area[0] == eleven[0] == 0.25  # a tie: the wrong ones come first
    assert math.isnan(area[1])
    assert math.isnan(eleven[1])
    with pytest.raises(ValueError, match="scores must be finite"):
        metrics.average_precision(torch.full((2, 1), torch.nan), torch.ones(2, 1))
    with pytest.raises(ValueError, match="one score and one target"):
        metrics.average_precision(torch.zeros(4, 3), targets)


def test_groups() -> None:
    values = torch.tensor([1.0, 0.0, 0.5, 1.0])
    found = metrics.by_group(values, ["b", "a", "b", "c"])
    assert found.figures == {"a": 0.0, "b": 0.75, "c": 1.0}
    assert found.counts == {"a": 1, "b": 2, "c": 1}
    assert (found.worst, found.gap) == ("a", 1.0)
    with pytest.raises(ValueError, match="4 samples, 3 groups"):
        metrics.by_group(values, ["a", "b", "c"])


def test_calibration_error_equals_torchmetrics_and_a_loop() -> None:
    torch.manual_seed(0)
    logits, labels = 2 * torch.randn(500, 6), torch.randint(0, 6, (500,))
    probabilities = logits.softmax(1)
    sure, guess = probabilities.max(1)
    ours = metrics.expected_calibration_error(sure, guess == labels)
    theirs = multiclass_calibration_error(probabilities, labels, num_classes=6, n_bins=15, norm="l1")
    assert ours == pytest.approx(float(theirs), abs=1e-6)
    order = sure.argsort().tolist()
    correct, expected = (guess == labels).double(), 0.0
    for part in np.array_split(order, 10):  # 500 into 10: equal parts
        expected += abs(float(correct[part].mean() - sure[part].double().mean())) / 10
    assert metrics.expected_calibration_error(sure, guess == labels, 10, "mass") == pytest.approx(expected, abs=1e-9)
    with pytest.raises(ValueError, match="binning 'x' is not known"):
        metrics.expected_calibration_error(sure, guess == labels, 10, "x")


def test_the_fitted_scale_is_the_best() -> None:
    torch.manual_seed(1)
    scores = torch.randn(4000, 5)
    labels = (7.0 * scores).softmax(1).multinomial(1).squeeze(1)  # drawn at scale 7
    scale = metrics.fit_scale(scores, labels)
    assert scale == pytest.approx(7, rel=0.1)
    best = metrics.negative_log_likelihood(scores, labels, scale)
    assert best < metrics.negative_log_likelihood(scores, labels, scale * 1.01)
    assert best < metrics.negative_log_likelihood(scores, labels, scale / 1.01)


@pytest.mark.parametrize("tile", [1, 7, 64])
def test_geometry_equals_its_formulas(tile: int) -> None:
    torch.manual_seed(2)
    image, text = normalize(torch.randn(23, 8), dim=1), normalize(torch.randn(31, 8) + 0.4, dim=1)
    owner = torch.randint(0, 23, (31,))
    distances = torch.pdist(image.double()).square()  # Wang and Isola's own code
    assert metrics.uniformity(image, tile) == pytest.approx(float((-2 * distances).exp().mean().log()), abs=1e-9)
    expected = float((image[owner] - text).double().norm(dim=1).square().mean())
    assert metrics.alignment(image, text, owner, tile) == pytest.approx(expected, abs=1e-6)
    assert metrics.modality_gap(image, text) == pytest.approx(float((image.mean(0) - text.mean(0)).norm()), abs=1e-6)
    assert metrics.uniformity(image[:1]) is None

"""Votes of the nearest neighbours against a slow loop and scikit-learn, ties among them."""

import math

import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier
from torch.nn.functional import normalize

from clipkit import metrics
from clipkit.evaluation.knn import vote_ranks


def slow(train, train_labels, test, test_labels, classes, k, temperature):
    """The definition, one row at a time: nearest first, equal ones by row; a tie of votes is a miss."""
    weighted, plain = [], []
    for row, label in zip(test, test_labels.tolist(), strict=True):
        cosines = metrics.cosines(row[None], train)[0].tolist()
        nearest = sorted(range(len(train)), key=lambda i: (-cosines[i], i))[:k]
        votes, count = [0.0] * classes, [0] * classes
        for i in nearest:
            votes[train_labels[i]] += math.exp(cosines[i] / temperature - 1 / temperature)
            count[train_labels[i]] += 1
        weighted.append(sum(v >= votes[label] for v in votes) - 1)
        plain.append(sum(v >= count[label] for v in count) - 1)
    return weighted, plain


@pytest.mark.parametrize("seed", range(5))
def test_a_slow_loop_finds_the_same(seed):
    generator = torch.Generator().manual_seed(seed)
    train = normalize(torch.randint(-1, 2, (60, 5), generator=generator).float() + 0.01, dim=1)  # many rows are equal
    test = normalize(torch.randint(-1, 2, (25, 5), generator=generator).float() + 0.01, dim=1)
    labels = torch.randint(0, 4, (60,), generator=generator), torch.randint(0, 4, (25,), generator=generator)
    found = vote_ranks(train, labels[0], test, labels[1], classes=4, k=[1, 2, 7])  # ties at the edge of the seven
    found |= vote_ranks(train, labels[0], test, labels[1], classes=4, k=[60])
    for k in (1, 2, 7, 60):
        weighted, plain = slow(train, labels[0], test, labels[1], 4, k, 0.07)
        assert found[f"knn_acc1@{k}"].lt(1).tolist() == [rank < 1 for rank in weighted]
        assert found[f"knn_majority_acc1@{k}"].tolist() == plain


def test_scikit_learn_agrees_where_there_is_no_tie():
    generator = torch.Generator().manual_seed(0)
    train, test = (normalize(torch.randn(n, 6, generator=generator), dim=1) for n in (300, 80))
    train_labels, test_labels = train[:, 0].gt(0).long(), test[:, 0].gt(0).long()
    found = vote_ranks(train, train_labels, test, test_labels, classes=2, k=[5, 31])
    for k in (5, 31):  # odd, and two classes: no tie
        model = KNeighborsClassifier(k, algorithm="brute").fit(train.numpy(), train_labels.numpy())
        right = model.predict(test.numpy()) == test_labels.numpy()
        assert found[f"knn_majority_acc1@{k}"].lt(1).tolist() == right.tolist()


def test_a_collapsed_encoder_scores_nothing():
    same = normalize(torch.ones(8, 3), dim=1)
    labels = torch.arange(8) % 4
    found = vote_ranks(same, labels, same, labels, classes=4, k=[8])
    assert found["knn_acc1@8"].tolist() == [3] * 8
    assert found["knn_majority_acc1@8"].tolist() == [3] * 8


def test_tiles_change_nothing(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    train, test = (normalize(torch.randn(n, 6, generator=generator), dim=1) for n in (50, 33))
    labels = torch.arange(50) % 3, torch.arange(33) % 3
    whole = vote_ranks(train, labels[0], test, labels[1], classes=3, k=[4])
    monkeypatch.setattr("clipkit.evaluation.knn._SCORES_AT_ONCE", 200)
    parts = vote_ranks(train, labels[0], test, labels[1], classes=3, k=[4])
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_features_that_are_no_numbers_are_refused():
    bad = torch.full((2, 3), float("nan"))
    with pytest.raises(ValueError, match="training features must be finite: row 0 and 1 others"):
        vote_ranks(bad, torch.zeros(2).long(), torch.ones(1, 3), torch.zeros(1).long(), classes=1, k=[1])

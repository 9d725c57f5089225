"""Whole evaluations on pictures that nobody drew for a test: Debian's Tux Paint stamps, and scikit-learn's digits."""

import csv
import hashlib
from pathlib import Path

import pytest
import torch

from clipkit.evaluation.encodings import Encodings
from clipkit.evaluation.knn import NearestNeighbours
from clipkit.evaluation.linear_probe import LinearProbe
from clipkit.evaluation.retrieval import Retrieval
from clipkit.evaluation.zero_shot import ZeroShot

from . import probe_jobs
from .test_probes import NAMES, folders

STAMPS = Path(__file__).resolve().parents[2] / ".fixtures" / "stamps"
needs_stamps = pytest.mark.skipif(not STAMPS.is_dir(), reason="needs Debian's pictures: run `make fixtures` (161 MB)")
__all__ = ["folders"]  # a fixture


def captions(suffix):
    """Each picture with the English line of its text file, in the order of their names."""
    found = {}
    for picture in sorted(STAMPS.rglob(f"*{suffix}")):
        text = picture.with_suffix(".txt")
        if text.is_file():
            found[picture] = text.read_text(encoding="utf-8", errors="replace").split("\n")[0].strip()
    return found


@pytest.fixture(scope="module")
def stamps(tmp_path_factory):
    """Every fourth picture and its caption, as a CSV."""
    path = tmp_path_factory.mktemp("stamps") / "stamps.csv"
    rows = list(captions(".png").items())[::4]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([("filepath", "caption"), *rows])
    return path, rows


@needs_stamps
def test_the_pictures_are_those_that_debian_has():
    drawn, photographed = captions(".svg"), captions(".png")
    stems = {picture.with_suffix("") for picture in [*drawn, *photographed]}
    assert (len(photographed), len(stems)) == (785, 950)
    assert len({*drawn.values(), *photographed.values()}) == 804
    content = hashlib.sha256()
    for picture in photographed:
        content.update(picture.relative_to(STAMPS).as_posix().encode() + hashlib.sha256(picture.read_bytes()).digest())
    assert content.hexdigest() == "46a55bd5b7a4772ecb1faf255451c59de6e4b9afd61f25e9b1384c9026f7fb28"
    assert "GPL-2" in (STAMPS / "copyright").read_text() or "GNU General Public" in (STAMPS / "copyright").read_text()


@needs_stamps
def test_retrieval_is_the_dense_formula(stamps):
    path, rows = stamps
    encodings = Encodings(probe_jobs.encoder())
    evaluator = Retrieval(path)
    figures = evaluator.run(encodings).figures
    assert figures["samples"] == figures["captions"] == len(rows) == 197
    image, text = (encodings.images(evaluator.data.images), encodings.texts([caption for _, caption in rows]))
    scores = (text.double() @ image.double().T).float()  # caption by image
    assert len({caption for _, caption in rows}) < len(rows), "pictures share captions, which ties them"
    for way, matrix in (("image", scores), ("text", scores.T)):
        ranks = (matrix >= matrix.diagonal()[:, None]).sum(1) - 1  # a tie is a miss
        for k in (1, 5, 10):
            assert figures[f"{way}_retrieval_recall@{k}"] == pytest.approx(float((ranks < k).double().mean()))
    assert figures["image_retrieval_recall@10"] < 0.3, "random weights know nothing; 0.05 is chance"


@needs_stamps
def test_neighbours_know_a_mirrored_picture(tmp_path):
    """Learn from pictures and score their mirrored forms, which Tux Paint ships beside them."""
    pairs = []
    for mirrored in sorted(STAMPS.rglob("*_mirror.png")):
        plain = mirrored.with_name(mirrored.name.replace("_mirror", ""))
        if plain.is_file():
            pairs.append((plain, mirrored))
    assert len(pairs) >= 5
    for number, (plain, mirrored) in enumerate(pairs):
        for part, picture in (("train", plain), ("test", mirrored)):
            folder = tmp_path / part / f"{number:02d}"
            folder.mkdir(parents=True)
            (folder / "a.png").write_bytes(picture.read_bytes())
    figures = NearestNeighbours(tmp_path, k=[1]).run(Encodings(probe_jobs.encoder())).figures
    assert figures["knn_acc1@1"] > 2 / len(pairs)


def test_digits_zero_shot_takes_mnists_names(folders):
    evaluator = ZeroShot(folders / "test", classnames="mnist", templates="mnist")
    assert evaluator.data.classnames == tuple("0123456789")
    assert evaluator.templates == ('a photo of the number: "{c}".',)
    encodings = Encodings(probe_jobs.encoder())
    found = evaluator.run(encodings)
    texts = encodings.encoder.encode_text([f'a photo of the number: "{digit}".' for digit in "0123456789"])
    scores = encodings.images(evaluator.data.images).double() @ texts.double().T
    right = scores.argmax(1) == evaluator.data.labels
    assert found.figures["acc1"] == pytest.approx(float(right.double().mean()))
    assert found.figures["samples"] == 150
    assert torch.equal(found.outcomes["acc1"], right)


def test_digits_probe_beats_neighbours_of_chance(folders):
    encodings = Encodings(probe_jobs.encoder())
    probe, neighbours = (
        LinearProbe(folders, features=["pooled"]),
        NearestNeighbours(folders, features=["pooled"], k=[5]),
    )
    assert probe.train.classnames == tuple(f"{label} {name}" for label, name in enumerate(NAMES))
    figures = probe.run(encodings).figures | neighbours.run(encodings).figures
    assert figures["lp_acc1_pooled"] > 0.5, "random features of 32 numbers; chance is 0.1"
    assert figures["knn_acc1@5_pooled"] > 0.4

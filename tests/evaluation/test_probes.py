"""Linear probe and nearest neighbours on real digits: splits, shots, cache, ranks."""

import io
import logging
from pathlib import Path

import pytest
import torch
import webdataset
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

import clipkit
from clipkit.config import LinearProbeSpec, NearestNeighboursSpec
from clipkit.evaluation import feature_cache
from clipkit.evaluation.encodings import Encodings
from clipkit.evaluation.knn import NearestNeighbours
from clipkit.evaluation.linear_probe import LinearProbe
from clipkit.evaluation.train_test import open_train_test

from . import probe_jobs

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TRAIN, TEST = slice(0, 200), slice(1000, 1150)


def pictures(rows):
    data = load_digits()
    for number, (pixels, label) in enumerate(zip(data.images[rows], data.target[rows], strict=True)):
        file = io.BytesIO()
        Image.fromarray((pixels * 15.9).astype("uint8")).convert("RGB").resize((16, 16)).save(file, "png")
        yield f"{number:05d}", file.getvalue(), int(label)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """CLASS/image folders in train/ and test/, numbered so that they sort by label."""
    root = tmp_path_factory.mktemp("digits")
    for part, rows in (("train", TRAIN), ("test", TEST)):
        for key, data, label in pictures(rows):
            place = root / part / f"{label} {NAMES[label]}"
            place.mkdir(parents=True, exist_ok=True)
            (place / f"{key}.png").write_bytes(data)
    return root


@pytest.fixture
def shards(tmp_path):
    """The same in CLIP_benchmark's layout."""
    root = tmp_path / "wds_digits"
    for part, rows in (("train", TRAIN), ("test", TEST)):
        (root / part).mkdir(parents=True)
        with webdataset.TarWriter(str(root / part / "0.tar")) as sink:
            for key, data, label in pictures(rows):
                sink.write({"__key__": key, "png": data, "cls": label})
        (root / part / "nshards.txt").write_text("1")
    (root / "classnames.txt").write_text("\n".join(NAMES))
    return root


@pytest.fixture(scope="module")
def found(folders):
    return probe_jobs.figures(str(folders))


def test_figures_and_their_names(found):
    probe, details, neighbours = found
    assert (probe["samples"], probe["train_samples"]) == (150, 200)
    for end in ("", "_pooled"):
        for name in ("lp_acc1", "lp_acc5", "lp_mean_per_class_recall"):
            assert {f"{name}{end}", f"{name}{end}_1shot", f"{name}{end}_4shot"} <= probe.keys()
        assert probe[f"lp_acc1{end}"] > 0.5, "chance is 0.1"
        assert probe[f"lp_acc1{end}_1shot"] < probe[f"lp_acc1{end}_4shot"] < probe[f"lp_acc1{end}"]
        assert neighbours[f"knn_acc1@1{end}"] == neighbours[f"knn_majority_acc1@1{end}"] > 0.4
        assert details[f"lp{end}"]["train_samples"] == 200
        assert details[f"lp{end}_4shot"]["train_samples"] == 40
        assert details[f"lp{end}_1shot"]["weight_decay"] == 1.0, "one image a class leaves nothing to choose by"
    assert details["normalised"] is True


def test_the_probe_is_scikit_learns_on_the_same_features(folders, found):
    encodings, parts = Encodings(probe_jobs.encoder()), open_train_test(folders)
    for kind, end in (("embedding", ""), ("pooled", "_pooled")):
        x, t = (
            torch.nn.functional.normalize(
                encodings.features(part.images, ["embedding", "pooled"])[kind].double(), dim=1
            )
            for part in (parts.train, parts.test)
        )
        model = LogisticRegression(C=1 / found[1][f"lp{end}"]["weight_decay"], tol=1e-8, max_iter=100_000)
        theirs = model.fit(x.numpy(), parts.train.labels.numpy()).score(t.numpy(), parts.test.labels.numpy())
        assert found[0][f"lp_acc1{end}"] == pytest.approx(theirs, abs=1 / 149)  # one picture on the edge may fall


def test_shards_and_folders_agree(shards, found):
    encodings = Encodings(probe_jobs.encoder())
    assert NearestNeighbours(shards, k=[1, 20]).run(encodings).figures == found[2]


def test_ranks_agree_with_one_process(two_ranks, folders, found, tmp_path):
    for probe, details, neighbours in two_ranks.run(
        probe_jobs.__file__, "figures", str(folders), str(tmp_path / "cache")
    ):
        assert neighbours == found[2]
        assert probe == found[0]
        assert details["lp"]["weight_decay"] == found[1]["lp"]["weight_decay"]
    assert len(list((tmp_path / "cache").iterdir())) == 2, "one file for each part"


def test_the_scored_part_decides_nothing(folders, tmp_path):
    """Other labels of the scored part: the same probe."""
    encodings = Encodings(probe_jobs.encoder())
    probe = LinearProbe(folders, features=["embedding"])
    chosen = probe.run(encodings).details["lp"]
    object.__setattr__(probe.data, "labels", torch.zeros_like(probe.data.labels))
    assert probe.run(encodings).details["lp"] == chosen


def test_features_are_kept_and_found_again(folders, tmp_path, monkeypatch):
    probe = LinearProbe(folders, features=["pooled"])
    first = probe.run(Encodings(probe_jobs.encoder(), feature_cache=tmp_path))
    assert len(list(tmp_path.iterdir())) == 2

    def fail(*_, **how):
        raise AssertionError("encoded again")

    monkeypatch.setattr("clipkit.evaluation.encodings.encode_images", fail)
    assert probe.run(Encodings(probe_jobs.encoder(), feature_cache=tmp_path)).figures == first.figures
    with pytest.raises(AssertionError, match="encoded again"):  # other weights
        probe.run(Encodings(probe_jobs.encoder(seed=1), feature_cache=tmp_path))


def test_a_key_follows_all_that_features_are_made_of(folders):
    images, encoder = open_train_test(folders).test.images, probe_jobs.encoder()
    key = feature_cache.features_key(encoder, images, ["pooled"], "fp32")
    assert key == feature_cache.features_key(probe_jobs.encoder(), list(images), ["pooled"], "fp32")
    others = [
        feature_cache.features_key(encoder, images[::-1], ["pooled"], "fp32"),
        feature_cache.features_key(encoder, images, ["embedding"], "fp32"),
        feature_cache.features_key(encoder, images, ["pooled"], "bf16"),
        feature_cache.features_key(probe_jobs.encoder(1), images, ["pooled"], "fp32"),
    ]
    encoder.info.preprocess["interpolation"] = "bilinear"
    others.append(feature_cache.features_key(encoder, images, ["pooled"], "fp32"))
    first = Path(images[0].path)
    first.write_bytes(first.read_bytes())
    others.append(feature_cache.features_key(probe_jobs.encoder(), images, ["pooled"], "fp32"))
    assert len({key, *others}) == 7


@pytest.mark.parametrize("damage", ["flipped", "cut", "emptied"])
def test_damaged_features_are_made_again(tmp_path, damage, caplog):
    made = {"embedding": torch.arange(12.0).reshape(4, 3)}
    feature_cache.cached(tmp_path, "k", lambda: made)
    path = tmp_path / "k.safetensors"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes({"flipped": bytes(data), "cut": bytes(data[:-5]), "emptied": b""}[damage])
    with caplog.at_level(logging.WARNING):
        again = feature_cache.cached(tmp_path, "k", lambda: {"embedding": made["embedding"] + 1})
    assert torch.equal(again["embedding"], made["embedding"] + 1)
    assert "k.safetensors: damaged features" in caplog.text
    assert torch.equal(feature_cache.cached(tmp_path, "k", dict)["embedding"], again["embedding"])


def test_a_class_without_training_images_is_said_and_missed(folders, tmp_path, caplog):
    shard = tmp_path / "lacking"
    (shard / "test").mkdir(parents=True)
    with webdataset.TarWriter(str(shard / "test" / "0.tar")) as sink:
        for key, data, label in pictures(TRAIN):
            if label != 9:
                sink.write({"__key__": key, "png": data, "cls": label})
    (shard / "test" / "nshards.txt").write_text("1")
    names = "\n".join(f"{label} {name}" for label, name in enumerate(NAMES))
    (shard / "classnames.txt").write_text(names)
    probe = LinearProbe(folders / "test", train=shard, features=["embedding"])
    assert "1 classes have no training image ('9 nine')" in caplog.text
    outcome = probe.run(Encodings(probe_jobs.encoder())).outcomes["lp_acc1"]
    nines = probe.data.labels == 9
    assert not outcome[nines].any()
    assert outcome[~nines].float().mean() > 0.5


def test_python_and_configurations_name_them(folders, found, tmp_path, monkeypatch):
    monkeypatch.setenv("CLIPKIT_CACHE", str(tmp_path))
    options = {"features": "pooled", "shots": [4]}
    figures = clipkit.evaluate(probe_jobs.encoder(), data=folders, task="linear_probe", options=options)
    assert figures["lp_acc1_pooled_4shot"] == found[0]["lp_acc1_pooled_4shot"]
    assert len(list((tmp_path / "features").iterdir())) == 2
    spec = LinearProbeSpec(kind="linear_probe", data="x", **options)
    assert spec.figures[0] == "lp_acc1_pooled"
    intervals = {name for name in figures if name.endswith("_ci")}
    assert intervals == {f"{name}_ci" for name in spec.figures}
    low, high = figures["lp_acc1_pooled_ci"]
    assert 0 < low < figures["lp_acc1_pooled"] < high < 1
    assert set(spec.figures) | intervals | {"samples", "train_samples"} == figures.keys()
    votes = NearestNeighboursSpec(kind="knn", data="x", k=[1, 20])
    assert set(votes.figures) | {"samples", "train_samples"} == found[2].keys()
    with pytest.raises(ValueError, match="there is no option 'shot'; did you mean 'shots'"):
        clipkit.evaluate(probe_jobs.encoder(), data=folders, task="linear_probe", options={"shot": [4]})


def test_more_neighbours_than_images_are_no_figure(folders):
    figures = NearestNeighbours(folders, k=[1000], features=["embedding"]).run(Encodings(probe_jobs.encoder())).figures
    assert figures["knn_acc1@1000"] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"features": ["logits"]}, "features: .'logits'.; a list of one or both of embedding, pooled"),
        ({"features": []}, "one or both"),
        ({"validation": 1.0}, "validation: 1.0; it is a share"),
        ({"shots": [0]}, "shots: .0.; each is a number of images"),
        ({"shots": [500]}, "500 shots: the class '.*' has .* training images; ask for fewer"),
    ],
)
def test_wrong_arguments(folders, arguments, message):
    with pytest.raises(ValueError, match=message):
        LinearProbe(folders, **arguments)


def test_wrong_sets(folders, tmp_path):
    with pytest.raises(ValueError, match="no folder train/ to learn from; put it beside test/, or name it with train:"):
        LinearProbe(folders / "test")
    (tmp_path / "test" / "1 uno").mkdir(parents=True)
    (tmp_path / "test" / "1 uno" / "a.png").write_bytes(next(pictures(TEST))[1])
    with pytest.raises(ValueError, match="has 10 classes, .* has 1; labels would not agree"):
        LinearProbe(tmp_path / "test", train=folders / "train")
    with pytest.raises(ValueError, match=r"k: \[0\]; give one or more"):
        NearestNeighbours(folders, k=[0])
    with pytest.raises(ValueError, match="temperature: 0; it must be above 0"):
        NearestNeighbours(folders, temperature=0)

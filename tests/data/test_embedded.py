"""The embedded data: what is in it, that it is written once and the same everywhere, and that nothing leaks."""

import hashlib
import io
import json
import tarfile
import zipfile
from importlib.resources import files
from multiprocessing import get_context
from pathlib import Path

import pytest
from PIL import Image

from clipkit.data import embedded
from clipkit.data.index import build_index


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def sets(cache):
    return embedded.materialise(cache)


def samples(tars):
    """Key to fields of every sample, read by the standard library alone."""
    found = {}
    for path in tars:
        with tarfile.open(path) as tar:
            for member in tar:
                key, _, field = member.name.partition(".")
                found.setdefault(key, {})[field] = tar.extractfile(member).read()
    return found


def lines(path):
    return path.read_text(encoding="utf-8").splitlines()


def test_the_zip_is_small_stored_sorted_and_undated():
    data = (files("clipkit") / "demo" / "emoji.zip").read_bytes()
    assert len(data) < 10_000_000
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = archive.infolist()
        assert [entry.filename for entry in entries] == sorted(entry.filename for entry in entries)
        assert {entry.compress_type for entry in entries} == {zipfile.ZIP_STORED}
        assert {entry.date_time for entry in entries} == {(1980, 1, 1, 0, 0, 0)}
        assert archive.testzip() is None


def test_concepts_have_unique_names_and_a_tenth_is_held_out_by_hash():
    known = embedded.concepts()
    assert len(known) > 1400
    assert len({concept.hexcode for concept in known}) == len(known)
    assert len({concept.label.casefold() for concept in known}) == len(known)
    for concept in known:
        assert concept.held_out == (int(hashlib.sha256(concept.hexcode.encode()).hexdigest()[:8], 16) % 10 == 0)
        assert set(concept.styles) & set(embedded.TRAIN_STYLES)
        assert concept.group not in ("flags", "component")
        assert not {"1F3FB", "1F3FC", "1F3FD", "1F3FE", "1F3FF"} & set(concept.hexcode.split("-"))
    assert 0.08 < sum(concept.held_out for concept in known) / len(known) < 0.12


def test_every_concept_has_its_drawings():
    known = embedded.concepts()
    for style in (*embedded.TRAIN_STYLES, embedded.HELD_OUT_STYLE):
        pictures = embedded.drawings(style)
        assert set(pictures) == {concept.hexcode for concept in known if style in concept.styles}
        assert len(set(pictures.values())) == len(pictures)
        image = Image.open(io.BytesIO(next(iter(pictures.values()))))
        assert (image.format, image.size, image.mode) == ("WEBP", (64, 64), "RGB")


def test_training_shards_hold_the_seen_concepts_in_the_training_styles_only(sets):
    known = {concept.hexcode: concept for concept in embedded.concepts()}
    for name, styles in (
        ("train", set(embedded.TRAIN_STYLES)),
        ("dev_train", set(embedded.TRAIN_STYLES) - {embedded.DEV_STYLE}),
    ):
        found = samples(sorted(sets[name].glob("*.tar")))
        expected = sum(len(styles & set(concept.styles)) for concept in known.values() if not concept.held_out)
        assert len(found) == expected
        held_out_pictures = {
            picture
            for style in {embedded.HELD_OUT_STYLE, embedded.DEV_STYLE} - styles
            for picture in embedded.drawings(style).values()
        }
        for key, fields in found.items():
            about = json.loads(fields["json"])
            concept = known[about["concept"]]
            assert not concept.held_out
            assert about["style"] in styles
            assert key == f"{about['style']}_{concept.hexcode}"
            assert (about["group"], about["subgroup"]) == (concept.group, concept.subgroup)
            assert fields["txt"].decode() == concept.label == about["captions"][0]
            assert fields["webp"] not in held_out_pictures


def test_no_caption_of_a_seen_concept_names_an_unseen_one(sets):
    unseen = {concept.label.casefold() for concept in embedded.concepts() if concept.held_out}
    for fields in samples(sorted(sets["train"].glob("*.tar"))).values():
        about = json.loads(fields["json"])
        named = {about["captions"][0].casefold(), *(text.casefold() for text in about["captions"] if " of " in text)}
        assert not named & unseen


def test_validation_shards_hold_the_unseen_concepts(sets):
    unseen = {concept.hexcode for concept in embedded.concepts() if concept.held_out}
    found = samples(sets["val"].glob("*.tar"))
    assert {json.loads(fields["json"])["concept"] for fields in found.values()} == unseen


def test_captions_are_several_short_and_different():
    for concept in embedded.concepts():
        texts = embedded.captions(concept)
        assert texts[0] == concept.label
        assert len(set(texts)) >= 4
        assert all(text == text.strip() and text and "\n" not in text for text in texts)


@pytest.mark.parametrize("prefix", ["", "dev_"])
def test_evaluation_sets_label_every_picture_rightly(sets, prefix):
    style = embedded.DEV_STYLE if prefix else embedded.HELD_OUT_STYLE
    known = {concept.hexcode: concept for concept in embedded.concepts()}
    pictures = embedded.drawings(style)
    trained = {json.loads(f["json"])["concept"] for f in samples(sets[f"{prefix}train"].glob("*.tar")).values()}
    for name, held_out in (("style_transfer", False), ("unseen", True), ("subgroup", True)):
        folder = sets[prefix + name]
        assert lines(folder / "test" / "nshards.txt") == ["1"]
        classnames = lines(folder / "classnames.txt")
        assert len(set(classnames)) == len(classnames)
        assert all("{c}" in template for template in lines(folder / "zeroshot_classification_templates.txt"))
        found = samples([folder / "test" / "0.tar"])
        assert len(found) == sum(code in pictures and known[code].held_out == held_out for code in known) or prefix
        for hexcode, fields in found.items():
            concept, named = known[hexcode], classnames[int(fields["cls"])]
            assert named == (concept.subgroup.replace("-", " ") if name == "subgroup" else concept.label)
            assert concept.held_out == held_out
            assert (hexcode in trained) != held_out
            assert fields["webp"] == pictures[hexcode]


def test_retrieval_captions_are_one_a_line_and_name_one_picture(sets):
    found = samples([sets["retrieval"] / "test" / "0.tar"])
    assert lines(sets["retrieval"] / "dataset_type.txt") == ["retrieval"]
    texts = [text for fields in found.values() for text in fields["txt"].decode().split("\n")]
    assert len(texts) == 3 * len(found)
    assert len(set(texts)) > 0.99 * len(texts)  # a concept without tags repeats its label


def test_every_folder_of_shards_is_indexed(sets):
    for folder in sets.values():
        for shard in folder.rglob("*.tar"):
            listed = json.loads((shard.parent / "index.json").read_text())["shards"]
            entry = next(entry for entry in listed if entry["name"] == shard.name)
            assert entry["count"] == len(build_index(shard))
            assert Path(f"{shard}.idx.npz").is_file()


def test_a_second_call_writes_nothing_and_another_cache_gets_the_same_bytes(sets, cache, tmp_path):
    def contents(found):
        return {
            str(path.relative_to(folder.parent)): hashlib.sha256(path.read_bytes()).hexdigest()
            for folder in found.values()
            for path in folder.rglob("*")
            if path.is_file() and path.suffix != ".npz"  # the sidecar holds its tar's time of change
        }

    before = {path: path.stat().st_mtime_ns for path in cache.rglob("*")}
    assert embedded.materialise(cache) == sets
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*")} == before
    assert contents(embedded.materialise(tmp_path)) == contents(sets)


def test_processes_that_start_together_agree_and_leave_no_rest(tmp_path):
    with get_context("spawn").Pool(2) as pool:
        first, second = pool.map(embedded.materialise, [tmp_path, tmp_path])
    assert first == second
    assert [path.name for path in (tmp_path / "embedded").iterdir()] == [first["train"].parent.name]


def test_a_failure_leaves_no_half_written_set(tmp_path, monkeypatch):
    def fail(folder):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(embedded, "write_folder_index", fail)
    with pytest.raises(OSError, match="No space"):
        embedded.materialise(tmp_path)
    assert list((tmp_path / "embedded").iterdir()) == []
    monkeypatch.undo()
    assert "train" in embedded.materialise(tmp_path)


def test_resolve_gives_shards_to_train_on_and_folders_to_evaluate(sets, cache):
    assert embedded.resolve("embedded:train", cache) == [str(sets["train"] / f"{n:05d}.tar") for n in range(4)]
    assert embedded.resolve("embedded:unseen", cache) == sets["unseen"]
    with pytest.raises(ValueError, match="embedded:style_transfer"):
        embedded.resolve("embedded:trian", cache)

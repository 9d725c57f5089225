import io
import json

import numpy as np
import pytest
from PIL import Image

from clipkit.data.audit import Inspect, Loose, describe
from clipkit.data.audit_report import quantiles, report
from clipkit.data.catalogue import open_catalogue
from clipkit.data.dataset import ShardDataset
from clipkit.data.gathered import Gathered
from clipkit.data.images import BadSample
from clipkit.data.parallel import map_shards
from clipkit.data.sampler import InOrder
from clipkit.data.source import Source
from clipkit.data.stages import Stage
from clipkit.data.transforms import Preprocess

from .conftest import image_bytes, tokenize, write_tar
from .test_hashes import photo


def jpeg(image, quality=90):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


GOOD = jpeg(photo(7))
ZOO = {  # samples that are spoilt in each way, the last one in two
    "empty": {"jpg": b"", "txt": b"a"},
    "format": {"jpg": b"<html>404</html>", "txt": b"a"},
    "truncated": {"jpg": GOOD[: len(GOOD) // 2], "txt": b"a"},
    "aspect": {"png": image_bytes(0, "PNG", (900, 2)), "txt": b"a"},
    "no_image": {"txt": b"a"},
    "no_caption": {"jpg": GOOD, "txt": b"  "},
    "not_utf8": {"jpg": GOOD, "txt": b"\xff\xfe"},
    "no_caption too": {"jpg": b"", "txt": b""},
}


def words(texts):
    return [len(text.split()) + 2 for text in texts]


def inspected(paths, fields=None, cache=None, workers=1):
    places = Source("x", ("-",), **({"fields": fields} if fields else {})).places()
    inspect = Inspect(places, words, cache)
    return Gathered(list(paths), list(map_shards(inspect, paths, workers=workers)), places, cache)


def test_what_is_broken_is_what_training_could_not_use(tmp_path):
    files = [(f"{n:02d}.{ext}", data) for n, sample in enumerate(ZOO.values()) for ext, data in sample.items()]
    files += [("50.jpg", GOOD), ("50.txt", b"good")]
    path = str(write_tar(tmp_path / "zoo.tar", files))
    source = Source("zoo", (path,))
    catalogue = open_catalogue(source, None)
    dataset = ShardDataset(
        sources=[source],
        catalogues=[catalogue],
        order=InOrder([catalogue.counts]),
        seed=0,
        stages=[Stage({"image": Preprocess((16, 16))}, tokenize)],
        cache=None,
    )
    training = {}
    for sample in range(int(catalogue.counts.sum())):
        try:
            dataset.read(0, 0, sample, 0.0)
        except BadSample as error:
            training[dataset.reader.key(0, 0, sample)] = error.cause
    assert list(training.values()) == [name.removesuffix(" too") for name in ZOO]
    found = report(inspected([path]), None, ("m", 77))
    assert {
        example["key"]: cause for cause, held in found["broken"]["causes"].items() for example in held["examples"]
    } == training
    assert found["broken"]["count"] == len(ZOO) == found["samples"] - 1
    assert found["broken"]["causes"]["format"]["examples"][0]["shard"] == path


def test_a_caption_that_is_half_a_surrogate_pair_is_broken_in_training_too(tmp_path):
    path = str(write_tar(tmp_path / "s.tar", [("0.jpg", GOOD), ("0.json", b'{"caption": "a \\ud800 b"}')]))
    found = inspected([path], {"image": ("jpg",), "text": ("json.caption",)})
    assert dict(found.broken) == {"not_utf8": 1}


def test_duplicates_near_ones_and_captions_are_counted_over_shards(tmp_path):
    distinct = [jpeg(photo(seed)) for seed in range(6)]
    captions = ["one", "two", "None", "a b c", "a b c", "a b c d e f", "NULL", "one"]
    images = [*distinct, distinct[0], jpeg(photo(1), 60)]  # 6 is file 0 again, 7 looks like 1
    for shard in (0, 1):
        files = []
        for number in range(4 * shard, 4 * shard + 4):
            files += [(f"{number}.jpg", images[number]), (f"{number}.txt", captions[number].encode())]
        write_tar(tmp_path / f"{shard}.tar", files)
    held = inspected([str(tmp_path / "0.tar"), str(tmp_path / "1.tar")], workers=2)
    found = report(held, None, ("m", 5))
    json.dumps(found, allow_nan=False)
    twice = found["duplicates"]
    assert (twice["images"]["groups"], twice["images"]["surplus"]) == (1, 1)
    assert [place["key"] for place in twice["images"]["examples"][0]["samples"]] == ["0", "6"]
    assert twice["near_images"]["files"] == 2
    assert {place["key"] for place in twice["near_images"]["examples"][0]} == {"1", "7"}
    assert (twice["captions"]["groups"], twice["captions"]["surplus"]) == (2, 2)
    said = found["captions"]
    assert (said["count"], said["distinct"]) == (8, 6)
    assert said["suspicious"] == {"None": 1, "NULL": 1}
    assert {(held["text"], held["count"]) for held in said["most_frequent"]} == {("one", 2), ("a b c", 2)}
    assert said["cut"] == {"model": "m", "context": 5, "count": 1, "share": 1 / 8}
    assert said["words"]["max"] == 6
    assert found["images"]["formats"] == {"JPEG": 8}
    assert found["images"]["width"]["median"] == 120


def test_evaluation_pictures_are_found_by_file_and_by_look(tmp_path):
    class Held:
        def __init__(self, name, data):
            self.name, self.data = name, data

        def __str__(self):
            return self.name

        def read(self):
            return self.data

    train = [jpeg(photo(seed)) for seed in range(8)]
    files = [(f"{n}.{ext}", data) for n, image in enumerate(train) for ext, data in (("jpg", image), ("txt", b"a"))]
    held = inspected([str(write_tar(tmp_path / "t.tar", files))])
    smaller = jpeg(photo(5).resize((80, 60)))
    pictures = [Held("same", train[3]), Held("smaller", smaller), Held("new", jpeg(photo(99))), Held("bad", b"GIF89a")]
    loose = Loose(pictures, [("b",), ("a",), (), ()])
    part = Inspect(held.fields, None, None)(loose)
    leaks = report(held, Gathered([loose], [part], held.fields, None), None)["leakage"]
    assert (leaks["same_file"], leaks["same_look"], leaks["same_caption"]) == (1, 1, 1)
    assert leaks["pictures"] == {"count": 2, "share": 0.5}
    assert sum(leaks["broken"].values()) == 1
    listed = {(pair["by"], pair["evaluation"]["file"], pair["training"]["key"]) for pair in leaks["listed"]}
    assert {("file", "same", "3"), ("look", "smaller", "5")} <= listed


def test_a_shard_that_cannot_be_read_is_said_and_the_others_are_looked_at(tmp_path, make_shards):
    good, other = make_shards([3, 2])
    with open(other, "r+b") as file:
        file.truncate(1500)
    found = report(inspected([good, other]), None, None)
    assert found["samples"] == 3
    assert list(found["unreadable_shards"]) == [other]
    assert "cut short" in found["unreadable_shards"][other]


@pytest.mark.parametrize(
    ("kind", "mode", "options", "traits"),
    [
        ("GIF", "P", {"save_all": True, "append_images": [Image.new("RGB", (8, 8), "red")]}, {"animated", "palette"}),
        ("JPEG", "CMYK", {}, {"cmyk"}),
        ("PNG", "I;16", {}, {"16_bit"}),
        ("PNG", "RGBA", {}, {"transparent"}),
        ("JPEG", "L", {}, {"grey"}),
        ("WEBP", "RGB", {}, set()),
    ],
)
def test_formats_and_traits(kind, mode, options, traits):
    buffer = io.BytesIO()
    Image.new(mode, (8, 8)).save(buffer, kind, **options)
    name, found = describe(buffer.getvalue())
    assert (name, set(found)) == (kind, traits)


def test_a_picture_that_the_camera_turned():
    exif = Image.Exif()
    exif[0x112] = 6
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6)).save(buffer, "JPEG", exif=exif)
    assert describe(buffer.getvalue()) == ("JPEG", ["turned"])


def test_quantiles_are_those_of_the_values_themselves():
    from collections import Counter

    values = np.random.default_rng(0).integers(0, 30, 101)
    found = quantiles(Counter(values.tolist()))
    levels = {"min": 0, "p5": 0.05, "median": 0.5, "p95": 0.95, "max": 1}
    expected = {name: np.quantile(values, level, method="inverted_cdf") for name, level in levels.items()}
    assert {name: found[name] for name in levels} == expected


def test_nothing_at_all_has_a_report():
    empty = Gathered([], [], Source("x", ("-",)).places(), None)
    assert report(empty, empty, ("m", 77))["samples"] == 0

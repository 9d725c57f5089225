"""Shard patterns and sources."""

import pytest

from clipkit.data.source import Source, expand_shards


@pytest.fixture
def folder(tmp_path):
    for name in ("00000.tar", "00001.tar", "00003.tar", "notes.txt"):
        (tmp_path / name).touch()
    return tmp_path


def names(found):
    return [path.rsplit("/", 1)[1] for path in found]


def test_patterns(folder):
    assert names(expand_shards(f"{folder}/{{00000..00001}}.tar")) == ["00000.tar", "00001.tar"]
    assert names(expand_shards(f"{folder}/0000{{1,3}}.tar")) == ["00001.tar", "00003.tar"]
    assert names(expand_shards(f"{folder}/*.tar")) == ["00000.tar", "00001.tar", "00003.tar"]
    assert names(expand_shards(str(folder))) == ["00000.tar", "00001.tar", "00003.tar"]
    assert names(expand_shards(f"{folder}/00003.tar")) == ["00003.tar"]


@pytest.mark.parametrize(
    ("pattern", "says"),
    [
        ("{00000..00005}.tar", r"3 of 6 files are missing: .*00002\.tar.*\*\.tar"),
        ("{00000..00009}.tar", "and 4 more"),
        ("*.tgz", "no file matches"),
        ("{0..2000000}.tar", "more than 1,000,000"),
        ("{00000..00001.tar", r"\{00000\.\.01099\}"),
    ],
)
def test_patterns_that_name_nothing(folder, pattern, says):
    with pytest.raises(ValueError, match=says):
        expand_shards(f"{folder}/{pattern}")


@pytest.mark.parametrize("pattern", ["s3://bucket/0.tar", "pipe:cat 0.tar", "https://host/0.tar"])
def test_remote_shards_are_refused(pattern):
    with pytest.raises(ValueError, match="copy or mount"):
        expand_shards(pattern)


def test_sources():
    with pytest.raises(ValueError, match="no shards"):
        Source("a", ())
    with pytest.raises(ValueError, match="known are image, text, label"):
        Source("a", ("x.tar",), fields={"sound": ("wav",)})
    places = Source("a", ("x.tar",), fields={"image": ("JPG",), "text": ("json.caption.en", "txt")}).places()
    assert places["image"][0] == ("jpg", "")
    assert places["text"] == (("json", "caption.en"), ("txt", ""))

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


def test_urls_are_expanded_and_not_looked_at():
    assert expand_shards("s3://bucket/x/{8..10}.tar") == [f"s3://bucket/x/{i}.tar" for i in (8, 9, 10)]
    assert expand_shards("https://host/{000..001}.tar?sig=a") == [
        "https://host/000.tar?sig=a",
        "https://host/001.tar?sig=a",
    ]


def test_known_pipes_are_read_as_the_urls_they_copy(caplog):
    assert expand_shards("pipe:aws s3 cp s3://bucket/{0..1}.tar -") == ["s3://bucket/0.tar", "s3://bucket/1.tar"]
    assert "is read as s3://bucket/{0..1}.tar" in caplog.text
    assert expand_shards("pipe:curl -s -L https://host/0.tar") == ["https://host/0.tar"]
    assert expand_shards("pipe:gsutil cat gs://bucket/0.tar") == ["gs://bucket/0.tar"]


@pytest.mark.parametrize(
    ("pattern", "says"),
    [
        ("pipe:cat 0.tar", "--allow-pipe"),
        ("pipe:touch marker", "programs are not run"),
        ("pipe:curl https://host/0.tar | sh", "programs are not run"),
        ("pipe:curl -H 'Authorization: Bearer canary99' https://host/0.tar", "programs are not run"),
        ("pipe:curl -o /etc/x https://host/0.tar", "programs are not run"),
        ("pipe:curl file:///etc/passwd", "programs are not run"),
        ("ftp://host/0.tar", "ftp:// is not read; https://, http://, s3://, gs://, hf:// and files are"),
        ("file:///etc/passwd", "file:// is not read"),
        ("memory://0.tar", "memory:// is not read"),
        ("https:///0.tar", "names no file"),
        ("s3://bucket/*.tar", "brace range"),
        ("s3://bucket/shards/", "brace range"),
        ("https://host/a b.tar", "%20"),
    ],
)
def test_other_addresses_are_refused(pattern, says):
    with pytest.raises(ValueError, match=says) as error:
        expand_shards(pattern)
    assert "canary99" not in str(error.value)


def test_a_pipe_runs_only_where_the_user_allowed_it():
    assert expand_shards("pipe:cat {0..1}.tar", allow_pipe=True) == ["pipe:cat 0.tar", "pipe:cat 1.tar"]


def test_sources():
    with pytest.raises(ValueError, match="no shards"):
        Source("a", ())
    with pytest.raises(ValueError, match="known are image, text, label"):
        Source("a", ("x.tar",), fields={"sound": ("wav",)})
    places = Source("a", ("x.tar",), fields={"image": ("JPG",), "text": ("json.caption.en", "txt")}).places()
    assert places["image"][0] == ("jpg", "")
    assert places["text"] == (("json", "caption.en"), ("txt", ""))

import json

import pytest

from clipkit.cli.main import run
from tests.conftest import write_shard


def test_a_page_is_written_with_views_of_a_configuration(tmp_path, tiny_model, capsys):
    shard = write_shard(tmp_path / "a.tar", 5, captions=["one", "two", "three", "four", " "])
    config = tmp_path / "run.yaml"
    data = {"train": {"a": {"shards": str(shard)}}, "batch_size": 4}
    config.write_text(
        json.dumps({"model": str(tiny_model), "data": data, "loss": "infonce", "trainer": {"length": "1 epochs"}})
    )
    out = tmp_path / "page.html"
    assert run(["data", "preview", str(shard), "--out", str(out), "--samples", "5", "--augment", str(config)]) == 0
    assert "5 samples, 1 of them broken" in capsys.readouterr().out
    text = out.read_text()
    assert text.count("<img ") == 5 * 4
    assert "no_caption" in text
    assert "Content-Security-Policy" in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{shard}", "--out", "page.txt"], "FILE.html"),
        (["{shard}", "--out", "no/such/page.html"], "FILE.html"),
        (["nowhere.tar", "--out", "{folder}/page.html"], "nowhere.tar"),
        (["s3://bucket/a.tar", "--out", "{folder}/page.html"], "only shards on this machine"),
        (["{shard}", "--out", "{folder}/page.html", "--samples", "501"], "--seed"),
        (["{shard}", "--out", "{folder}/page.html", "--augment", "no-such-config"], "no-such-config"),
    ],
)
def test_bad_input_writes_nothing(arguments, words, tmp_path, capsys):
    shard = write_shard(tmp_path / "a.tar", 2)
    assert run(["data", "preview", *(text.format(shard=shard, folder=tmp_path) for text in arguments)]) == 2
    assert words in capsys.readouterr().err
    assert not list(tmp_path.glob("*.html"))

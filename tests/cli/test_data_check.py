import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from clipkit.cli.data_check import failures
from clipkit.cli.main import run
from tests.conftest import write_shard


def picture(seed):
    rng = np.random.default_rng(seed)
    buffer = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (6, 6, 3), np.uint8)).resize((40, 40)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def noisy(tmp_path):
    """Four pictures that look alike in nothing, one of them with a hostile caption."""
    path = tmp_path / "noisy.tar"
    with tarfile.open(path, "w") as tar:
        for number in range(4):
            caption = b"[red]a\x1b[2J\xe2\x80\xaeb[/red]" if number == 0 else f"caption {number}".encode()
            for name, data in ((f"{number}.png", picture(number)), (f"{number}.txt", caption)):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return path


def test_a_clean_folder_is_clean(noisy, tmp_path, capsys):
    assert run(["data", "check", str(tmp_path), "--json", str(tmp_path / "out.json")]) == 0
    said = capsys.readouterr().out
    assert "this can be trained on" in said
    found = json.loads((tmp_path / "out.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert (found["samples"], found["broken"]["count"], found["failures"]) == (4, 0, [])
    assert found["captions"]["cut"]["context"] == 77


def test_nothing_in_captions_reaches_the_terminal(noisy, tmp_path, capsys):
    # the hostile caption twice: it is shown as a frequent one
    with tarfile.open(tmp_path / "more.tar", "w") as tar, tarfile.open(noisy) as held:
        for member in held.getmembers()[:2]:
            tar.addfile(member, held.extractfile(member))
    assert run(["data", "check", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "[red]a\\x1b[2J\\u202eb[/red]" in said
    assert "\x1b" not in said


def test_evaluation_data_in_training_fails_and_is_named(noisy, tmp_path, capsys):
    (tmp_path / "eval" / "cat").mkdir(parents=True)
    (tmp_path / "eval" / "cat" / "seen.png").write_bytes(picture(2))
    (tmp_path / "eval" / "cat" / "new.png").write_bytes(picture(9))
    out = tmp_path / "out.json"
    assert run(["data", "check", str(noisy), "--against", str(tmp_path / "eval"), "--json", str(out)]) == 1
    assert "1 pictures of the evaluation data are trained on" in capsys.readouterr().out
    (pair,) = json.loads(out.read_text())["leakage"]["listed"]
    assert pair["evaluation"]["file"].endswith("seen.png")
    assert pair["training"] == {"shard": str(noisy), "key": "2"}
    assert run(["data", "check", str(noisy), "--against", str(tmp_path / "eval" / "cat" / "new.png")]) == 0


def test_evaluation_data_may_be_shards_or_captioned_images(noisy, tmp_path):
    (tmp_path / "pairs").mkdir()
    (tmp_path / "pairs" / "a.png").write_bytes(picture(9))
    (tmp_path / "pairs" / "a.txt").write_text("caption 3\n")
    out = tmp_path / "out.json"
    assert run(["data", "check", str(noisy), "--against", str(tmp_path / "pairs"), "--json", str(out)]) == 0
    assert json.loads(out.read_text())["leakage"]["same_caption"] == 1
    assert run(["data", "check", str(noisy), "--against", str(tmp_path / "pairs"), "--strict"]) == 1
    assert run(["data", "check", str(noisy), "--against", str(noisy)]) == 1


def test_broken_samples_are_counted_against_the_budget(tmp_path, capsys):
    write_shard(tmp_path / "a.tar", 3, captions=["a b", "c", " "])
    assert run(["data", "check", str(tmp_path)]) == 1
    assert "33.33% of the samples are broken, the budget is 1.00%" in capsys.readouterr().out
    assert run(["data", "check", str(tmp_path), "--budget", "0.5"]) == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere.tar"], "nowhere.tar"),
        (["pipe:true"], "pipe:true"),
        (["https://me:pw@host/a.tar?sig=canary"], "https://***@host/a.tar?***: only shards on this machine"),
        (["{shard}", "--fields", "image"], "FIELD=PLACE"),
        (["{shard}", "--fields", "picture=jpg"], "known are image"),
        (["{shard}", "--model", "ViT-B-23"], "did you mean"),
        (["{shard}", "--budget", "2"], "budget"),
        (["{shard}", "--against", "nowhere"], "nowhere"),
        (["{shard}", "--json", "no/such/folder.json"], "no/such/folder.json"),
    ],
)
def test_bad_input_is_said_before_any_work(arguments, words, noisy, capsys):
    assert run(["data", "check", *(text.format(shard=noisy) for text in arguments)]) == 2
    assert words in capsys.readouterr().err


def test_what_fails():
    clean = {
        "unreadable_shards": {},
        "shards": 2,
        "broken": {"share": 0.01},
        "duplicates": {"images": {"surplus": 1}, "captions": {"surplus": 2}, "near_images": {"files": 3}},
    }
    assert list(failures(clean, budget=0.01, strict=False)) == []
    assert len(list(failures(clean, budget=0.01, strict=True))) == 3
    assert len(list(failures(clean | {"unreadable_shards": {"a": "b"}}, budget=1, strict=False))) == 1

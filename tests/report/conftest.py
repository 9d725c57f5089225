"""Two real runs of a tiny model whose tasks have hostile class names and captions."""

import json

import pytest
import yaml
from PIL import Image

import clipkit
from clipkit.cli.main import run
from tests.conftest import TINY_MODEL, write_shard

HOSTILE = "<img src=x onerror=alert(1)>"
CAPTION = "\"'></p><script>document.title='owned'</script>\u202eevil"


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """Folders of two runs that differ in their learning rate."""
    folder = tmp_path_factory.mktemp("report")
    (folder / "tiny.json").write_text(json.dumps(TINY_MODEL))
    write_shard(folder / "a.tar", 48)
    for label, name in enumerate((HOSTILE, "square", "disc")):
        for number in range(16):
            place = folder / "classes" / name / f"{number}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (24, 16), (80 * label, 15 * number, 90)).save(place)
            pair = folder / "captioned" / f"{label}-{number}.png"
            pair.parent.mkdir(exist_ok=True)
            Image.new("RGB", (16, 16), (80 * label, 15 * number, 20)).save(pair)
            pair.with_suffix(".txt").write_text(f"{CAPTION} {number}\nthing {label} {number}\n")
    tasks = {
        "classes": {"kind": "zero_shot", "data": str(folder / "classes")},
        "pairs": {"kind": "retrieval", "data": str(folder / "captioned")},
    }
    config = {
        "model": str(folder / "tiny.json"),
        "data": {"train": {"squares": {"shards": str(folder / "a.tar")}}, "batch_size": 16, "workers": 0},
        "loss": "infonce",
        "trainer": {"length": "4 steps", "devices": 1, "accelerator": "cpu"},
        "evaluate": {"every": "2 steps", "tasks": tasks},
        "logging": {"every": "1 steps"},
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(config))
    for name, lr in (("first", 1e-4), ("second", 3e-3)):
        clipkit.fit(folder / "run.yaml", {"run": str(folder / name), "optim.lr": lr, "optim.warmup": "1 steps"})
    return folder / "first", folder / "second"


@pytest.fixture(scope="session")
def pages(runs, tmp_path_factory):
    """The page of one run, and that of two."""
    folder = tmp_path_factory.mktemp("pages")
    one, two = folder / "one.html", folder / "two.html"
    assert run(["report", str(runs[0]), "--out", str(one)]) == 0
    assert run(["report", *map(str, runs), "--out", str(two)]) == 0
    return one, two

import json
import subprocess
import sys
from typing import NamedTuple

import pytest
import yaml

from clipkit.cli.main import run
from clipkit.config import load_config

SMALL = """\
#
#  A small one.
# With more to say.
model: ViT-B-32
data: {train: {cc: {shards: a.tar}}, batch_size: 32}
loss: infonce
trainer: {length: 100 steps}
"""


class Result(NamedTuple):
    exit_code: int
    stdout: str
    stderr: str


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    """Run a verb in a folder with small.yaml, where `tiny` and `other` are shipped."""
    (tmp_path / "site" / "clipkit" / "configs").mkdir(parents=True)
    (tmp_path / "site" / "clipkit" / "configs" / "tiny.yaml").write_text(SMALL)
    (tmp_path / "site" / "clipkit" / "configs" / "other.yaml").write_text("seed: 1\n# late\n")
    package = tmp_path / "site" / "clipkit"
    monkeypatch.setattr("clipkit.config.catalog.__file__", str(package / "config" / "catalog.py"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.yaml").write_text(SMALL)

    def of(*arguments: str) -> Result:
        code = run(["config", *arguments])
        return Result(code, *capsys.readouterr())

    return of


def test_show_prints_what_loads_back_to_the_same(call, tmp_path):
    for arguments in (["small.yaml", "seed=3"], ["small.yaml", "seed=3", "--sources"], ["tiny", "seed=3"]):
        result = call("show", *arguments)
        assert result.exit_code == 0
        (tmp_path / "shown.yaml").write_text(result.stdout)
        assert load_config("shown.yaml") == load_config("small.yaml", ["seed=3"])


def test_sources(call):
    lines = [line.split() for line in call("show", "small.yaml", "optim.lr=1", "--sources").stdout.splitlines()]
    assert ["batch_size:", "32", "#", "small.yaml:5:38"] in lines
    assert ["lr:", "1.0", "#", "command", "line"] in lines
    assert ["seed:", "0", "#", "default"] in lines
    assert ["optim:"] in lines


def test_validate(call):
    result = call("validate", "small.yaml")
    assert (result.exit_code, result.stdout) == (0, "small.yaml: no errors\n")
    result = call("validate", "small.yaml", "optim.lrr=1")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(
        "error: small.yaml: 1 error\n  command line: optim.lrr = 1: unknown key; did you mean 'lr'?"
    )
    assert "Traceback" not in result.stderr
    assert call("show", "nothing.yaml").exit_code == 2


def test_schema(call):
    assert json.loads(call("schema").stdout)["title"] == "clipkit configuration"


def test_list(call):
    assert call("list").stdout == "other\ntiny\n  A small one.\n"


def test_copy_overwrites_nothing(call, tmp_path):
    assert call("copy", "tiny", "mine.yaml").stdout == "mine.yaml\n"
    assert (tmp_path / "mine.yaml").read_text() == SMALL
    (tmp_path / "folder").mkdir()
    assert call("copy", "tiny.yaml", "folder").exit_code == 0
    assert (tmp_path / "folder" / "tiny.yaml").read_text() == SMALL
    (tmp_path / "mine.yaml").write_text("mine")
    result = call("copy", "tiny", "mine.yaml")
    assert (result.exit_code, result.stderr) == (2, "error: mine.yaml exists; choose another name or remove it\n")
    assert (tmp_path / "mine.yaml").read_text() == "mine"
    result = call("copy", "tinny", "x.yaml")
    assert (result.exit_code, result.stderr) == (
        2,
        "error: no shipped configuration is called 'tinny'; there are: other, tiny\n",
    )
    assert call("copy", "tiny", "no/such/folder.yaml").exit_code == 2


def test_the_verbs_import_nothing_heavy(call):
    code = (
        "import sys; from clipkit.cli.main import run; assert 'pydantic' not in sys.modules\n"
        "assert run(['config', 'validate', 'small.yaml']) == 0\n"
        "heavy = {'torch', 'lightning', 'numpy'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_text_that_looks_like_a_number_stays_a_text(call):
    shown = call("show", "small.yaml", "run='1e3'").stdout
    assert "run: '1e3'" in shown
    assert yaml.safe_load(shown)["run"] == "1e3"

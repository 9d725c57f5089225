"""The package says the same of itself everywhere, and a wheel holds what it needs."""

import importlib.util
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import clipkit
from clipkit.config import DISTRIBUTION

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_the_name_is_one_constant():
    assert PROJECT["name"] == DISTRIBUTION
    assert PROJECT["scripts"] == {"clipkit": "clipkit.__main__:main"}
    elsewhere = [
        path.relative_to(ROOT)
        for path in sorted((ROOT / "clipkit").rglob("*.py"))
        if DISTRIBUTION in path.read_text() and path.name != "names.py"
    ]
    assert not elsewhere, f"{DISTRIBUTION} is spelled out again in {elsewhere}; use clipkit.config.names.DISTRIBUTION"


def test_the_version_agrees():
    assert PROJECT["version"] == clipkit.__version__
    assert re.search(
        rf"^## \[({re.escape(clipkit.__version__)}|Unreleased)\]", (ROOT / "CHANGELOG.md").read_text(), re.M
    )


@pytest.mark.parametrize("floor", ["torch>=2.10", "lightning>=2.6.6,<2.7", "open_clip_torch>=3.3,<4", "pillow>=12.3"])
def test_bounds_that_have_a_reason_stand(floor):
    assert floor in PROJECT["dependencies"]


def canonical(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(name):
    lines = [line for line in (ROOT / name).read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.+]+", line) for line in lines), "every line pins one version"
    return {canonical(line.split("==")[0]): line.split("==")[1] for line in lines}


def test_constraints_pin_every_dependency_within_its_bounds():
    pinned = pins("constraints.txt")
    for line in [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"]]:
        requirement = Requirement(line)
        assert canonical(requirement.name) in pinned, f"constraints.txt has no version of {requirement.name}"
        assert pinned[canonical(requirement.name)] in requirement.specifier, requirement


def test_the_constraints_without_torch_are_those_with_it():
    with_torch = pins("constraints.txt")
    assert {"torch", "torchvision"} <= set(with_torch)
    del with_torch["torch"], with_torch["torchvision"]
    assert pins("constraints-notorch.txt") == with_torch


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    if importlib.util.find_spec("hatchling") is None:
        pytest.skip("hatchling is not installed")
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=120)
    (path,) = out.glob("*.whl")
    return path


def test_a_wheel_holds_what_clipkit_reads(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = archive.read(next(name for name in names if name.endswith("METADATA"))).decode()
    configs = {f"clipkit/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "configs").rglob("*.*")}
    assert configs, "no configuration is shipped"
    class_lists = {path.relative_to(ROOT).as_posix() for path in (ROOT / "clipkit/evaluation/classnames").iterdir()}
    assert len(class_lists) > 30
    needed = (
        class_lists
        | {"clipkit/py.typed", "clipkit/demo/emoji.zip", "clipkit/demo/NOTICE", "clipkit/__main__.py"}
        | configs
    )
    assert needed <= names, f"missing from the wheel: {sorted(needed - names)}"
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "clipkit").rglob("*.py")}
    assert modules <= names
    assert not [name for name in names if name.startswith(("tests/", "benchmarks/"))]
    assert f"Name: {DISTRIBUTION}" in metadata
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert any(name.endswith("licenses/clipkit/demo/NOTICE") for name in names)
    assert any(name.endswith("licenses/clipkit/evaluation/classnames/NOTICE") for name in names)


def test_an_unpacked_wheel_finds_its_configurations(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "clipkit", "config", "list"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert {line for line in done.stdout.splitlines() if not line.startswith(" ")} == {
        path.stem for path in (ROOT / "configs").glob("*.yaml")
    }

"""The README's commands run, in order and in a folder with the files that it names; the others at least parse."""

import ast
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple, get_args, get_origin

import numpy as np
import pytest
import typer
from PIL import Image
from pydantic import BaseModel

from clipkit.cli.main import app
from clipkit.config import RunConfig
from clipkit.demo.table import next_commands
from tests.conftest import TINY_MODEL

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
SMALLER = {  # what the README says, and what stands in its place here, so that no weights are fetched and training takes seconds
    "evaluate ViT-B-32:laion2b_s34b_b79k": "evaluate small.json",
    "--model ViT-B-32:laion2b_s34b_b79k": "--model small.json",
    "model: ViT-B-32 ": "model: small.json ",
    "batch_size: 256": "batch_size: 8",
    "warmup: 500 steps": "warmup: 2 steps",
    "every: 20 steps": "every: 2 steps",
    "32 epochs, micro_batch: 64": "2 epochs, micro_batch: 4",
    "data.train=pairs.csv": "data.train=pairs.csv model=small.json data.batch_size=8",
}
UsageError = next(
    kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "UsageError"
)  # typer's copy of click's
BLOCK = re.compile(r"(?:^<!-- (?P<note>[^\n]+?) -->\n)?^```(?P<kind>\w+)\n(?P<text>.*?)^```$", re.M | re.S)


class Block(NamedTuple):
    """A block of code of the README, with the comment that stands right before it."""

    kind: str
    text: str
    note: str

    @property
    def runs(self):
        return self.kind in ("bash", "python") and not self.note.startswith("not run: ")


BLOCKS = [Block(m["kind"], m["text"], m["note"] or "") for m in BLOCK.finditer(README)]
INLINE = sorted(set(re.findall(r"`(clipkit [^`]+)`", re.sub(BLOCK, "", README))))


def commands(text):
    """The arguments of each clipkit command of a shell text, whatever started it."""
    for line in text.splitlines():
        words = shlex.split(line, comments=True)
        if "clipkit" in words:
            yield words[words.index("clipkit") + 1 :]


def parse(arguments):
    """Parse a command line against the real commands without running it."""
    command, context = typer.main.get_command(app), None
    while True:
        context = command.make_context(command.name or "clipkit", list(arguments), parent=context)
        if not hasattr(command, "resolve_command"):
            return context
        _, command, arguments = command.resolve_command(context, [*context._protected_args, *context.args])


def test_every_block_is_of_a_kind_that_is_checked():
    assert [block for block in BLOCKS if block.runs]
    assert README.count("```") == 2 * len(BLOCKS)
    for block in BLOCKS:
        assert block.kind in ("bash", "python", "yaml") or block.note == "demo output: begin", block.kind
        assert block.kind != "yaml" or block.note.startswith("file: "), "a yaml block says which file it is"


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.text.splitlines()[0][:50])
def test_blocks_parse(block):
    if block.kind == "bash":
        subprocess.run(["bash", "-n", "-c", block.text], check=True)
        for arguments in commands(block.text):
            parse(arguments)
    elif block.kind == "python":
        ast.parse(block.text)


@pytest.mark.parametrize("code", INLINE)
def test_commands_inside_sentences_parse(code):
    (arguments,) = commands(code)
    try:
        parse(arguments)
    except UsageError as error:
        if type(error).__name__ not in ("MissingParameter", "NoArgsIsHelpError"):  # `clipkit data pack` names a verb
            raise


def test_what_the_demo_says_to_type_next_parses():
    for command, _ in next_commands(Path("runs/demo")):
        (arguments,) = commands(command)
        parse(arguments)


def test_a_command_that_is_none_does_not_parse():
    for wrong in (["fitt", "a.yaml"], ["fit", "a.yaml", "--no-such-option"], ["data", "unpack", "x"]):
        with pytest.raises(UsageError, match=r"(?i)no such"):
            parse(wrong)


def model_at(path):
    """Follow a dotted key through the specs; NAME is any name."""
    at = RunConfig
    for part in path.split("."):
        while not (isinstance(at, type) and issubclass(at, BaseModel)) and get_args(at):
            inner = [arg for arg in get_args(at) if arg is not type(None)]
            if get_origin(at) is dict:
                break
            at = inner[0]
        if get_origin(at) is dict:
            at = get_args(at)[1]
            continue
        assert part in at.model_fields, f"{path}: {at.__name__} has no {part}"
        at = at.model_fields[part].annotation


def test_keys_of_the_comparison_exist():
    rows = [line.split(" | ") for line in README.splitlines() if line.startswith("| `--")]
    assert len(rows) >= 10
    checked = 0
    for row in rows:
        last = ""
        for code in re.findall(r"`([^`]+)`", row[1]):
            key = code.split(":")[0]
            if key.startswith("."):  # `.betas` goes on from `optim.lr`
                key = last.rsplit(".", 1)[0] + key
            if not code.startswith("clipkit"):
                model_at(last := key)
                checked += 1
    assert checked >= 10


def test_links_to_files_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("https://") or (ROOT / target).exists(), target


def make_world(folder):
    """What the README takes for granted: photos by class, pairs with a CSV, a model."""
    rng = np.random.default_rng(0)

    def picture(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (24, 20, 3), dtype=np.uint8)).save(path)

    for name in ("cat", "dog"):
        for number in range(3):
            picture(folder / "photos" / name / f"{number}.jpg")
    rows = [
        (f"images/{number}.jpg", f"picture number {number}, of a {'cat' if number % 2 else 'dog'}")
        for number in range(40)
    ]
    for path, _ in rows:
        picture(folder / path)
    lines = [f'{path},"{caption}"' for path, caption in rows]
    (folder / "pairs.csv").write_text("\n".join(["filepath,caption", *lines]) + "\n")
    (folder / "small.json").write_text(json.dumps(TINY_MODEL))


def smaller(text):
    for said, instead in SMALLER.items():
        text = text.replace(said, instead)
    return text


def script(blocks):
    """One process for neighbouring blocks: Python's share a start-up, the shell's stop at the first failure."""
    if blocks[0].kind == "bash":
        clipkit = f'clipkit() {{ {shlex.quote(sys.executable)} -m clipkit "$@"; }}'
        return ["bash", "-euo", "pipefail", "-c", "\n".join([clipkit, *(smaller(block.text) for block in blocks)])]
    sources = [smaller(block.text) for block in blocks]
    return [sys.executable, "-c", f"for source in {sources!r}:\n    exec(compile(source, 'README', 'exec'), {{}})"]


def groups():
    """Blocks in order: files as they are, neighbours of a kind together."""
    found = []
    for block in BLOCKS:
        if not (block.runs or block.kind == "yaml"):
            continue
        if block.kind == "yaml" or not found or found[-1][0].kind != block.kind:
            found.append([])
        found[-1].append(block)
    return found


def run_in(folder, command):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=200)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """The folder after every block ran."""
    for said in SMALLER:
        assert said in README, f"the README no longer says {said!r}; SMALLER must follow"
    folder = tmp_path_factory.mktemp("readme")
    make_world(folder)
    for group in groups():
        if group[0].kind == "yaml":
            (folder / group[0].note.removeprefix("file: ")).write_text(smaller(group[0].text))
            continue
        done = run_in(folder, script(group))
        assert done.returncode == 0, f"{group[0].text}\n{done.stdout}\n{done.stderr}"
    return folder


def test_every_block_runs(world):
    assert (world / "shards" / "index.json").is_file()
    assert (world / "mine-for-open-clip" / "open_clip_config.json").is_file()
    assert (world / "from-python").is_dir()
    assert (world / "runs" / "gap" / "checkpoints").is_dir()


def test_the_demo_s_advice_trains_on_the_shards_that_pack_wrote(world):
    advice = next(command for command, _ in next_commands(Path("runs/demo")) if command.startswith("clipkit fit"))
    arguments = shlex.split(advice)[1:]
    short = [
        "data.batch_size=16",
        "trainer.length=1 steps",
        "optim.warmup=0 steps",
        "evaluate.tasks.dev=null",
        "evaluate.every=null",
    ]
    done = run_in(world, [sys.executable, "-m", "clipkit", *arguments, "run=runs/advice", *short])
    assert done.returncode == 0, done.stderr


def test_a_run_leaves_what_the_table_says(world):
    run = world / "runs" / "mine"
    table = README.split("## What a run leaves")[1].split("\n\n| exit code")[0]
    rows = [line.split(" | ") for line in table.splitlines() if line.startswith("| `")]
    record = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    logged = {name for line in record for name in line}
    seen = set()
    for names, what in (row[:2] for row in rows):
        for name in re.findall(r"`([^`]+)`", names):
            if name in ("samples.rankR.jsonl", "stopped.json"):  # only where asked for, only where it stopped
                continue
            place = run / name.replace("STEP", max(os.listdir(run / "checkpoints"), key=int))
            assert place.exists(), place
            seen.add(name)
            if place.is_dir():
                inside = re.findall(r"`([^`]+)`", what)
                assert {path.name for path in place.iterdir()} == set(inside)
            if name == "metrics.jsonl":
                promised = {figure.replace("TASK", "photos") for figure in re.findall(r"`([^`]+)`", what)}
                assert promised <= logged, promised - logged
    assert {"config.yaml", "metrics.jsonl", "checkpoints/STEP/"} <= seen
    assert {path.name for path in run.iterdir()} == {name.split("/")[0] for name in seen}

"""open_clip's command line taken apart: launcher, how many processes it starts, and options."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from clipkit.config.open_clip_options import OPTIONS
from clipkit.config.report import nearest

_PROGRAM = re.compile(r"(^|[./\\])(open_clip_train|training)[./\\]main(\.py)?$")
_COUNTS = {"nproc-per-node": "ranks", "nnodes": "nodes", "ntasks": "tasks", "n": "tasks"}


@dataclass(frozen=True)
class Command:
    """What a command line says.

    Args:
        options: Values by option, in the order given; a switch has none.
        world: Processes that the launcher starts; None where it does not say.
        ranks: Processes a node; None where it does not say.
    """

    options: dict[str, list[str]] = field(default_factory=dict)
    world: int | None = None
    ranks: int | None = None


def parse_command(text: str) -> Command:
    """Take a command line apart.

    Args:
        text: As typed in a shell, over several lines if need be.

    Raises:
        ValueError: If open_clip's trainer is not in it, or an option is none of open_clip_train 3.3.0's.

    Example:
        >>> parse_command("torchrun --nproc_per_node 8 -m open_clip_train.main --model ViT-B-32").world
        8
    """
    try:
        words = shlex.split(text.replace("\\\n", " "), comments=True)
    except ValueError as error:
        raise ValueError(f"the command line cannot be read ({error}); are its quotes closed?") from error
    at = next((number for number, word in enumerate(words) if _PROGRAM.search(word)), None)
    if at is None:
        raise ValueError(
            "open_clip's trainer is not in the command line; expected is ... -m open_clip_train.main --OPTION ..."
        )
    world, ranks = _processes(words[:at])
    return Command(_options(words[at + 1 :]), world, ranks)


def _processes(launcher: Sequence[str]) -> tuple[int | None, int | None]:
    """Processes in all and a node, of torchrun or srun; None where they are not said as numbers."""
    found: dict[str, str] = {}
    starter = next(
        (word for word in launcher if re.search(r"(torchrun|torch\.distributed\.(run|launch)|srun)$", word)), None
    )
    if starter is None:
        return None, None
    words = [part for word in launcher for part in (word.split("=", 1) if word.startswith("-") else [word])]
    for word, value in pairwise(words):
        name = word.lstrip("-").replace("_", "-")
        if word.startswith("-") and name in _COUNTS:
            found[_COUNTS[name]] = value
    if starter.endswith("srun"):
        return (int(found["tasks"]) if found.get("tasks", "").isdigit() else None), None
    ranks, nodes = found.get("ranks", "1"), found.get("nodes", "1")
    if not (ranks.isdigit() and nodes.isdigit()):  # `gpu`, `auto`, `1:4`
        return None, None
    return int(ranks) * int(nodes), int(ranks)


def _options(words: Sequence[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            raise ValueError(f"{word!r} stands where an option is expected; were its quotes lost?")
        name, equals, value = word[2:].partition("=")
        name = _full_name(name)
        takes = OPTIONS[name].takes
        if equals and takes != "switch":
            found[name] = [value]
        elif takes == "one":
            if not rest:
                raise ValueError(f"--{name} takes a value, and none follows")
            found[name] = [rest.pop(0)]
        else:
            found[name] = []
            while takes == "several" and rest and not rest[0].startswith("--"):
                found[name].append(rest.pop(0))
    return found


def _full_name(name: str) -> str:
    """As argparse reads it: an option may be cut short while only one begins so."""
    begins = [option for option in OPTIONS if option.startswith(name)]
    if name in OPTIONS or len(begins) == 1:
        return name if name in OPTIONS else begins[0]
    near = nearest(name, list(OPTIONS))
    hint = f"; did you mean --{near}?" if near else ""
    raise ValueError(f"--{name} is no option of open_clip_train 3.3.0{hint}")

"""Hostile torch.export programs: a payload in each place that torch's reader runs."""

from __future__ import annotations

import io
import json
import logging
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

import clipkit
from tests.archives import CONSTANTS, EXAMPLES, MODEL, WEIGHTS, resized, rewrite
from tests.conftest import TINY_MODEL
from tests.security.lab import Exploit, Lab, fires, raises
from tests.security.weights import PREPROCESS, each_way


class Doubled(torch.nn.Module):
    """As much as a program needs to be one: a weight and a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weight + torch.tensor([1.0, 2.0, 3.0, 4.0])


def saved(value: object) -> bytes:
    """What torch.save writes."""
    found = io.BytesIO()
    torch.save(value, found)
    return found.getvalue()


def evil_programs(lab: Lab) -> Iterator[Path]:
    """Folders of programs, each with a payload in another place that torch.export.load runs."""
    good = lab.folder / "good.pt2"
    if not good.is_file():
        shape = ({0: torch.export.Dim("batch")},)
        torch.export.save(torch.export.export(Doubled(), (torch.ones(2, 4),), dynamic_shapes=shape), good)
    opened = f"open({str(lab.marker)!r}, 'w')"
    pickled = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True, "tensor_meta": None}
    places: dict[str, dict[str, Any]] = {
        "examples": {EXAMPLES: saved(lab.payload())},
        "constants": {
            CONSTANTS: lambda stored: stored["config"].update(evil=pickled),
            "data/constants/opaque_obj_0": pickle.dumps(lab.payload()),
        },
        "weights": {
            WEIGHTS: lambda stored: stored["config"]["weight"].update(use_pickle=True),
            "data/weights/weight_0": saved(lab.payload()),
        },
        "expression": {MODEL: resized(opened)},
        "guards": {MODEL: lambda stored: stored["guards_code"].append(f"{opened} is not None")},
    }
    for name, changes in places.items():
        folder = lab.folder / name
        folder.mkdir(exist_ok=True)
        stored = {"model_cfg": TINY_MODEL, "preprocess_cfg": PREPROCESS}
        (folder / "open_clip_config.json").write_text(json.dumps(stored))
        for side in ("visual", "textual"):
            kept = {} if name == "guards" else {EXAMPLES: b""}  # only where there are examples are guards compiled
            rewrite(good, folder / f"{side}.pt2", kept | changes)
        yield folder


def load_programs(lab: Lab) -> None:
    """torch's own reader, and one run of what it read: every one of them must fire."""
    for folder in evil_programs(lab):
        logging.disable()  # torch's own words on it hold a fault of their own
        fires(lambda folder=folder: torch.export.load(folder / "visual.pt2").module()(torch.ones(3, 4)))
        logging.disable(logging.NOTSET)
        assert lab.fired(), f"the payload among the {folder.name} did not fire"
    lab.harmed()


def programs_here(lab: Lab) -> None:
    """Refused without consent, by every verb and whatever a configuration says; with consent the payload's place is refused."""
    for number, folder in enumerate(evil_programs(lab)):
        if number == 0:
            each_way(lab, folder)
            wish = json.dumps({"name": str(folder), "trust_code": True})
            lab.refused("fit", lab.world.config, f"model={wish}", f"run={lab.folder / 'r'}")
        assert "--trust-code" in raises(ValueError, lambda folder=folder: clipkit.load(folder))
        raises(ValueError, lambda folder=folder: clipkit.load(folder / "visual.pt2"))
        said = raises(ValueError, lambda folder=folder: clipkit.load(folder, trust_code=True))
        assert "no program of an encoder alone" in said, (folder, said)
        data = lab.shard_set(lab.world.shard)
        lab.refused("evaluate", folder, "--data", data, "--task", "retrieval", "--trust-code", words="alone")


EXPLOITS = (Exploit("torch.export programs", load_programs, programs_here),)

"""A ``.pt2`` archive with other members, as nothing in torch would write it."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch.export.pt2_archive import PT2ArchiveReader, PT2ArchiveWriter

MODEL, EXAMPLES = "models/model.json", "data/sample_inputs/model.pt"
CONSTANTS, WEIGHTS = "data/constants/model_constants_config.json", "data/weights/model_weights_config.json"
_WRITTEN_ANYWAY = (".data/version", ".data/serialization_id", "byteorder")


def rewrite(source: Path, out: Path, changes: Mapping[str, bytes | Callable[[Any], object]]) -> Path:
    """Write ``source`` to ``out`` with members set to bytes, or their JSON changed by a function."""
    reader = PT2ArchiveReader(str(source))
    members = {name: reader.read_bytes(name) for name in reader.get_file_names() if name not in _WRITTEN_ANYWAY}
    for name, change in changes.items():
        if callable(change):
            stored = json.loads(members[name])
            change(stored)
            change = json.dumps(stored).encode()
        members[name] = change
    with PT2ArchiveWriter(str(out)) as writer:
        for name, data in members.items():
            writer.write_bytes(name, data)
    return out


def resized(expression: str) -> Callable[[Any], None]:
    """A change of ``MODEL``: the batch size of the input ``x`` is an expression."""

    def change(program: Any) -> None:
        size = {"as_expr": {"expr_str": expression, "hint": None}}
        program["graph_module"]["graph"]["tensor_values"]["x"]["sizes"][0] = size

    return change

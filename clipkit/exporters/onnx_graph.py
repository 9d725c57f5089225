"""One embedder to one ONNX file: traced, renamed, cleaned of the building machine's paths, checked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clipkit.exporters.embedders import Embedder, quiet_tracing

MOST_INSIDE = 2_000_000_000  # bytes of weights that a single ONNX file can hold (protobuf: 2 GB)


def trace(embedder: Embedder, example: Tensor, *, opset: int, names: tuple[str, str], static: bool) -> Any:
    """The graph of an embedder.

    Args:
        embedder: A tower.
        example: Its input, a batch of two, or of one where ``static``: what is traced at one is often only right at one.
        opset: Of the standard operators.
        names: Of input and output.
        static: Whether the batch size of the example is the only one.

    Returns:
        An ``onnx.ModelProto``.

    Raises:
        ValueError: If torch cannot trace the tower, or wrote another opset.
    """
    batch = None if static else ({0: torch.export.Dim("batch")},)
    try:
        with quiet_tracing(), torch.no_grad():
            program = torch.onnx.export(
                embedder,
                (example,),
                None,
                dynamo=True,
                opset_version=opset,
                dynamic_shapes=batch,
                verbose=False,
                external_data=False,
            )
    except Exception as error:  # torch.onnx raises its own classes and those of everything beneath
        kind = type(getattr(embedder.tower, "model", embedder.tower)).__name__
        raise ValueError(f"torch.onnx cannot export the tower {kind}: {str(error)[:600]}") from error
    assert program is not None
    model = program.model_proto
    written = next(x.version for x in model.opset_import if x.domain in ("", "ai.onnx"))
    if written != opset:
        raise ValueError(f"torch.onnx wrote opset {written} and not {opset}; ask for that")
    _rename(model.graph, model.graph.input[0].name, names[0])
    _rename(model.graph, model.graph.output[0].name, names[1])
    return model


def clean(model: Any) -> None:
    """Drop names of files and stack traces of the building machine, which torch leaves in every node."""
    del model.metadata_props[:]
    model.doc_string = ""
    for function in (model.graph, *model.functions):
        function.doc_string = ""
        for held in ("node", "value_info", "input", "output", "initializer"):
            for item in getattr(function, held, ()):
                del item.metadata_props[:]
                item.doc_string = ""
        if hasattr(function, "metadata_props"):
            del function.metadata_props[:]


def save(model: Any, path: Path, facts: Mapping[str, str]) -> None:
    """Write a graph with facts for its receiver; weights beyond 2 GB go to ``NAME.onnx.data`` beside it."""
    import onnx

    clean(model)
    for key, value in facts.items():
        model.metadata_props.add(key=key, value=value)
    path.parent.mkdir(parents=True, exist_ok=True)
    big = sum(len(tensor.raw_data) for tensor in model.graph.initializer) > MOST_INSIDE
    onnx.save_model(model, str(path), save_as_external_data=big, location=f"{path.name}.data" if big else None)
    onnx.checker.check_model(str(path), full_check=not big)


def _rename(graph: Any, old: str, new: str) -> None:
    """A value's name, everywhere; another value of that name (torch has an ``embedding``) steps aside."""
    if old == new:
        return
    for before, after in ((new, f"{new}_inside"), (old, new)):
        for node in graph.node:
            for names in (node.input, node.output):
                for place, name in enumerate(names):
                    if name == before:
                        names[place] = after
        for held in (graph.input, graph.output, graph.value_info, graph.initializer):
            for item in held:
                if item.name == before:
                    item.name = after

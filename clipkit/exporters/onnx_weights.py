"""Smaller weights in an ONNX file: stored as float16 or int8, computed with in float32.

Only the storage shrinks, a half or a quarter; onnxruntime unpacks when it loads. Arithmetic in float16 is left alone on purpose: text towers
overflow in it, and some runtimes crash on such graphs.
"""

from __future__ import annotations

from typing import Any

import numpy as np

LEAST = 256  # elements of a weight below which packing it saves nothing
# weights of one output channel below which int8 leaves them alone: too few for their errors to even out, and too few to matter for the size
# (depthwise convolutions, stems)
LEAST_FAN_IN = 64
LARGEST_HALF = 65504.0


def pack(model: Any, precision: str) -> int:
    """Pack the weights of a graph in place.

    Args:
        model: An ``onnx.ModelProto`` of float32 weights.
        precision: ``float16``: every weight; ``int8``: matrices of products and convolutions, symmetric, a step size for each output channel,
            where a channel has at least ``LEAST_FAN_IN`` weights; but the last product's, whose errors reach the embedding as they are.

    Returns:
        How many large weights stay float32: beyond the range of float16, or in int8 of no such operator (embeddings, norms),
        of few weights a channel, or of the last product.
    """
    import onnx
    from onnx import helper, numpy_helper

    axes = _channels(model.graph)
    kept, nodes, weights = 0, [], []
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor) if tensor.data_type == onnx.TensorProto.FLOAT else None
        if values is None or values.size < LEAST:
            weights.append(tensor)
            continue
        name, packed = tensor.name, f"{tensor.name}.{precision}"
        if precision == "float16" and np.abs(values).max() <= LARGEST_HALF:
            weights.append(numpy_helper.from_array(values.astype(np.float16), packed))
            nodes.append(helper.make_node("Cast", [packed], [name], to=onnx.TensorProto.FLOAT))
        elif precision == "int8" and name in axes and values.size >= LEAST_FAN_IN * values.shape[axes[name]]:
            steps, whole = _quantised(values, axes[name])
            weights += [numpy_helper.from_array(whole, packed), numpy_helper.from_array(steps, f"{packed}.step")]
            nodes.append(helper.make_node("DequantizeLinear", [packed, f"{packed}.step"], [name], axis=axes[name]))
        else:
            kept += 1
            weights.append(tensor)
    own = list(model.graph.node)
    del model.graph.initializer[:], model.graph.node[:]
    model.graph.initializer.extend(weights)
    model.graph.node.extend([*nodes, *own])
    return kept


def _quantised(values: np.ndarray[Any, Any], axis: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Step size of each channel, and whole numbers from -127 to 127."""
    others = tuple(i for i in range(values.ndim) if i != axis)
    steps = (np.abs(values).max(axis=others) / 127).astype(np.float32)
    steps[steps == 0] = 1
    shape = [-1 if i == axis else 1 for i in range(values.ndim)]
    return steps, np.clip(np.rint(values / steps.reshape(shape)), -127, 127).astype(np.int8)


def _channels(graph: Any) -> dict[str, int]:
    """Weights of products and convolutions but the last, with the axis of their output channels; one that is used otherwise too is left out."""
    found: dict[str, int] = {}
    uses: dict[str, int] = {}
    shapes = {tensor.name: len(tensor.dims) for tensor in graph.initializer}
    for node in graph.node:
        for place, name in enumerate(node.input):
            if name not in shapes:
                continue
            uses[name] = uses.get(name, 0) + 1
            transposed = any(x.name == "transB" and x.i for x in node.attribute)
            if place == 1 and node.op_type == "Conv":
                found[name] = 0
            elif place == 1 and node.op_type in ("MatMul", "Gemm") and shapes[name] == 2:
                found[name] = 0 if transposed else 1
    packed = list(found)[:-1]  # in the order of the graph; the last is the projection
    return {name: found[name] for name in packed if uses[name] == 1}

"""Images per second of ViT-B-32's image encoder, batch 8: the exported ONNX file in onnxruntime against eager PyTorch, same threads."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from common import figure, finish, quick
from torch import Tensor

from clipkit.encoder import Encoder
from clipkit.exporters import onnx_graph
from clipkit.exporters.embedders import example_image, image_embedder
from clipkit.towers.onnx import OnnxModel
from clipkit.towers.open_clip import build_pair

BATCH = 8


def rate(encode: Callable[[Tensor], Tensor], x: Tensor) -> float:
    """Images per second of one forward."""
    started = time.perf_counter()
    encode(x)
    return len(x) / (time.perf_counter() - started)


@torch.no_grad()
def main() -> int:
    """Run both in turn and compare medians."""
    repetitions = 7 if quick(__doc__ or "") else 25
    torch.manual_seed(0)
    encoder = Encoder.from_pair(build_pair("ViT-B-32"), model="ViT-B-32", pretrained=None)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "visual.onnx"
        example = example_image(encoder, 2)
        names = ("image", "features")
        graph = onnx_graph.trace(image_embedder(encoder), example, opset=18, names=names, static=False)
        onnx_graph.save(graph, path, {})
        del graph
        exported = OnnxModel(path)
    x = torch.randn(BATCH, *example.shape[1:])

    def eager(x: Tensor) -> Tensor:
        found: Tensor = encoder.image(x).pooled
        return found

    difference = float((eager(x) - exported(x)).abs().max())  # and both are warm
    pairs = [(rate(eager, x), rate(exported, x)) for _ in range(repetitions)]
    theirs, ours = (figure([pair[i] for pair in pairs]) for i in (0, 1))
    ratio = figure([b / a for a, b in pairs], value=ours["value"] / theirs["value"])
    figures = {
        "rate_ratio": ratio,
        "onnx_per_second": ours,
        "eager_per_second": theirs,
        "difference": figure([difference]),
    }
    return finish(
        "onnx_speed", peer=f"eager PyTorch {torch.__version__}, {torch.get_num_threads()} threads", figures=figures
    )


if __name__ == "__main__":
    sys.exit(main())

"""Class embeddings of a zero-shot classifier: 1,000 classes x 80 templates by clipkit against CLIP_benchmark, classes a second.

Both run the same tiny text tower (two layers of width 128, open_clip's tokenizer, context of 77) in one process, in turn. The peer encodes one
class at a time, all its prompts padded to the context; clipkit sorts prompts by length and trims them. Both spend the same on the tokenizer.
Both must give the same embeddings to 1e-5. ``--quick`` takes 100 of the classes and fewer repetitions.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import open_clip
import torch
from clip_benchmark.metrics.zeroshot_classification import zero_shot_classifier
from common import figure, finish, quick
from torch import Tensor

from clipkit.encoder import Encoder
from clipkit.evaluation.encodings import Encodings
from clipkit.evaluation.named_sets import templates_of
from clipkit.towers.open_clip import pair_from_config

CONFIG = {
    "embed_dim": 64,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "head_width": 32, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 128, "heads": 2, "layers": 2},
}


class Peer:
    """The same towers as CLIP_benchmark sees them: tokens in, embeddings out, padded to the context."""

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder

    def encode_text(self, tokens: Tensor) -> Tensor:
        """open_clip's own forward."""
        return self.encoder.text.model(tokens)


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    found = run()
    return time.perf_counter() - started, found


def main() -> int:
    """Compare medians of three runs (``--quick``: two)."""
    short = quick(__doc__ or "")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    encoder = Encoder.from_pair(pair_from_config(CONFIG), model="tiny", pretrained=None)
    names = list(open_clip.IMAGENET_CLASSNAMES)[: 100 if short else 1000]
    templates = list(templates_of("openai80"))

    def theirs() -> Tensor:
        return zero_shot_classifier(Peer(encoder), encoder.tokenize, names, templates, "cpu", amp=False).T

    def ours() -> Tensor:
        return Encodings(encoder).classes(names, templates)

    encoder.tokenize([name.replace("{c}", "x") for name in (*templates, *names)])  # its cache of words is warm for both
    pairs = []
    for _ in range(2 if short else 3):
        (slow, one), (fast, other) = timed(theirs), timed(ours)
        if not torch.allclose(one, other, atol=1e-5):
            raise AssertionError(f"the embeddings differ by {float((one - other).abs().max())}")
        pairs.append((len(names) / slow, len(names) / fast))
        print(f"classes a second: CLIP_benchmark {pairs[-1][0]:.1f}, clipkit {pairs[-1][1]:.1f}")
    peer, own = (figure([pair[i] for pair in pairs]) for i in (0, 1))
    ratio = figure([fast / slow for slow, fast in pairs], value=own["value"] / peer["value"])
    return finish(
        "class_weights",
        peer="clip_benchmark 1.6.2",
        figures={"rate_ratio": ratio, "clipkit_classes_per_second": own, "clip_benchmark_classes_per_second": peer},
    )


if __name__ == "__main__":
    sys.exit(main())

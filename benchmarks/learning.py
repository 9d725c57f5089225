"""Does clipkit learn as open_clip does where both do the same, and at least as well where its recipe differs?

``curve_difference``: the same weights and 20 batches of embedded drawings, ten times over so that the loss falls, through clipkit's module,
optimiser, schedule and loss in its real Trainer, and through open_clip's model and ``ClipLoss`` in open_clip's loop; the largest relative
difference of the losses in fp64 (``curve_difference_fp32`` stands beside: rounding grows). Both warm up over 20 steps, then follow a
cosine, and clip at 1. open_clip never lets the scale fall below 1, nor does clipkit; the schedules have the same convention.

``held_out_gain``: the demo's recipe against open_clip's on the demo's data, same model, batch, warm-up and captions. The figure is ``acc5``
of ``style_transfer``, seen concepts in a style that no training picture has; ``acc1`` stands beside. The peer's learning rate is the best
of three on seed 0 by that very figure, which favours it. Whole runs are timed, start and evaluation included; at equal wall time the peer's
schedule spans the steps that it makes in our time. The value is the smaller of the two ratios of means over the seeds.

The loop's few lines are rebuilt in ``open_clip_loop.py``. ``--quick``: the same curve in fp64 alone; one seed, 150 steps (many times chance,
far from converged) of the recipe that ``demo --quick`` ships for so few, the peer at the demo's rate, at least 0.9.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import open_clip
import torch
from common import figure, finish, quick
from lightning.pytorch import Callback
from open_clip_loop import build_peer, demo_batches, train_peer
from overhead import InMemory

import clipkit
from clipkit import training
from clipkit.building import build_model, build_module, cache_folder
from clipkit.callbacks.agreement import Agreement
from clipkit.config import load_config
from clipkit.data.embedded import materialise
from clipkit.encoder import Encoder
from clipkit.quiet import quieten
from clipkit.running import Run

STEPS, PAIRS, ROUNDS, CURVE_RATE = 200, 32, 10, 3e-4
FULL_STEPS, QUICK_STEPS = 2000, 150
RATES, QUICK_RATES = (5e-4, 1e-3, 2e-3), (1e-3,)
WARM_UP_SHARE = 0.08
MODEL = Path(__file__).resolve().parents[1] / "configs" / "demo_model.json"

Scores = dict[str, float]


class Batches(InMemory):
    """The given batches, once, of the shape that the real data module gives.

    Args:
        images: Normalised images, (B, 3, H, W) each.
        texts: Tokens, (B, L) each.
    """

    def __init__(self, images: list[torch.Tensor], texts: list[torch.Tensor]) -> None:
        super().__init__(len(images))
        self.images, self.texts = images, texts
        rows = torch.arange(len(texts[0]))
        self.batch |= {"id": rows, "content": {"image": rows, "text": rows}, "key": [f"{row:05d}" for row in rows]}

    def __iter__(self) -> Any:
        for step, (image, text) in enumerate(zip(self.images, self.texts, strict=True)):
            yield self.batch | {"image": image, "text": text, "position": step * len(text)}


class Curve(Callback):
    """The loss of every step."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Keep it."""
        self.losses.append(float(pl_module.parts["total"]))


def curve_difference(dtype: torch.dtype, steps: int = STEPS) -> float:
    """Largest relative difference of the two loss curves over ``steps`` steps."""
    warmup = max(1, steps // 10)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = folder / "curve.yaml"
        path.write_text(
            f"model: {MODEL}\ndata: {{train: {{none: {{shards: none.tar}}}}, batch_size: {PAIRS}}}\nloss: infonce\n"
            f"optim: {{lr: {CURVE_RATE}, weight_decay: 0.2, betas: [0.9, 0.98], eps: 1e-6, warmup: {warmup} steps, clip_norm: 1.0}}\n"
            f"trainer: {{length: {steps} steps, accelerator: cpu, devices: 1}}\n"
        )
        config = load_config(path, [])
        torch.manual_seed(0)
        peer, transform = build_peer(MODEL)
        batches = [
            (image.to(dtype), text)
            for image, text in demo_batches(MODEL, transform, PAIRS, max(1, steps // ROUNDS), seed=0)
        ]
        batches = [batches[step % len(batches)] for step in range(steps)]
        data = Batches([image for image, _ in batches], [text for _, text in batches])
        pair = build_model(config)
        pair.image.model.load_state_dict(peer.visual.state_dict())
        pair.text.model.load_state_dict(peer.text.state_dict())
        peer = peer.to(dtype)
        module = build_module(config, pair, steps=steps, warmup=warmup, own_losses={}).to(dtype)
        for scale in module.scales.values():
            scale.log_scale.data.copy_(peer.logit_scale.data)
        quieten()
        run = Run(config, folder, (1, 1), pair, data, {}, None, None)  # type: ignore[arg-type]
        trainer, _ = training._trainer(run, None, Agreement(), {}, None)
        curve = Curve()
        trainer.callbacks.append(curve)
        trainer.fit(module, datamodule=data)
    if len(curve.losses) != steps:
        raise RuntimeError(f"the run was stopped at step {len(curve.losses)} of {steps}: there is no curve to compare")
    theirs = train_peer(peer, batches, steps=steps, lr=CURVE_RATE, warmup=warmup, clip_norm=1.0)
    print(f"{dtype}: the loss falls from {theirs[0]:.3f} to {theirs[-1]:.3f}")
    return max(abs(a - b) / abs(b) for a, b in zip(curve.losses, theirs, strict=True))


def score(encoder: Encoder) -> Scores:
    """The demo's headline figures."""
    figures = clipkit.evaluate(encoder, data="embedded:style_transfer")
    return {name: figures[name] for name in ("acc1", "acc5")}


def ours(recipe: str, steps: int, seed: int, folder: Path) -> tuple[Scores, float]:
    """The recipe that is shipped for runs of about this length: figures, and seconds of the whole run."""
    started = time.perf_counter()
    changes = {
        "run": str(folder),
        "seed": seed,
        "trainer.length": f"{steps} steps",
        "optim.warmup": f"{round(WARM_UP_SHARE * steps)} steps",
        "evaluate.every": f"{steps} steps",
        "checkpoint.every": f"{steps} steps",
    }
    found = clipkit.fit(recipe, changes).figures
    return {name: found[f"val/style_transfer/{name}"] for name in ("acc1", "acc5")}, time.perf_counter() - started


def theirs(steps: int, seed: int, lr: float) -> tuple[Scores, float, float]:
    """open_clip's recipe: figures, seconds of the whole run, and of one step of it."""
    started = time.perf_counter()
    torch.manual_seed(seed)
    peer, transform = build_peer(MODEL)
    batches = demo_batches(MODEL, transform, 256, steps, seed=seed)
    began = time.perf_counter()
    train_peer(peer, batches, steps=steps, lr=lr, warmup=round(WARM_UP_SHARE * steps), clip_norm=1.0)
    step = (time.perf_counter() - began) / steps
    pair = build_model(load_config("demo", []))
    pair.image.model.load_state_dict(peer.visual.state_dict())
    pair.text.model.load_state_dict(peer.text.state_dict())
    found = score(Encoder.from_pair(pair, model="open_clip", pretrained=None))
    return found, time.perf_counter() - started, step


def held_out_gain(recipe: str, steps: int, seeds: range, rates: tuple[float, ...]) -> dict[str, dict[str, float]]:
    """Ratios of our figures to the peer's, at equal samples and at equal wall time."""
    materialise(cache_folder())
    runs: dict[str, list[Scores]] = {"ours": [], "samples": [], "time": []}
    tried = {lr: theirs(steps, 0, lr) for lr in rates}
    lr = max(rates, key=lambda rate: tried[rate][0]["acc5"])
    print(f"learning rates of the peer: { {rate: found for rate, (found, *_) in tried.items()} }; {lr} is taken")
    for seed in seeds:
        with tempfile.TemporaryDirectory() as name:
            mine, seconds = ours(recipe, steps, seed, Path(name) / "run")
        equal, their_seconds, step = tried[lr] if seed == 0 else theirs(steps, seed, lr)
        their_steps = max(1, round(steps + (seconds - their_seconds) / step))
        timed, *_ = theirs(their_steps, seed, lr)
        print(f"seed {seed}: ours {mine} in {seconds:.0f} s; equal samples {equal} in {their_seconds:.0f} s; ", end="")
        print(f"equal time, {their_steps} steps, {timed}")
        for kind, found in (("ours", mine), ("samples", equal), ("time", timed)):
            runs[kind].append(found)
    figures = {
        f"gain_{name}_equal_{kind}": _gain(runs, name, kind)
        for name in ("acc5", "acc1")
        for kind in ("samples", "time")
    }
    least = min((figures["gain_acc5_equal_samples"], figures["gain_acc5_equal_time"]), key=lambda it: it["value"])
    return {"held_out_gain": least} | figures


def _gain(runs: dict[str, list[Scores]], name: str, kind: str) -> dict[str, float]:
    mine, peers = ([found[name] for found in runs[who]] for who in ("ours", kind))
    ratios = [a / b for a, b in zip(mine, peers, strict=True)]
    return figure(ratios, value=statistics.mean(mine) / statistics.mean(peers))


def share_cores() -> None:
    """Either side takes all cores but one, which its one loader process has; ``fit`` keeps to what the environment says."""
    threads = max(1, (os.cpu_count() or 1) - 1)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    torch.set_num_threads(threads)
    print(f"{threads} threads and one loader process on either side")


def main() -> int:
    """Both figures."""
    short = quick(__doc__ or "")
    share_cores()
    figures = {"curve_difference": figure([curve_difference(torch.float64)])}
    if not short:
        figures["curve_difference_fp32"] = figure([curve_difference(torch.float32)])
    figures |= (
        held_out_gain("demo-quick", QUICK_STEPS, range(1), QUICK_RATES)
        if short
        else held_out_gain("demo", FULL_STEPS, range(3), RATES)
    )
    peer = f"open_clip_torch {open_clip.__version__}"
    return finish("learning", peer=peer, figures=figures, short=short)


if __name__ == "__main__":
    sys.exit(main())

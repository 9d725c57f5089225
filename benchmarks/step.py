"""A whole training step, forward to optimiser: clipkit's against open_clip's, in pairs a second, and what each measure wins.

Both train the same architecture from random weights on the same batch, in turn, in one process: uint8 images and captions of lognormal length
(mean 14 words' tokens, sigma 0.5, cut at 77). The peer is open_clip's own model, ``ClipLoss`` and AdamW in the few lines of its training
loop, rebuilt here; its images arrive normalised. ``--device cuda`` (the default where there is one): both under bf16 autocast, the clock
read after the device is done. A share is what the rate loses when that measure alone is switched off.

``--ranks N``, or under torchrun: each rank has a batch of its own, both sides train under DistributedDataParallel, the peer with
``local_loss`` and ``gather_with_grad``; rates are a rank's, rank 0 prints. ``--peak TFLOPS`` (what the maker promises of one device) adds
``mfu``: FLOP of a whole, untrimmed step as ``torch.utils.flop_counter`` counts it, times the rate, over the peak.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import open_clip
import torch
from common import cpu_name, figure, finish
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.flop_counter import FlopCounterMode

from clipkit import distributed
from clipkit.losses.infonce import InfoNCE
from clipkit.module import Batch, CLIPModule
from clipkit.optim import Optim
from clipkit.towers.open_clip import build_pair
from clipkit.towers.scale import LogitScale
from clipkit.towers.towers import Towers

CONTEXT, MEAN, SIGMA = 77, 14, 0.5
Step = Callable[[], Any]


def captions(pairs: int, vocabulary: int, seed: int = 0) -> Tensor:
    """Tokens (B, 77) of lognormal length, start and end included."""
    generator = torch.Generator().manual_seed(seed)
    location = math.log(MEAN) - SIGMA**2 / 2
    drawn = torch.exp(location + SIGMA * torch.randn(pairs, generator=generator)).round().long().clamp(3, CONTEXT)
    tokens = torch.randint(1, vocabulary - 2, (pairs, CONTEXT), generator=generator)
    places = torch.arange(CONTEXT)[None]
    tokens[places >= drawn[:, None]] = 0
    tokens[:, 0] = vocabulary - 2
    tokens[torch.arange(pairs), drawn - 1] = vocabulary - 1
    return tokens


def autocast(device: torch.device) -> torch.autocast:
    """Bf16 on a GPU, as both trainers run there; nothing on a CPU."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda", cache_enabled=True)


def open_clip_step(name: str, images: Tensor, tokens: Tensor) -> Step:
    """open_clip's model, loss and optimiser, as its trainer puts them together."""
    model = open_clip.create_model(name, output_dict=True).train().to(images.device)
    world = distributed.world_size()
    loss = open_clip.ClipLoss(
        local_loss=world > 1, gather_with_grad=world > 1, rank=distributed.rank(), world_size=world
    )
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": others, "weight_decay": 0.0}, {"params": matrices, "weight_decay": 0.2}]
    optimizer = torch.optim.AdamW(groups, lr=5e-4, betas=(0.9, 0.98), eps=1e-6)
    ready = images.float() / 255
    forward = over_ranks(model, images.device)

    def step() -> None:
        optimizer.zero_grad()
        with autocast(images.device):
            out = forward(ready, tokens)
            total = loss(out["image_features"], out["text_features"], out["logit_scale"])
        total.backward()
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))

    return step


class Forward(nn.Module):
    """The training step as a forward pass: what Lightning hands to DistributedDataParallel."""

    def __init__(self, module: CLIPModule) -> None:
        super().__init__()
        self.module = module

    def forward(self, batch: Batch) -> Tensor:
        """The loss."""
        return self.module.training_step(batch, 0)


def over_ranks(module: nn.Module, device: torch.device) -> nn.Module:
    """The module whose gradients are averaged over the ranks, where there are several."""
    if distributed.world_size() == 1:
        return module
    return DistributedDataParallel(module, device_ids=[device] if device.type == "cuda" else None)


def clipkit_step(
    name: str, images: Tensor, tokens: Tensor, *, trimmed: bool = True, parts: bool = True, fused: bool = True
) -> Step:
    """Clipkit's module and optimiser; switched off one by one: trimming, parts of like length, the fused optimiser."""
    pair = build_pair(name)
    scale = LogitScale(pair.log_scale, None)
    towers = Towers({"image": pair.image, "text": pair.text})
    optim = Optim(lr=5e-4, weight_decay=0.2, betas=(0.9, 0.98), eps=1e-6, warmup=0, schedule="cosine", steps=10**6)
    module = CLIPModule(
        towers=towers,
        losses={"infonce": InfoNCE(scale.forward)},
        weights={"infonce": 1.0},
        scales={"image_text": scale},
        optim=optim,
        seed=0,
    )
    module.train().to(images.device)
    optimizer: Any = module.configure_optimizers()
    if not fused:
        optimizer = _unfused(optimizer)
    forward = over_ranks(Forward(module), images.device)
    numbers = torch.arange(len(images), device=images.device) + distributed.rank() * len(images)
    on_cpu = {"image": images, "text": tokens.cpu()}  # where training reads the lengths
    batch = {"image": images, "text": tokens, "key": [""] * len(images), "id": numbers, "position": 0}
    batch["content"] = {"image": numbers, "text": numbers}

    def step() -> None:
        optimizer.zero_grad()
        lengths = towers.lengths(on_cpu)
        if not parts:  # one part, cut to the longest
            lengths = {field: [max(found)] * len(found) for field, found in lengths.items()}
        with autocast(images.device):
            loss = forward(batch | {"lengths": lengths if trimmed else {}})
        loss.backward()
        module.configure_gradient_clipping(optimizer)
        optimizer.step()
        module.guard.take(1)

    return step


def _unfused(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """The same groups under AdamW as it is by default."""
    groups = [{"params": g["params"], "weight_decay": g["weight_decay"]} for g in optimizer.param_groups]
    unfused = torch.optim.AdamW(groups, lr=5e-4, betas=(0.9, 0.98), eps=1e-6)
    unfused.register_step_pre_hook(
        lambda it, *_: setattr(it, "found_inf", None)
    )  # the guard's flag, which only fused ones take
    return unfused


def seconds(step: Step) -> float:
    """Of one step, to the end of what it gave the device to do."""
    wait = torch.cuda.synchronize if torch.cuda.is_available() else (lambda: None)
    wait()
    distributed.barrier()
    started = time.perf_counter()
    step()
    wait()
    return time.perf_counter() - started


def compare(steps: dict[str, Step], repetitions: int) -> dict[str, list[float]]:
    """Seconds of each, in turn, after one step of each that is not counted."""
    for step in steps.values():
        step()
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(repetitions):
        for name, step in steps.items():
            times[name].append(seconds(step))
    return times


def measure(
    name: str, pairs: int, repetitions: int, shares: bool, device: torch.device, peak: float | None = None
) -> dict[str, dict[str, float]]:
    """Figures of one architecture; ``peak`` in FLOP a second."""
    size = open_clip.get_model_config(name)["vision_cfg"]["image_size"]
    vocabulary = open_clip.get_model_config(name)["text_cfg"]["vocab_size"]
    seed = distributed.rank()
    images = torch.randint(
        0, 256, (pairs, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed + 1)
    )
    images, tokens = images.to(device), captions(pairs, vocabulary, seed).to(device)
    steps = {"open_clip": open_clip_step(name, images, tokens), "clipkit": clipkit_step(name, images, tokens)}
    without = {"trimming": {"trimmed": False}, "parts": {"parts": False}, "fused": {"fused": False}}
    if shares:
        steps |= {key: clipkit_step(name, images, tokens, **off) for key, off in without.items()}
    times = compare(steps, repetitions)
    ratios = [theirs / ours for theirs, ours in zip(times["open_clip"], times["clipkit"], strict=True)]
    middle = {key: statistics.median(found) for key, found in times.items()}
    figures = {"rate_ratio": figure(ratios, value=middle["open_clip"] / middle["clipkit"])}
    figures |= {f"{key}_pairs_per_second": figure([pairs / t for t in times[key]]) for key in ("open_clip", "clipkit")}
    if shares:
        figures |= {f"share_{key}": figure([1 - middle["clipkit"] / middle[key]]) for key in without}
    if peak is not None:
        with FlopCounterMode(display=False) as counted:
            steps["open_clip"]()
        figures["mfu"] = figure([counted.get_total_flops() / t / peak for t in times["clipkit"]])
    return figures


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="batch 8, ViT-B-32 alone, without the shares")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda")
    parser.add_argument("--ranks", type=int, default=1, help="processes on this machine, one a device")
    parser.add_argument("--peak", type=float, help="teraFLOP a second that the maker promises of one device")
    return parser.parse_args()


def main() -> int:
    """ViT-B-32 at batch 64, 7 steps, B-16 and L-14 beside it (``--quick``: ViT-B-32 at batch 8 alone, 5 steps, without the shares)."""
    options = parse()
    short, gpu = options.quick, options.device == "cuda"
    if options.ranks > 1 and not distributed.launched():
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={options.ranks}"]
        return subprocess.run([*launch, *sys.argv], check=False).returncode
    if distributed.launched():
        distributed.init(int(os.environ["WORLD_SIZE"]), gpu=gpu)
    device = torch.device("cuda", torch.cuda.current_device()) if gpu else torch.device("cpu")
    peak = None if options.peak is None else options.peak * 1e12
    figures = measure("ViT-B-32", 8 if short else 64, 5 if short else 7, shares=not short, device=device, peak=peak)
    if not short:
        for name, key in (("ViT-B-16", "b16"), ("ViT-L-14", "l14")):
            figures[f"rate_ratio_{key}"] = measure(name, 16, 3, shares=False, device=device)["rate_ratio"]
    if distributed.rank() > 0:
        return 0
    ran_on = torch.cuda.get_device_name() if gpu else cpu_name()
    ran_on += f", {distributed.world_size()} ranks" if distributed.world_size() > 1 else ""
    return finish(
        "step", peer=f"open_clip {open_clip.__version__}'s model, ClipLoss and loop", figures=figures, device=ran_on
    )


if __name__ == "__main__":
    sys.exit(main())

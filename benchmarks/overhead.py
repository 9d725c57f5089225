"""What clipkit adds to a training step: its step through the real Trainer with all callbacks, less a bare PyTorch step.

Towers take about a millisecond, so that what is not towers shows; it is given as a share of a step of half a second. Both train the same
towers on the same batch, already in memory, and alternate step by step in one process: a callback after all others runs the bare step, and all
time that is not the bare step's counts as clipkit's.
"""

from __future__ import annotations

import copy
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from common import figure, finish, quick
from lightning.pytorch import Callback, LightningDataModule
from torch import Tensor, nn

from clipkit import training
from clipkit.building import build_model, build_module
from clipkit.callbacks.agreement import Agreement
from clipkit.callbacks.watchdog import Watchdog
from clipkit.config import RunConfig, load_config
from clipkit.module import Batch, CLIPModule
from clipkit.quiet import quieten
from clipkit.running import Run

STEP_SECONDS = 0.5
PAIRS, WARM_UP, BLOCK = 16, 20, 100
WORDS, CONTEXT, PIXELS = 512, 16, 16
TOWERS = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": PIXELS, "layers": 1, "width": 32, "patch_size": 8, "head_width": 16},
    "text_cfg": {"context_length": CONTEXT, "vocab_size": WORDS, "width": 32, "heads": 2, "layers": 1},
}


class InMemory(LightningDataModule):
    """The same batch at every step, of the shape that the real data module gives.

    Args:
        steps: Steps of the run.
    """

    epoch_samples = PAIRS

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = self.batches = steps
        self.earlier: list[Any] = []
        generator = torch.Generator().manual_seed(0)
        tokens = torch.randint(1, WORDS - 1, (PAIRS, CONTEXT), generator=generator)
        tokens[:, -1] = WORDS - 1  # the end of the text, at the end: nothing is trimmed, both compute the same
        numbers = torch.arange(PAIRS)
        self.batch: Batch = {
            "image": torch.randint(0, 256, (PAIRS, 3, PIXELS, PIXELS), dtype=torch.uint8, generator=generator),
            "text": tokens,
            "id": numbers,
            "content": {"image": numbers, "text": numbers},
            "key": [f"{number:05d}" for number in range(PAIRS)],
            "bad": [],
            "noted": [],
        }

    def train_dataloader(self) -> InMemory:
        """Itself."""
        return self

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Batch]:
        return (self.batch | {"position": step * PAIRS} for step in range(self.steps))

    def advance(self, batch: Batch) -> None:
        """Nothing to keep."""

    def report(self) -> dict[str, Any]:
        """No source, no account."""
        return {}


class Bare:
    """A plain PyTorch loop over copies of the module's towers, without Trainer, callbacks, logging or schedule.

    Args:
        module: The module whose towers to copy.
        batch: The batch of every step.
    """

    def __init__(self, module: CLIPModule, batch: Batch) -> None:
        self.image, self.text = (copy.deepcopy(module.towers[field]).train() for field in ("image", "text"))
        self.log_scale = nn.Parameter(torch.tensor(2.6593))
        parameters = [*self.image.parameters(), *self.text.parameters(), self.log_scale]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": [p for p in parameters if p.ndim > 1], "weight_decay": 0.2},
                {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
            ],
            lr=5e-4,
            betas=(0.9, 0.98),
            eps=1e-6,
            fused=True,
        )
        self.batch = batch
        self.pairs = torch.arange(PAIRS)

    def step(self) -> Tensor:
        """One step."""
        self.optimizer.zero_grad()
        image, text = self.image(self.batch["image"]).pooled, self.text(self.batch["text"]).pooled
        logits = self.log_scale.exp() * image @ text.T
        loss = (F.cross_entropy(logits, self.pairs) + F.cross_entropy(logits.T, self.pairs)) / 2
        loss.backward()
        self.optimizer.step()
        return loss


class InTurn(Callback):
    """After each step of clipkit a bare one, both timed.

    Args:
        bare: The bare loop.
    """

    def __init__(self, bare: Bare) -> None:
        self.bare = bare
        self.times: list[tuple[float, float]] = []
        self._left = 0.0

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Clipkit's time is from the end of the last bare step to here."""
        arrived = time.perf_counter()
        self.bare.step()
        now = time.perf_counter()
        if batch_idx >= WARM_UP:
            self.times.append((arrived - self._left, now - arrived))
        self._left = now


def configuration(folder: Path, steps: int, changes: Sequence[str]) -> RunConfig:
    """A run of ``steps`` steps with all defaults but the changes; its shards are never read."""
    towers = folder / "towers.json"
    towers.write_text(json.dumps(TOWERS))
    path = folder / "overhead.yaml"
    path.write_text(
        f"model: {towers}\ndata: {{train: {{none: {{shards: none.tar}}}}, batch_size: {PAIRS}}}\nloss: infonce\n"
        f"trainer: {{length: {steps} steps, accelerator: cpu, devices: 1}}\n"
    )
    return load_config(path, changes)


def measure(
    folder: Path, steps: int, changes: Sequence[str] = (), watchdog: Watchdog | None = None
) -> list[tuple[float, float]]:
    """Seconds of each step after the warm-up: clipkit's and the bare one's. A run of one rank has no watchdog, unless it is given one."""
    config = configuration(folder, steps + WARM_UP, changes)
    data = InMemory(steps + WARM_UP)
    pair = build_model(config)
    module = build_module(config, pair, steps=len(data), warmup=0, own_losses={})
    # the very Trainer and callbacks that `clipkit fit` makes; only the data come from memory
    quieten()
    run = Run(config, folder, (1, 1), pair, data, {}, None, None, watchdog)  # type: ignore[arg-type]
    trainer, _ = training._trainer(run, None, Agreement(), {}, None)
    in_turn = InTurn(Bare(module, data.batch))
    trainer.callbacks.append(in_turn)
    trainer.fit(module, datamodule=data)
    return in_turn.times


def compare(benchmark: str, steps: int, changes: Sequence[str] = ()) -> int:
    """Medians of alternating steps; the spread is that of blocks of 100."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        times = measure(Path(folder), steps, changes)
    blocks = [times[start : start + BLOCK] for start in range(0, len(times), BLOCK)]
    ours, bare = ([statistics.median(time[i] for time in block) for block in blocks] for i in (0, 1))
    whole = [statistics.median(time[i] for time in times) for i in (0, 1)]
    shares = [(a - b) / STEP_SECONDS for a, b in zip(ours, bare, strict=True)]
    figures = {
        benchmark: figure(shares, value=(whole[0] - whole[1]) / STEP_SECONDS),
        "clipkit_ms": figure([1000 * x for x in ours], value=1000 * whole[0]),
        "bare_ms": figure([1000 * x for x in bare], value=1000 * whole[1]),
    }
    return finish(benchmark, peer=f"a bare PyTorch loop, torch {torch.__version__}", figures=figures)


def main() -> int:
    """500 alternating steps (``--quick``: 200)."""
    return compare("overhead", 200 if quick(__doc__ or "") else 500)


if __name__ == "__main__":
    sys.exit(main())

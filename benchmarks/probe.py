"""Time and accuracy of a linear probe with its search for the weight decay: clipkit against CLIP_benchmark's sweep.

10 classes, 5,000 features (512 wide, unit norm, variance falling from direction to direction) to learn from, 1,000 of them held
out for the choice, 10,000 others to score. Classes differ along every direction in proportion to its spread; besides, for
``leading_accuracy_gain`` alone, along the 48 widest only, where an optimiser that stops early does as well as an optimum. Both
are given the same rows, the same held-out rows and the same threads, and both search 97 weight decays from coarse to fine and
fit again on all rows. CLIP_benchmark trains about 20 times with AdamW, its
defaults (10 epochs, rate 0.1, batch 64), its loaders in this process; its code asks for CUDA, and is made to run here by
calls of ``cuda`` that do nothing.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from common import figure, finish, quick
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.utils.data import DataLoader

from clipkit.evaluation.linear_probe import fit_probe
from clipkit.evaluation.probe_splits import hold_out

CLASSES, WIDTH, LEADING, TRAIN, TEST = 10, 512, 48, 5000, 10_000
PARTS = ("train", "val", "test")
Set = dict[str, tuple[Tensor, Tensor]]


def features(seed: int, *, leading: bool) -> Set:
    """Classes that overlap, in the parts of the search."""
    generator = torch.Generator().manual_seed(seed)
    spread = torch.arange(1, WIDTH + 1).float().pow(-0.7)
    turn = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=generator))[0]
    means = torch.randn(CLASSES, WIDTH, generator=generator) * spread * (0.4 if leading else 0.15)
    if leading:
        means[:, LEADING:] = 0
    common = 0.08 * torch.randn(WIDTH, generator=generator)
    labels = torch.randint(0, CLASSES, (TRAIN + TEST,), generator=generator)
    noise = torch.randn(len(labels), WIDTH, generator=generator) * spread
    x = normalize((means[labels] + noise) @ turn + common, dim=1)
    fit, look = hold_out(labels[:TRAIN], 0.2, seed)
    rows = {"train": fit, "val": look, "test": torch.arange(TRAIN, TRAIN + TEST)}
    return {name: (x[index], labels[index]) for name, index in rows.items()}


def ours(data: Set) -> float:
    """Accuracy on the scored rows."""
    x, y = (torch.cat([data["train"][i], data["val"][i]]) for i in (0, 1))
    count = len(data["train"][0])
    fit, _ = fit_probe(x.double(), y, [(torch.arange(count), torch.arange(count, len(x)))])
    target, labels = data["test"]
    return float((fit.logits(target).argmax(1) == labels).double().mean())


class Loader(DataLoader[Any]):
    """The peer's loader in this process: it pins memory for a GPU that is not there."""

    def __init__(self, *arguments: Any, **how: Any) -> None:
        super().__init__(*arguments, **how | {"pin_memory": False, "num_workers": 0})


def theirs(data: Set, folder: Path) -> float:
    """Accuracy on the scored rows; the features lie where the peer keeps those that it computed before."""
    from clip_benchmark.metrics import linear_probe

    (folder / "id").mkdir(parents=True, exist_ok=True)
    for name in PARTS:
        for kind, value in zip(("features", "targets"), data[name], strict=True):
            torch.save(value, folder / "id" / f"{kind}_{name}.pt")

    class Cuda(str):  # the device that its code insists on, and what torch makes of it here
        def __eq__(self, other: object) -> bool:
            return other == "cuda" or str(self) == other

        __hash__ = str.__hash__

    plain = Tensor.numpy
    patches = [
        # its float() of an array of one element is refused by numpy 2.4
        mock.patch.object(Tensor, "numpy", lambda x, **how: x.squeeze() if x.shape == (1,) else plain(x, **how)),
        mock.patch.object(nn.Module, "cuda", lambda self, *_: self),
        mock.patch.object(Tensor, "cuda", lambda self, *_: self),
        mock.patch.object(nn, "DataParallel", lambda model, device_ids: model),
        mock.patch.object(linear_probe, "DataLoader", Loader),
        mock.patch.object(linear_probe, "tqdm", lambda rows: rows),
    ]
    with contextlib.ExitStack() as stack:
        for patch in patches:
            stack.enter_context(patch)
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        found = linear_probe.evaluate(
            nn.Identity(),
            None,
            None,
            -1,
            64,
            0,
            0.1,
            10,
            "id",
            0,
            str(folder),
            Cuda("cpu"),
            val_dataloader=True,
            amp=False,
        )
    return float(found["lp_acc1"])


def timed(run: Any, *arguments: Any) -> tuple[float, float]:
    started = time.perf_counter()
    accuracy = run(*arguments)
    return time.perf_counter() - started, accuracy


def main() -> int:
    """Three sets of features of both kinds (``--quick``: one)."""
    sets = 1 if quick(__doc__ or "") else 3
    small = {name: (x[:100], y[:100]) for name, (x, y) in features(99, leading=False).items()}
    timed(ours, small)  # the first call loads libraries
    rows = []
    for seed, leading in itertools.product(range(sets), (False, True)):
        data = features(seed, leading=leading)
        with tempfile.TemporaryDirectory() as folder:
            peer = timed(theirs, data, Path(folder))
        rows.append((leading, *peer, *timed(ours, data)))
    slow, fast = [row[1] for row in rows], [row[3] for row in rows]
    gains = {kind: [own - peer for leading, _, peer, _, own in rows if leading is kind] for kind in (False, True)}
    return finish(
        "probe",
        peer="clip_benchmark 1.6.2",
        figures={
            "time_ratio": figure([a / b for a, b in zip(slow, fast, strict=True)]),
            "accuracy_gain": figure(gains[False]),
            "leading_accuracy_gain": figure(gains[True]),
            "clipkit_seconds": figure(fast),
            "clip_benchmark_seconds": figure(slow),
        },
    )


if __name__ == "__main__":
    sys.exit(main())

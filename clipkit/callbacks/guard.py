"""What follows from what the guard saw: skipped steps are named, too many make the run roll back, and too many roll-backs stop it.

A roll-back goes to a checkpoint from before the bad steps and trains on with the same positions; the steps around the bad ones are left
out: their samples are read, their updates skipped. So the position in the data stays one integer, and step N always trains on the Nth batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from clipkit import spikes
from clipkit.callbacks.say import say
from clipkit.config.guard import GuardSpec
from clipkit.guard import BAD, LEFT_OUT, SPIKE, Skipped, Step
from clipkit.module import CLIPModule

MOST_STEPS = 100  # between two looks: until then the keys of every step are kept
RECENT = 100
CURE = "Lower optim.lr, set optim.clip_norm, or go on from an earlier checkpoint (--resume RUN/checkpoints/STEP)"


class NotFinite(RuntimeError):
    """The run cannot go on by itself."""


class RollBack(RuntimeError):
    """Go back to a checkpoint from before ``first`` and leave out ``left_out``.

    Args:
        first: The first bad step.
        left_out: First and last step to leave out.
        reason: What was bad.
    """

    def __init__(self, first: int, left_out: tuple[int, int], reason: str) -> None:
        super().__init__(reason)
        self.first, self.left_out, self.reason = first, left_out, reason


class ReportSkipped(Callback):
    """Read the guard's record now and then, and act on it; every rank has the same record and so decides alike.

    Args:
        every: Steps of a logging window.
        steps: Steps of the whole run.
        spec: What to do when.
    """

    def __init__(self, *, every: int, steps: int, spec: GuardSpec) -> None:
        self.every = min(every, MOST_STEPS)
        self.steps = steps
        self.spec = spec
        self.skipped = 0
        self._recent: list[
            tuple[int, bool]
        ] = []  # the last steps that were not left out, and whether they trained nothing
        self._history = {"gradient norm": spikes.empty(), "loss": spikes.empty()}
        self._norms = spikes.empty()
        self._counted: dict[str, int] = {}
        self._kept: list[Step] = []  # seen by a checkpoint between two looks
        self._culprits: list[Any] = []
        self._module: CLIPModule | None = None
        self._step = 0

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """What was left out, for ``state.json``."""
        assert isinstance(pl_module, CLIPModule)
        guard = pl_module.guard
        checkpoint["guard"] = {"left_out": [list(x) for x in guard.left_out], "rollbacks": guard.rollbacks}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Join it to what this process knows already: a roll-back loads a checkpoint that is older than it."""
        assert isinstance(pl_module, CLIPModule)
        known, guard = checkpoint.get("guard", {}), pl_module.guard
        guard.left_out = joined([*guard.left_out, *((a, b) for a, b in known.get("left_out", []))])
        guard.rollbacks = max(guard.rollbacks, int(known.get("rollbacks", 0)))

    def state_dict(self) -> dict[str, Any]:
        """Counts and what decides later; all ranks call it together."""
        self._read()
        norms, clamps = spikes.empty(), dict[str, int]()
        if self._module is not None:
            norms = self._module.guard.norms.cpu()
            clamps = {name: int(count) for name, count in self._module.guard.clamps.items()}
        return {
            "skipped": self.skipped,
            "recent": [list(x) for x in self._recent],
            "history": dict(self._history),
            "norms": norms,
            "clamps": clamps,
            "kept": [list(x) for x in self._kept],
            "culprits": [list(x) for x in self._culprits],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting."""
        self.skipped = int(state_dict["skipped"])
        self._recent = [(int(step), bool(bad)) for step, bad in state_dict.get("recent", [])]
        self._history |= {name: x.clone() for name, x in state_dict.get("history", {}).items()}
        self._kept = [Step(*x) for x in state_dict.get("kept", [])]
        self._culprits = [tuple(x) for x in state_dict.get("culprits", [])]
        self._norms = state_dict.get("norms", spikes.empty())
        self._counted = {name: int(count) for name, count in state_dict.get("clamps", {}).items()}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tell the guard what to skip by itself."""
        assert isinstance(pl_module, CLIPModule)
        self._module = pl_module
        pl_module.guard.reset()
        pl_module.guard.spike_score = self.spec.spike_score if self.spec.spikes == "skip" else None
        pl_module.guard.norms = self._norms.clone()
        pl_module.guard.clamps = {
            name: torch.tensor(count, device=pl_module.device) for name, count in self._counted.items()
        }

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look at the end of each window, and at the end of the run."""
        self._step = step = trainer.global_step
        if step % self.every and step != self.steps and not trainer.should_stop:
            return
        self._read()
        seen, culprits = self._kept, self._culprits
        self._kept, self._culprits = [], []
        bad = [one for one in seen if one.code in (BAD, SPIKE)]
        spiked = self._spikes(seen)
        self.skipped += sum(one.code > 0 for one in seen)
        for lines in _told(seen, culprits):
            say(f"warning: {lines}; {self.skipped} of {step} steps so far trained nothing")
        if spiked:
            say(f"warning: {spiked[0][1]}" + (f", and in {len(spiked) - 1} steps after it" if spiked[1:] else ""))
        self._recent = [*self._recent, *((one.step, one.code > 0) for one in seen if one.code != LEFT_OUT)][-RECENT:]
        if spiked and self.spec.spikes == "rollback":
            self._go_back([step for step, _ in spiked], spiked[0][1])
        if bad:
            self._judge()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say what trained nothing: it stands as trained in the account of the data."""
        assert isinstance(pl_module, CLIPModule)
        if self.skipped:
            ranges = ", ".join(f"{a} to {b}" for a, b in pl_module.guard.left_out)
            also = f"; left out after {pl_module.guard.rollbacks} roll-backs: steps {ranges}" if ranges else ""
            say(f"guard: {self.skipped} of {trainer.global_step} steps reached no weights{also}")

    def _read(self) -> None:
        if self._module is not None:
            found = self._module.guard.take(self._step)
            self._kept += self._module.guard.seen
            self._module.guard.seen = []
            self._culprits += found.culprits if found is not None else []

    def _judge(self) -> None:
        longest, run = list[int](), list[int]()
        for step, bad in self._recent:
            run = [*run, step] if bad else []
            longest = max(longest, run, key=len)
        lost = [step for step, bad in self._recent if bad]
        if len(longest) >= self.spec.consecutive:
            self._go_back(longest, f"no step of the last {len(longest)} had a gradient to train on")
        if len(lost) > self.spec.share * RECENT:
            self._go_back(lost, f"{len(lost)} of the last {len(self._recent)} steps trained nothing")

    def _go_back(self, steps: Sequence[int], reason: str) -> None:
        raise RollBack(steps[0], (max(1, steps[0] - self.spec.margin), steps[-1] + self.spec.margin), reason)

    def _spikes(self, seen: Sequence[Step]) -> list[tuple[int, str]]:
        found: list[tuple[int, str]] = []
        for one in seen if self.spec.spikes != "ignore" else ():
            if one.code in (BAD, LEFT_OUT):
                continue
            for (name, history), value in zip(self._history.items(), (one.norm, one.loss), strict=True):
                number = torch.tensor(value)
                far = float(spikes.score(number, history))
                spikes.remember_(history, number, one.step)
                if far > self.spec.spike_score and one.code == 0 and all(one.step != step for step, _ in found):
                    words = (
                        f"the {name} of step {one.step} is {value:.4g}, {far:.1f} robust deviations above those before"
                    )
                    found.append((one.step, words))
        return found


def _told(seen: Sequence[Step], culprits: Sequence[Any]) -> list[str]:
    bad, spiked = ([one.step for one in seen if one.code == code] for code in (BAD, SPIKE))
    lines = [str(Skipped(len(bad), bad[0], list(culprits)))] if bad else []
    if spiked:
        many = f"{len(spiked)} steps were" if len(spiked) > 1 else "1 step was"
        lines.append(f"{many} skipped for a gradient norm far above those before (the first: step {spiked[0]})")
    return lines


def joined(ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The same steps in as few ranges as can be, in order.

    Example:
        >>> joined([(7, 9), (1, 3), (4, 5)])
        [(1, 5), (7, 9)]
    """
    found: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if found and first <= found[-1][1] + 1:
            found[-1] = (found[-1][0], max(last, found[-1][1]))
        else:
            found.append((first, last))
    return found

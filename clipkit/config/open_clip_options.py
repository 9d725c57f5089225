"""Every option of open_clip_train 3.3.0: how many values it takes, and why it has no key of its own where it has none.

An option with a sentence is answered by that sentence; one without is translated in ``from_open_clip``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Option:
    """One option.

    Args:
        takes: ``switch`` takes no value, ``one`` takes one, ``several`` takes all up to the next option.
        why_not: Why it is not written into the configuration; None where it is.
    """

    takes: Literal["switch", "one", "several"] = "one"
    why_not: str | None = None


def _switch(why_not: str | None = None) -> Option:
    return Option("switch", why_not)


def _one(why_not: str) -> Option:
    return Option("one", why_not)


_IN_THE_MODEL = "it belongs to the model: write an open_clip JSON configuration with it and name that file as `model`"
_NO_COOLDOWN = "there is no cooldown: the schedule is `cosine` or `constant`"
_NO_COCA = "models with a caption decoder (CoCa) are not trained"

OPTIONS: dict[str, Option] = {
    "train-data": Option(),
    "train-data-upsampling-factors": Option(),
    "val-data": Option(),
    "train-num-samples": Option(),
    "val-num-samples": _one("the index counts validation samples; all full batches are read"),
    "dataset-type": Option(),
    "dataset-resampled": _switch("shards are planned: each sample comes once an epoch, and resuming is exact"),
    "csv-separator": _one("the separator is found by itself"),
    "csv-img-key": Option(),
    "csv-caption-key": Option(),
    "imagenet-val": Option(),
    "imagenet-v2": Option(),
    "cache-dir": _one("weights are cached where huggingface_hub keeps them: set HF_HOME"),
    "logs": Option(),
    "log-local": _switch("the run folder is one path for all ranks, and rank 0 writes it"),
    "name": Option(),
    "workers": Option(),
    "batch-size": Option(),
    "epochs": Option(),
    "epochs-cooldown": _one(_NO_COOLDOWN),
    "lr": Option(),
    "beta1": Option(),
    "beta2": Option(),
    "eps": Option(),
    "wd": Option(),
    "momentum": _one("the optimiser is AdamW, whose momentum is --beta1"),
    "warmup": Option(),
    "opt": Option(),
    "use-bn-sync": _switch("batch norms keep statistics per rank, which is said at the start"),
    "skip-scheduler": Option("switch"),
    "lr-scheduler": Option(),
    "lr-cooldown-end": _one(_NO_COOLDOWN),
    "lr-cooldown-power": _one(_NO_COOLDOWN),
    "save-frequency": Option(),
    "save-most-recent": _switch("the newest checkpoints are kept by `checkpoint.keep_last`"),
    "zeroshot-frequency": Option(),
    "val-frequency": Option(),
    "resume": Option(),
    "precision": Option(),
    "model": Option(),
    "pretrained": Option(),
    "pretrained-image": _switch("weights are those of a whole model: `model: NAME:TAG`"),
    "lock-image": Option("switch"),
    "lock-image-unlocked-groups": Option(),
    "lock-image-freeze-bn-stats": _switch("what is locked always keeps its batch statistics"),
    "image-mean": Option("several", _IN_THE_MODEL),
    "image-std": Option("several", _IN_THE_MODEL),
    "image-interpolation": _one(_IN_THE_MODEL),
    "image-resize-mode": _one(_IN_THE_MODEL),
    "aug-cfg": Option("several"),
    "grad-checkpointing": Option("switch"),
    "local-loss": _switch("the gradient is always that of the global batch, and its memory never N x N"),
    "gather-with-grad": _switch("the gradient is always that of the global batch"),
    "force-context-length": _one(_IN_THE_MODEL),
    "force-image-size": Option("several", _IN_THE_MODEL),
    "force-quick-gelu": _switch(_IN_THE_MODEL),
    "force-patch-dropout": Option(),
    "force-custom-text": _switch("towers are always two modules; exports carry open_clip's own keys"),
    "torchscript": _switch("TorchScript is not used; `trainer.compile: true` compiles the towers"),
    "torchcompile": Option("switch"),
    "trace": _switch("TorchScript is not used; `trainer.compile: true` compiles the towers"),
    "accum-freq": Option(),
    "device": Option(),
    "dist-url": _one("the launcher tells the ranks where to meet (torchrun --rdzv-endpoint)"),
    "dist-backend": _one("it is NCCL on GPUs and gloo on CPUs"),
    "report-to": Option(),
    "wandb-notes": _one("notes are written in wandb's own page"),
    "wandb-project-name": Option(),
    "debug": _switch("CLIPKIT_TRACEBACK=1 shows where bad input was found"),
    "copy-codebase": _switch("the run folder records versions, configuration and command"),
    "horovod": _switch("ranks are torch's: start them with torchrun or srun"),
    "ddp-static-graph": _switch("one forward and one backward a step: nothing is left to gain"),
    "no-set-device-rank": _switch("each rank takes the GPU of its local rank"),
    "seed": Option(),
    "grad-clip-norm": Option(),
    "lock-text": Option("switch"),
    "lock-text-unlocked-layers": Option(),
    "lock-text-freeze-layer-norm": _switch("the norms of a locked layer are locked with it"),
    "log-every-n-steps": Option(),
    "coca-caption-loss-weight": _one(_NO_COCA),
    "coca-contrastive-loss-weight": _one(_NO_COCA),
    "remote-sync": Option(),
    "remote-sync-frequency": _one("each checkpoint is copied once it is written"),
    "remote-sync-protocol": _one("copies go through fsspec"),
    "delete-previous-checkpoint": Option("switch"),
    "distill-model": Option(),
    "distill-pretrained": Option(),
    "use-bnb-linear": _one("int8 linear layers are not used"),
    "siglip": Option("switch"),
    "loss-dist-impl": _one("features are gathered once, in tiles; there is nothing to choose"),
}

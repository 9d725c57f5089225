"""The whole configuration of a run, and the checks that need several parts of it."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from clipkit.config.base import LocatedErrors, Name, Spec, Text
from clipkit.config.checkpoint import CheckpointSpec
from clipkit.config.data import DataSpec
from clipkit.config.evaluate import EvaluateSpec, RetrievalSpec, ZeroShotSpec
from clipkit.config.guard import GuardSpec
from clipkit.config.logs import LoggingSpec
from clipkit.config.losses import LossSpec, move_loss, paired_fields, stored_fields
from clipkit.config.model import ModelSpec
from clipkit.config.optim import OptimSpec
from clipkit.config.trainer import TrainerSpec

Fault = tuple[tuple[str | int, ...], str]


class RunConfig(Spec):
    """Everything that decides a training run."""

    model: ModelSpec = Field(description="The model to train; NAME or NAME:tag is its short form.")
    seed: Annotated[int, Field(strict=True, ge=0, lt=2**32)] = Field(
        0, description="Decides order, augmentation, dropout and fresh weights."
    )
    data: DataSpec = Field(description="What the run reads.")
    loss: LossSpec | None = Field(
        None, description="The only loss: short for one entry of `losses`, named by its kind. Empty once loaded."
    )
    losses: Annotated[dict[Name, LossSpec], Field(min_length=1)] = Field(
        default_factory=dict, validate_default=False, description="Losses by name; logged as train/loss/NAME."
    )
    optim: OptimSpec = Field(default_factory=OptimSpec, description="AdamW and its learning rate.")
    trainer: TrainerSpec = Field(description="Length, hardware and arithmetic of the run.")
    checkpoint: CheckpointSpec = Field(
        default_factory=CheckpointSpec, description="Which checkpoints to write and keep."
    )
    evaluate: EvaluateSpec = Field(default_factory=EvaluateSpec, description="What is measured, and when.")
    guard: GuardSpec = Field(default_factory=GuardSpec, description="What happens when the numbers go wrong.")
    logging: LoggingSpec = Field(default_factory=LoggingSpec, description="How often to log, and where to.")
    run: Text | None = Field(None, description="The run folder; unset: runs/ and the configuration's stem.")

    @model_validator(mode="before")
    @classmethod
    def _one_form_of_losses(cls, tree: Any) -> Any:
        return move_loss(tree)

    @model_validator(mode="after")
    def _parts_agree(self) -> Self:
        faults = [*_loss_faults(self), *_view_faults(self), *_evaluation_faults(self), *_arithmetic_faults(self)]
        if faults:
            raise LocatedErrors(faults)
        return self

    @property
    def best_figure(self) -> str | None:
        """The figure that `checkpoint.keep_best` goes by; None where none is kept."""
        if self.checkpoint.keep_best == 0:
            return None
        return self.checkpoint.best or next(iter(figures(self)), None)

    @property
    def watched_figure(self) -> str | None:
        """The figure that `evaluate.stop` goes by; None without an early stop."""
        stop = self.evaluate.stop
        return None if stop is None else stop.monitor or next(iter(figures(self)), None)


def figures(config: RunConfig) -> list[str]:
    """Name every figure that the run's evaluation gives; the first is the default of `checkpoint.best`."""
    named = [f"val/{name}/{figure}" for name, task in config.evaluate.tasks.items() for figure in task.figures]
    named += [  # of which kind a task on held-out data is shows once it is packed
        f"val/{name}/{figure}"
        for name in held_out(config)
        for spec in (RetrievalSpec(kind="retrieval", data=name), ZeroShotSpec(kind="zero_shot", data=name))
        for figure in spec.figures
    ]
    return [*named, *(["val/loss"] if config.data.val else [])]


def held_out(config: RunConfig) -> list[str]:
    """The loose training sources of which a share is held out: each becomes a task of its name once it is packed."""
    return [name for name, source in config.data.train.items() if source.loose is not None and config.data.pack.split]


def _loss_faults(config: RunConfig) -> list[Fault]:
    if not config.losses:
        return [(("losses",), "no loss is given; write `loss: infonce`")]
    faults: list[Fault] = []
    for name, loss in config.losses.items():
        pair = paired_fields(loss)
        if pair and pair[0] == pair[1]:
            faults.append((("losses", name, "pair"), "a field cannot be paired with itself"))
        for kind, sources in (("train", config.data.train), ("val", config.data.val)):
            for source_name, source in sources.items():
                lacking = [field for field in pair if field not in {*source.fields, *config.data.views}]
                if lacking:
                    message = f"the loss `{name}` pairs {' and '.join(pair)}; missing: {', '.join(lacking)}"
                    faults.append((("data", kind, source_name, "fields"), message))
                faults += [
                    (("data", kind, source_name, "fields"), f"the loss `{name}` reads {field}; name its .npy here")
                    for field in stored_fields(loss)
                    if field not in source.fields
                ]
    return faults


def _view_faults(config: RunConfig) -> list[Fault]:
    data = config.data
    if not data.views:
        return []
    sources = [("train", *item) for item in data.train.items()] + [("val", *item) for item in data.val.items()]
    return [
        (("data", kind, name, "fields"), "has no image, of which data.views would be made")
        for kind, name, source in sources
        if "image" not in source.fields
    ]


def _evaluation_faults(config: RunConfig) -> list[Fault]:
    faults: list[Fault] = []
    known = figures(config)
    for key in ("every", "at_start", "stop"):
        if getattr(config.evaluate, key) and not known:
            faults.append((("evaluate", key), "nothing to evaluate: give `evaluate.tasks` or `data.val`"))
    for name in held_out(config):
        if name in config.evaluate.tasks:
            message = "a task of this name comes with the source of the same name (data.pack.split); rename one"
            faults.append((("evaluate", "tasks", name), message))
    watched = config.evaluate.stop.monitor if config.evaluate.stop else None
    if watched is not None and known and watched not in known:
        faults.append((("evaluate", "stop", "monitor"), f"names no figure of this run; one of: {', '.join(known)}"))
    best = config.checkpoint.best
    if best is not None and best not in known:
        message = f"names no figure of this run; {'one of: ' + ', '.join(known) if known else 'it evaluates nothing'}"
        faults.append((("checkpoint", "best"), message))
    if config.checkpoint.keep_best and best is None and not known:
        message = "no figure to go by: give `evaluate.tasks` or `data.val`"
        faults.append((("checkpoint", "keep_best"), message))
    if best is not None and config.checkpoint.keep_best == 0:
        faults.append((("checkpoint", "best"), "has no effect while `checkpoint.keep_best` is 0"))
    return faults


def _arithmetic_faults(config: RunConfig) -> list[Fault]:
    faults: list[Fault] = []
    trainer, size = config.trainer, config.data.batch_size
    if isinstance(trainer.micro_batch, int) and trainer.micro_batch > size:
        faults.append((("trainer", "micro_batch"), f"is above the whole batch (data.batch_size is {size})"))
    if isinstance(trainer.devices, int) and size % (trainer.devices * trainer.nodes):
        ranks = trainer.devices * trainer.nodes
        near = " or ".join(str(x) for x in (size // ranks * ranks, -(-size // ranks) * ranks) if x)
        faults.append(
            (
                ("data", "batch_size"),
                f"is no multiple of the {ranks} ranks (trainer.devices x trainer.nodes); take {near}",
            )
        )
    if trainer.strategy == "fsdp2" and trainer.compile:
        message = "does not go with trainer.strategy=fsdp2, which is not proven there; leave it out, or take ddp"
        faults.append((("trainer", "compile"), message))
    warmup, length = config.optim.warmup, trainer.length
    if warmup.unit == length.unit and warmup.value > length.value:
        faults.append((("optim", "warmup"), f"is longer than the run ({length})"))
    if trainer.deterministic and trainer.lightning.get("benchmark"):
        message = "lets cuDNN pick kernels by timing, against `trainer.deterministic`"
        faults.append((("trainer", "lightning", "benchmark"), message))
    return faults

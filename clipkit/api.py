"""The verbs as functions: what the command line calls, and what Python users call."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from clipkit.config import RunConfig, load_config
from clipkit.exporters.formats import FORMATS as FORMATS

if TYPE_CHECKING:
    from clipkit.building import LossFactory
    from clipkit.encoder import Encoder
    from clipkit.exporters.parity import ParityReport
    from clipkit.training import Outcome

Task = Literal["zero_shot", "retrieval"]


def load(model: str | Path, *, device: str = "cpu") -> Encoder:
    """Load an encoder.

    Args:
        model: A run folder (its newest checkpoint that verifies), ``RUN/checkpoints/STEP``, an exported folder, a JSON configuration, an
            open_clip ``.pt``, ``hf-hub:org/repo``, or an open_clip name with ``:tag``.
        device: Where to put the towers.

    Raises:
        ValueError: If nothing of that name can be loaded.
    """
    from clipkit.callbacks.say import say
    from clipkit.loading import load_encoder

    encoder, notes = load_encoder(model)
    for note in notes:
        say(note)
    return encoder.to(device)


def fit(
    config: str | Path | RunConfig,
    overrides: Mapping[str, Any] | Sequence[str] = (),
    *,
    resume: str = "auto",
    losses: Mapping[str, LossFactory] | None = None,
    plugin: str | None = None,
    allow_mismatch: bool = False,
    allow_pipe: bool = False,
) -> Outcome:
    """Train, or go on with an unfinished run of the same configuration.

    Args:
        config: A configuration file, the name of a shipped one, or a loaded configuration.
        overrides: ``{"optim.lr": 1e-3, "run": "runs/mine"}`` or ``["optim.lr=1e-3"]``.
        resume: ``auto`` goes on from the newest checkpoint that verifies, ``never`` refuses a folder that has one, or a checkpoint folder.
        losses: Own losses by name, beside those of the configuration: each a function that is given ``scale_of(pair)`` and returns a
            ``clipkit.losses.base.Loss``. Only in one process, or under torchrun.
        plugin: A module with ``LOSSES``, such a mapping; it is imported on every rank.
        allow_mismatch: Whether a run goes on although its data or seed differ: from the checkpoint's weights and optimiser, at the
            beginning of the data given here.
        allow_pipe: Whether a ``pipe:`` among the shards may run its program; a configuration cannot say so.

    Returns:
        The run: ``folder``, ``step``, ``figures`` of the last evaluation, ``code`` (75 if a signal stopped it).

    Raises:
        ValueError: If the configuration, the data, the model or the folder do not fit.
        RuntimeError: If ranks that were started failed.
    """
    from clipkit import distributed
    from clipkit.allowed import Allowed
    from clipkit.hardware import devices_here
    from clipkit.launch import ranks_wanted, start_ranks
    from clipkit.packing import pack_loose
    from clipkit.plugins import load_plugin
    from clipkit.run_folder import default_folder
    from clipkit.training import train

    distributed.adopt_srun(os.environ)
    loaded = config if isinstance(config, RunConfig) else load_config(config, overrides)
    folder = Path(loaded.run) if loaded.run else default_folder("run" if isinstance(config, RunConfig) else config)
    ranks = ranks_wanted(loaded, devices_here(loaded))
    allowed = Allowed(mismatch=allow_mismatch, pipe=allow_pipe)
    loaded = pack_loose(loaded)
    if distributed.launched() or ranks[0] == 1:
        module = load_plugin(plugin) if plugin else None
        return train(loaded, folder, ranks=ranks, resume=resume, own_losses=losses, plugin=module, allowed=allowed)
    if losses:
        raise ValueError(f"own losses cannot be sent to {ranks[0]} fresh ranks; use torchrun, or set trainer.devices=1")
    told = loaded.model_copy(update={"run": str(folder)})
    end = start_ranks(told, ranks=ranks[0], resume=resume, plugin=plugin, allowed=allowed)
    return _outcome_of_ranks(folder, *end)


def _outcome_of_ranks(folder: Path, code: int, message: str) -> Outcome:
    from clipkit.launch import RanksFailed

    if code == 2:
        raise ValueError(message.removeprefix("error: "))  # the command line puts it there again
    if code == 130:
        raise KeyboardInterrupt
    if code not in (0, 75):
        raise RanksFailed(message or f"the ranks failed with code {code}; their own words stand above")
    return _outcome(folder)


def evaluate(
    model: str | Path | Encoder, *, data: str | Path, task: Task | None = None, batch_size: int = 64, workers: int = 0
) -> dict[str, Any]:
    """Score an encoder on a data set.

    Args:
        model: An encoder, or what ``load`` takes.
        data: CLIP_benchmark's WebDataset layout, class folders, images with captions beside them, a CSV, or ``embedded:NAME``.
        task: ``zero_shot`` or ``retrieval``; None asks the data.
        batch_size: Images of one forward.
        workers: Processes that read and decode images.

    Returns:
        Figures by name, as fractions.
    """
    from clipkit.building import cache_folder, evaluation_data
    from clipkit.evaluation.datasets import task_of
    from clipkit.evaluation.encodings import Encodings
    from clipkit.evaluation.retrieval import Retrieval
    from clipkit.evaluation.zero_shot import ZeroShot

    place = evaluation_data(data, cache_folder())
    kinds: dict[str, type[ZeroShot] | type[Retrieval]] = {"zero_shot": ZeroShot, "retrieval": Retrieval}
    chosen = task or task_of(place)
    if chosen not in kinds:
        raise ValueError(f"there is no task {chosen!r}; tasks: {', '.join(kinds)}")
    evaluator = kinds[chosen](place)
    encoder = load(model) if isinstance(model, str | Path) else model
    return dict(evaluator.run(Encodings(encoder, batch_size=batch_size, workers=workers)).figures)


def export(
    model: str | Path | Encoder,
    format: str,
    out: str | Path,
    *,
    options: Mapping[str, Any] | None = None,
    images: Sequence[Any] | None = None,
    texts: Sequence[str] | None = None,
    force: bool = False,
) -> ParityReport:
    """Write an encoder for another program, and prove that what was written is the same encoder.

    Args:
        model: An encoder, or what ``load`` takes.
        format: A name of ``FORMATS``; ``open_clip``: a folder for ``open_clip.create_model_and_transforms("local-dir:OUT")``.
        out: The folder to make.
        options: Of the format: fields of its class in ``clipkit/exporters/``.
        images: Real images (PIL, or paths) to compare on, at least 8; None for drawings of the embedded data set.
        texts: Real texts to compare on, at least 8; None for names of that data set.
        force: Whether to replace a folder that is not empty.

    Returns:
        The parity report, which also stands in ``OUT/parity.json``.

    Raises:
        ValueError: If the format is unknown or cannot hold the encoder, or the folder is not empty.
        ParityError: If the written files are not the same encoder; nothing is left then.
    """
    from clipkit.exporters.formats import make_format

    kind = make_format(format, options)
    from clipkit.exporters.prove import export_encoder

    encoder = load(model) if isinstance(model, str | Path) else model
    return export_encoder(encoder, kind, out, images=images, texts=texts, force=force)


def _outcome(folder: Path) -> Outcome:
    """How the run in a folder ended, read from its files."""
    from clipkit.callbacks.metrics import RECORD
    from clipkit.checkpoint import newest
    from clipkit.run_folder import STOPPED, finished_step
    from clipkit.training import Outcome

    found, _ = newest(folder / "checkpoints")
    step, steps = finished_step(found)
    stopped = json.loads((folder / STOPPED).read_text())["reason"] if (folder / STOPPED).is_file() else None
    lines = (
        [json.loads(line) for line in (folder / RECORD).read_text().splitlines()] if (folder / RECORD).is_file() else []
    )
    evaluated = [line for line in lines if any(name.startswith("val/") for name in line)]
    figures = {name: value for name, value in (evaluated[-1] if evaluated else {}).items() if name.startswith("val/")}
    return Outcome(folder, step, steps, stopped, figures)

"""The verbs as functions: what the command line calls, and what Python users call."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from clipkit.config import RunConfig, load_config
from clipkit.exporters.formats import FORMATS as FORMATS

if TYPE_CHECKING:
    from collections.abc import Callable

    from clipkit.building import LossFactory
    from clipkit.embedding.find import Finder, Hit
    from clipkit.encoder import Encoder
    from clipkit.exporters.parity import ParityReport
    from clipkit.run_folder import Outcome


def load(model: str | Path, *, device: str = "cpu", average: bool = True, trust_code: bool = False) -> Encoder:
    """Load an encoder.

    Args:
        model: A run folder (its newest checkpoint that verifies), ``RUN/checkpoints/STEP``, an exported folder, a JSON configuration, an
            open_clip ``.pt``, ``hf-hub:org/repo``, or an open_clip name with ``:tag``.
        device: Where to put the towers.
        average: Whether to take a run's moving average of the weights, where it keeps one (``optim.ema``), as ``export`` does.
        trust_code: Whether you trust whoever wrote an exported folder of ``.pt2`` files to run code here; they are refused without. With
            it, programs of torch.export are held to what an encoder needs; AOTInductor's packages are machine code and run as they stand.

    Raises:
        ValueError: If nothing of that name can be loaded, or it holds programs that nobody said to trust.
    """
    from clipkit.callbacks.say import say
    from clipkit.loading import load_encoder

    encoder, notes = load_encoder(model, average=average, trust_code=trust_code)
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
        resume: ``auto`` goes on from the newest checkpoint that verifies, ``never`` refuses a folder that has one; or a checkpoint folder,
            or the URL of a copy (``checkpoint.copy_to``).
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
    from clipkit.run_folder import STOPPED, STOPPED_CODE, default_folder, write_stopped_early
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
    if end[0] == STOPPED_CODE and not (folder / STOPPED).is_file():
        write_stopped_early(folder, told, "signal before the ranks had met")
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
    model: str | Path | Encoder,
    *,
    data: str | Path,
    task: str | None = None,
    options: Mapping[str, Any] | None = None,
    batch_size: int = 64,
    workers: int = 0,
    precision: str = "fp32",
    seed: int = 0,
) -> dict[str, Any]:
    """Score an encoder on a data set, on all ranks where there are several.

    Args:
        model: An encoder, or what ``load`` takes.
        data: CLIP_benchmark's WebDataset layout (here or remote), class folders, images with captions beside them, a CSV, COCO's or
            Karpathy's JSON, or ``embedded:NAME``.
        task: A kind of task (``zero_shot``, ``retrieval``, ...); None asks the data.
        options: Further keys of that kind, as ``evaluate.tasks`` has them.
        batch_size: Images of one forward.
        workers: Processes that read and decode images.
        precision: ``fp32``, ``bf16`` or ``fp16``.
        seed: Of the bootstrap.

    Returns:
        Figures by name, as fractions, each that is a mean over samples followed by its 95 % interval ``NAME_ci``.

    Raises:
        ValueError: If the data, the task or an option cannot be used as they are, with place and cure.
    """
    from clipkit.callbacks.say import say
    from clipkit.data.index import default_cache
    from clipkit.evaluation.engine import Question, Setting, evaluate_sets
    from clipkit.evaluation.kinds import build_evaluator, task_spec

    cache = default_cache()
    evaluator = build_evaluator(task_spec(data, cache, kind=task, options=options), cache)
    encoder = load(model) if isinstance(model, str | Path) else model
    kept = cache / "features"
    setting = Setting(batch_size=batch_size, workers=workers, precision=precision, seed=seed, feature_cache=kept)
    warned = [Question(str(data), evaluator)]
    (result,) = evaluate_sets(
        encoder, warned, setting, say=lambda line: say(line) if line.startswith("warning") else None
    )
    return dict(result.metrics)


def export(
    model: str | Path | Encoder,
    format: str,
    out: str | Path,
    *,
    options: Mapping[str, Any] | None = None,
    images: Sequence[Any] | None = None,
    texts: Sequence[str] | None = None,
    merge: Sequence[str | Path | Encoder] = (),
    weights: Sequence[float] = (),
    average: bool = True,
    licence: str | None = None,
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
        merge: Models of the same architecture; the mean of all their weights is exported.
        weights: The share of each of those (``merge=[b], weights=[0.5]`` is half way from ``model`` to ``b``); none for equal shares.
        average: Whether to take a run's moving average of the weights, where it keeps one (``optim.ema``).
        licence: Of the weights, for the card.
        force: Whether to replace a folder that is not empty: an earlier export goes, anything else but a run moves to ``OUT.replaced``.

    Returns:
        The parity report, which also stands in ``OUT/parity.json``.

    Raises:
        ValueError: If the format is unknown or cannot hold the encoder, the folder is not empty, the run is in training, or the models
            cannot be merged.
        ParityError: If the written files are not the same encoder; nothing is left then.
    """
    from clipkit.exporters.formats import make_format

    kind = make_format(format, options)
    from clipkit.callbacks.say import say
    from clipkit.exporters.folder import require_free
    from clipkit.exporters.handover import make_ready

    require_free(Path(out), force=force)
    ready = make_ready(model, merge_with=merge, weights=weights, average=average, licence=licence, say=say)
    return ready.export(kind, Path(out), images=images, texts=texts, force=force)


def embed(
    model: str | Path | Encoder,
    data: str | Path,
    out: str | Path,
    *,
    dtype: Literal["fp16", "fp32"] = "fp16",
    batch_size: int = 64,
    workers: int = 0,
    thumbnail: int = 96,
    force: bool = False,
    on_part: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Embed pictures and captions into a folder; the same call again goes on where it stopped.

    Args:
        model: An encoder, or what ``load`` takes.
        data: Shards (``x/{000..099}.tar`` here, or at a URL of https, s3, gs or hf; a folder of them), a folder of pictures, a CSV, or
            ``embedded:NAME``.
        out: The folder, in clip-retrieval's layout: ``img_emb``, ``text_emb``, ``metadata``, and ``manifest.json``.
        dtype: ``fp16`` or ``fp32``: what is stored; rows have unit norm.
        batch_size: Pictures of one forward.
        workers: Processes that read and decode.
        thumbnail: Longer side of the thumbnails in pixels, 0 without.
        force: Whether embeddings of something else in ``out`` may be replaced.
        on_part: Told after each part how many are done, of how many.

    Returns:
        The manifest.

    Raises:
        ValueError: If the data cannot be read, or ``out`` holds something else.
    """
    from clipkit.building import cache_folder
    from clipkit.embedding.embed import embed as run
    from clipkit.embedding.parts import remote_shards
    from clipkit.evaluation.places import local_place

    encoder = load(model) if isinstance(model, str | Path) else model
    place = data if remote_shards(data) else local_place(data, cache_folder())
    how = {"dtype": dtype, "batch_size": batch_size, "workers": workers, "thumbnail": thumbnail}
    return run(encoder, place, Path(out), force=force, on_part=on_part, **cast(Any, how))


def finder(
    folder: str | Path, *, model: str | Path | Encoder | None = None, index: bool = False, workers: int = 0
) -> Finder:
    """Open a folder for search: embeddings, or pictures, which are embedded into the cache on first use.

    Args:
        folder: What ``embed`` made, or a folder of pictures.
        model: The encoder that made the embeddings, or what ``load`` takes; unset: the one that the manifest names. A folder of
            pictures needs it.
        index: Search an HNSW index (approximate, kept in the cache) instead of every row.
        workers: Processes that read and decode pictures on first use.

    Raises:
        ValueError: If there is nothing to search, or the model is another than the one that made the embeddings.
    """
    from clipkit.building import cache_folder
    from clipkit.embedding.find import Finder
    from clipkit.embedding.manifest import NAME, read_manifest
    from clipkit.embedding.store import Store
    from clipkit.evaluation.digests import digest
    from clipkit.evaluation.fingerprints import encoder_hashes

    place = Path(folder)
    made = (place / NAME).is_file()
    if not made and not place.is_dir():
        raise ValueError(f"{place}: no such folder; search takes a folder of embeddings or of pictures")
    if not made and model is None:
        raise ValueError(
            f"{place} holds no {NAME}: name a model with --model to embed its pictures, or use `clipkit embed`"
        )
    manifest: dict[str, Any] = read_manifest(place) if made else {"averaged": True}
    named = manifest["model"] if model is None else model
    # a folder that does not say was embedded with the step's weights, or with a model that has no others
    average = manifest.get("averaged") is True
    try:
        encoder = load(named, average=average) if isinstance(named, str | Path) else named
    except ValueError as error:
        if model is not None:
            raise
        raise ValueError(
            f"{place / NAME} names the model {named}: {error}; where it moved, name it with --model"
        ) from error
    if not made:
        mark = digest([str(place.resolve()), encoder_hashes(encoder)])[:32]
        kept = cache_folder() / "embeddings" / mark
        embed(encoder, place, kept, workers=workers, force=True)
        place = kept
    return Finder(Store(place), encoder, indices=cache_folder() / "indices" if index else None)


def search(
    folder: str | Path,
    queries: Sequence[str] = (),
    *,
    image: str | Path | None = None,
    k: int = 10,
    of: Literal["images", "texts"] = "images",
    model: str | Path | Encoder | None = None,
    index: bool = False,
    workers: int = 0,
) -> list[tuple[str, list[Hit]]]:
    """Find the pictures (or texts) nearest to words, or to a picture.

    Args:
        folder: As for ``finder``, like ``model``, ``index`` and ``workers``.
        queries: What to find, each a question of its own.
        image: A picture to find the like of.
        k: Results of each question.
        of: ``images`` or ``texts``.
        model: See ``finder``.
        index: See ``finder``.
        workers: See ``finder``.

    Returns:
        Each question with its results, the nearest first.

    Raises:
        ValueError: As ``finder``, or if a query is empty or the picture cannot be read.
    """
    data = None
    if image is not None:
        try:
            data = Path(image).read_bytes()
        except OSError as error:
            raise ValueError(f"{image} cannot be read ({error.strerror})") from error
    if of not in ("images", "texts"):
        raise ValueError(f"of={of!r}: images or texts")
    found = finder(folder, model=model, index=index, workers=workers)
    answers = list(zip(queries, found.words(queries, k, of), strict=True)) if queries else []
    return answers + ([(str(image), found.picture(data, k, of, str(image)))] if data is not None else [])


def _outcome(folder: Path) -> Outcome:
    """How the run in a folder ended, read from its files."""
    from clipkit.callbacks.metrics import RECORD
    from clipkit.checkpoint import newest
    from clipkit.run_folder import STOPPED, Outcome, finished_step

    found, _ = newest(folder / "checkpoints")
    step, steps = finished_step(found)
    word: dict[str, Any] = json.loads((folder / STOPPED).read_text()) if (folder / STOPPED).is_file() else {"code": 0}
    early = word.get("reason") if word["code"] == 0 else None
    stopped = word["reason"] if word["code"] else None
    lines = (
        [json.loads(line) for line in (folder / RECORD).read_text().splitlines()] if (folder / RECORD).is_file() else []
    )
    evaluated = [line for line in lines if any(name.startswith("val/") for name in line)]
    figures = {name: value for name, value in (evaluated[-1] if evaluated else {}).items() if name.startswith("val/")}
    return Outcome(folder, step, steps, stopped, figures, early)

"""A configuration's objects: towers, losses, data, optimiser, tasks."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from clipkit import distributed
from clipkit.callbacks.say import say
from clipkit.config import RunConfig
from clipkit.config.catalog import shipped_folder
from clipkit.data.catalogue import open_catalogue
from clipkit.data.datamodule import ShardDataModule
from clipkit.data.embedded import resolve
from clipkit.data.index import default_cache
from clipkit.data.node_cache import NodeCache
from clipkit.data.selection import rule
from clipkit.data.source import Repeat, Source, expand_shards
from clipkit.data.stages import IMAGE
from clipkit.data.stream import StreamDataModule, data_module
from clipkit.data.unlisted import prepare_indexes
from clipkit.data.urls import is_remote
from clipkit.encoder import Encoder, EncoderInfo, preprocess_of
from clipkit.evaluation.encodings import Encodings
from clipkit.evaluation.engine import with_intervals
from clipkit.evaluation.kinds import build_evaluator
from clipkit.evaluation.places import EMBEDDED
from clipkit.loading import load_pair
from clipkit.losses.base import Loss
from clipkit.losses.build import Surroundings, build_loss
from clipkit.micro_batch import Choice, choose, memory_left
from clipkit.module import CLIPModule
from clipkit.optim import Optim
from clipkit.staging import Tokens, build_stages, check_views
from clipkit.teachers import build_teachers
from clipkit.towers.base import Tower
from clipkit.towers.open_clip import ImageTower, OpenClipPair, TextTower
from clipkit.towers.scale import LogitScale
from clipkit.towers.towers import Towers, batchnorm_names

LossFactory = Callable[[Callable[[tuple[str, str]], LogitScale]], Loss]
"""Makes an own loss; it is given a function that returns the scale of a pair of fields."""


def build_model(config: RunConfig) -> OpenClipPair:
    """The towers that ``model:`` names, seeded where their weights are random."""
    torch.manual_seed(config.seed)
    pair, source, notes = load_pair(shipped_model(config.model.name), config.model.pretrained)
    for note in notes:
        say(note if source else f"{config.model.name}: training starts from random weights (seed {config.seed})")
    if config.model.patch_dropout:
        pair.image.drop_patches(config.model.patch_dropout)
    _lock({"image": pair.image, "text": pair.text}, config)
    return pair


def _lock(towers: Mapping[str, Tower], config: RunConfig) -> None:
    for field, spec in config.model.lock.items():
        if field not in towers:
            raise ValueError(f"model.lock.{field}: there is no such tower; the towers are {', '.join(towers)}")
        try:
            towers[field].lock(spec.unlocked)
        except ValueError as error:
            raise ValueError(f"model.lock.{field}: {error}") from error


def shipped_model(name: str) -> str:
    """A model's name as it is, or the file of that name beside the shipped configurations, where no such file lies here."""
    folder = shipped_folder()
    if name.endswith(".json") and not Path(name).exists() and folder is not None and (folder / name).is_file():
        return str(folder / name)
    return name


def build_module(
    config: RunConfig, pair: OpenClipPair, *, steps: int, warmup: int, own_losses: Mapping[str, LossFactory]
) -> CLIPModule:
    """Towers, losses and optimiser as one Lightning module."""
    check_views(config, own_losses=bool(own_losses))
    towers = Towers({"image": pair.image, "text": pair.text}, micro_batch=_fixed_micro_batch(config))
    _name_batchnorm(towers, config)
    if config.trainer.compile:
        _compile(towers)
    scales: dict[str, LogitScale] = {}
    biased: set[str] = set()

    def scale_of(fields: tuple[str, str]) -> LogitScale:
        return scales.setdefault("_".join(fields), LogitScale(pair.log_scale, pair.bias))

    specs = config.losses
    losses: dict[str, Loss] = {}
    for name, spec in specs.items():

        def temperature(spec: Any, bias: float | None, name: str = name) -> LogitScale:
            key = "_".join(spec.pair) + (f"_{name}" if spec.scale == "own" else "")
            scale = scales.setdefault(key, LogitScale(pair.log_scale, pair.bias))
            if bias is not None:
                biased.add(key)
                scale.start_bias(bias)
            return scale

        losses[name] = build_loss(spec, Surroundings(temperature, pair.config["embed_dim"], config.data.batch_size))
    losses |= {name: factory(scale_of) for name, factory in own_losses.items()}
    for key, scale in scales.items():
        if (
            scale.bias is not None and key not in biased and not own_losses
        ):  # DDP waits for a gradient of all that train
            scale.bias.requires_grad_(False)
    weights = {name: specs[name].weight if name in specs else 1.0 for name in losses}
    if (
        "image_text" not in scales
    ):  # exports write it whatever the losses; where none reads it, it has no gradient to wait for
        scale_of(("image", "text")).requires_grad_(False)
    return CLIPModule(
        towers=towers,
        losses=losses,
        weights=weights,
        scales=scales,
        optim=build_optim(config, pair, steps, warmup),
        seed=config.seed,
        teachers=build_teachers(config, pair),
    )


def _fixed_micro_batch(config: RunConfig) -> int | None:
    return config.trainer.micro_batch if isinstance(config.trainer.micro_batch, int) else None


def choose_micro_batch(config: RunConfig, pair: OpenClipPair, module: CLIPModule, *, device: torch.device) -> Choice:
    """What ``trainer.micro_batch: auto`` means for these towers on this device; all ranks call it together."""
    local, nodes = distributed.launcher_world()
    sizes = [p.numel() * p.element_size() for p in module.parameters() if p.requires_grad]
    width = int(pair.config["embed_dim"])
    module.to(device)  # where Lightning will put it
    bf16 = config.trainer.precision == "bf16-mixed"
    height, wide = preprocess_of(pair.preprocess).size

    def images(count: int) -> torch.Tensor:
        return torch.zeros(count, 3, height, wide, dtype=torch.uint8, device=device)

    def texts(count: int) -> torch.Tensor:  # of the full context: what the longest captions need
        return pair.tokenize(["a"] * count).to(device)

    return choose(
        {"image": (module.towers["image"], images), "text": (module.towers["text"], texts)},
        pairs=config.data.batch_size // (local * nodes),
        available=memory_left(
            device, ranks_here=local, parameters=sum(sizes), features=4 * width * config.data.batch_size
        ),
        autocast=partial(torch.autocast, device.type, torch.bfloat16, enabled=bf16, cache_enabled=False),
    )


def build_optim(config: RunConfig, pair: OpenClipPair, steps: int, warmup: int) -> Optim:
    """AdamW with open_clip's defaults for this kind of image tower."""
    resnet = isinstance(pair.config["vision_cfg"].get("layers"), list | tuple)  # open_clip's ModifiedResNet
    betas = config.optim.betas or ((0.9, 0.999) if resnet else (0.9, 0.98))
    return Optim(
        lr=config.optim.lr,
        weight_decay=config.optim.weight_decay,
        betas=betas,
        eps=config.optim.eps or (1e-8 if resnet else 1e-6),
        warmup=warmup,
        schedule=config.optim.schedule,
        steps=steps,
        layer_decay=config.optim.layer_decay,
        layers=_layers({"image": pair.image, "text": pair.text}),
    )


def _layers(towers: Mapping[str, Tower]) -> Callable[[str], int]:
    """Depth of a module's parameters by name; what belongs to no tower (scales, a loss's heads) has none."""
    depths = {
        f"towers.by_field.{field}.{name}": depth
        for field, tower in towers.items()
        for name, depth in tower.depths().items()
    }
    return lambda name: depths.get(name, 0)


def prepare_data(config: RunConfig, *, allow_pipe: bool = False) -> None:
    """Index what the sources need and no list has, and make their selections; every rank calls it, before the ranks meet.

    Raises:
        ValueError: If shards cannot be indexed.
    """
    cache = cache_folder(config)
    try:
        specs = [*config.data.train.items(), *config.data.val.items()]
        sources = [_source(name, spec, cache, allow_pipe) for name, spec in specs if not spec.stream]
    except ValueError:  # a finished run needs no data, another says so when it opens them
        return
    prepare_indexes(sources, cache)
    for source in sources:
        if not any(map(is_remote, source.shards)):
            with contextlib.suppress(ValueError):  # said when they are opened; a finished run needs none
                if rule(source) is not None:
                    open_catalogue(source, cache)


def build_data(
    config: RunConfig, pair: OpenClipPair, *, folder: Path, allow_mismatch: bool = False, allow_pipe: bool = False
) -> ShardDataModule:
    """The sources, opened and checked.

    Args:
        config: The run's configuration.
        pair: The model, for its tokenizer and its image size.
        folder: The run folder.
        allow_mismatch: Whether a state of other data starts this plan at its beginning.
        allow_pipe: Whether a ``pipe:`` among the shards may run its program.
    """
    cache = cache_folder(config)
    last, stages = build_stages(config.data, pair)
    views = dict(last.images)
    augment = views.pop(IMAGE)
    train, val = (
        [_source(name, spec, cache, allow_pipe) for name, spec in specs.items()]
        for specs in (config.data.train, config.data.val)
    )
    kind = data_module(train, val)
    if kind is StreamDataModule:
        _refuse_epochs(config)
    module = kind(
        train=train,
        val=val,
        batch_size=config.data.batch_size,
        length=config.trainer.length.samples,
        seed=config.seed,
        tokenize=last.tokenize,
        augment=augment,
        preprocess=preprocess_of(pair.preprocess),
        views=views,
        decode=last.decode,
        stages=stages,
        workers=workers(config),
        start_method=None if config.data.start_method == "auto" else config.data.start_method,
        cache=cache,
        node_cache=_node_cache(config, cache, [*train, *val]),
        trace=folder if config.data.trace else None,
        allow_mismatch=allow_mismatch,
    )
    for stage, end in zip(module.stages, module.stage_at.ends, strict=False):  # the last has no end
        height, width = stage.images[IMAGE].size
        length = stage.tokenize.length if isinstance(stage.tokenize, Tokens) else None
        words = f", texts of {length} tokens" if length else ""
        say(f"stage {stage.name!r}: to sample {end:,}, images of {height} x {width}{words}")
    return module


def build_tasks(
    config: RunConfig, module: CLIPModule, pair: OpenClipPair, poll: Callable[[], None] = lambda: None
) -> Callable[[], dict[str, Any]]:
    """All evaluations of ``evaluate.tasks`` over the towers in training: ``val/TASK/FIGURE`` to value, each set encoded once.

    Shares of hits (accuracy, recall) come with their 95 % intervals, ``val/TASK/FIGURE_ci``.
    ``poll`` is called between batches, on every rank equally often; it may raise on all of them to give up.
    """
    cache = cache_folder(config)
    evaluators = {name: build_evaluator(spec, cache) for name, spec in config.evaluate.tasks.items()}

    def run() -> dict[str, Any]:
        encodings = Encodings(encoder_of(module, pair, config), poll=poll)  # anew each time: the towers have moved on
        found = {
            name: with_intervals(evaluator.run(encodings), config.seed, only_hits=True)
            for name, evaluator in evaluators.items()
        }
        return {f"val/{name}/{key}": value for name, figures in found.items() for key, value in figures.items()}

    return run


def encoder_of(module: CLIPModule, pair: OpenClipPair, config: RunConfig) -> Encoder:
    """The encoder over a module's towers as they are now."""
    scale = module.scales["image_text"]
    image, text = module.towers["image"], module.towers["text"]
    assert isinstance(scale, LogitScale)
    assert isinstance(image, ImageTower)
    assert isinstance(text, TextTower)
    info = EncoderInfo(model=config.model.name, pretrained=None, config=pair.config, preprocess=pair.preprocess)
    bias = None if scale.bias is None else float(scale.bias.detach())
    return Encoder(
        image=image, text=text, tokenize=pair.tokenize, log_scale=float(scale.log_scale.detach()), bias=bias, info=info
    )


def cache_folder(config: RunConfig | None = None) -> Path:
    """Where indexes and the embedded data go: ``data.cache``, else CLIPKIT_CACHE, else ``~/.cache/clipkit``."""
    chosen = config.data.cache if config is not None else None
    return Path(chosen).expanduser() if chosen else default_cache()


def workers(config: RunConfig) -> int:
    """Loader processes of this rank; auto leaves a core a rank to the towers and takes at most 8."""
    if config.data.workers != "auto":
        return int(config.data.workers)
    local, _ = distributed.launcher_world()
    return max(1, min(8, (os.cpu_count() or 1) // local - 1))


def _node_cache(config: RunConfig, cache: Path, sources: list[Source]) -> NodeCache | None:
    if not any(is_remote(path) for source in sources for path in source.shards):
        return None
    held = NodeCache(cache, config.data.cache_size)
    whose = (
        "data.cache_size"
        if config.data.cache_size is not None
        else "half of the free disk; data.cache_size sets another"
    )
    say(f"remote shards are kept in {held.folder}, at most {held.budget / 1e9:,.1f} GB of them ({whose})")
    return held


def _source(name: str, spec: Any, cache: Path, allow_pipe: bool) -> Source:
    shards: list[str] = []
    for pattern in spec.shards:
        found = resolve(pattern, cache) if pattern.startswith(EMBEDDED) else _expand(name, pattern, allow_pipe)
        if isinstance(found, Path):
            raise ValueError(f"{pattern} is an evaluation set; training sets are embedded:train and embedded:val")
        shards += found
    fields = {field: tuple(extensions) for field, extensions in spec.fields.items()}
    return Source(
        name=name,
        shards=tuple(shards),
        weight=spec.weight,
        fields=fields,
        stream=spec.stream,
        captions=spec.captions,
        filter=spec.filter,
        keys=spec.keys,
        skip_keys=spec.skip_keys,
        duplicates=spec.duplicates,
        repeat=None if spec.repeat is None else Repeat(**spec.repeat.model_dump()),
    )


def _refuse_epochs(config: RunConfig) -> None:
    """Nobody has counted what is streamed."""
    durations = {
        "trainer.length": config.trainer.length,
        "optim.warmup": config.optim.warmup,
        "checkpoint.every": config.checkpoint.by_data,
        "checkpoint.keep_every": config.checkpoint.keep_every,
        "evaluate.every": config.evaluate.every,
        "logging.every": config.logging.every,
        **{f"data.stages.{name}.until": stage.until for name, stage in config.data.stages.items()},
    }
    for name, duration in durations.items():
        if duration is not None and duration.unit == "epochs":
            raise ValueError(f"{name}={duration}: streamed sources have no epochs; write samples or steps")


def _expand(name: str, pattern: str, allow_pipe: bool) -> list[str]:
    try:
        return expand_shards(pattern, allow_pipe=allow_pipe)
    except ValueError as error:
        raise ValueError(f"source {name!r}: {error}") from error


def _name_batchnorm(towers: Towers, config: RunConfig) -> None:
    names = batchnorm_names(towers)
    if not names:
        return
    if config.trainer.strategy == "fsdp2":
        raise ValueError(
            f"trainer.strategy=fsdp2: {len(names)} batch norms (the first: {names[0]}), whose statistics would drift apart between ranks; "
            "set trainer.strategy=ddp, or take a model without them"
        )
    line = f"{len(names)} batch norms (the first: {names[0]}): statistics are per rank and per micro-batch"
    if config.trainer.micro_batch is not None and not config.trainer.allow_batchnorm:
        raise ValueError(
            f"{line}; trainer.micro_batch={config.trainer.micro_batch} would change what they learn. Leave micro_batch out, or set "
            "trainer.allow_batchnorm=true"
        )
    say(f"warning: {line}")


def _compile(towers: Towers) -> None:
    import shutil

    if shutil.which("g++") is None and not torch.cuda.is_available():
        raise ValueError("trainer.compile=true needs a C++ compiler: install g++, or set trainer.compile=false")
    for field in towers.fields():
        towers[field].compile()
    warnings.filterwarnings("ignore", message=".*torch._dynamo.*")

"""MODEL, everywhere the same: a run, a checkpoint, an exported folder, an open_clip file, name or hub repository."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from clipkit.checkpoint import INFO, MANIFEST, newest, read_average, read_checkpoint
from clipkit.config.model import split_model
from clipkit.encoder import Encoder
from clipkit.towers.artefacts import Artefact, artefact_of
from clipkit.towers.model_files import CONFIG_FILE, PARITY_FILE, read_config_file
from clipkit.towers.open_clip import OpenClipPair, build_pair, pair_from_config, pair_of_run
from clipkit.towers.open_clip_run import trained_model

WEIGHTS = (".pt", ".pth", ".bin", ".safetensors")
IMAGE_KEYS, TEXT_KEYS, SCALE_KEYS = "towers.by_field.image.", "towers.by_field.text.", "scales.image_text."


def load_encoder(model: str | Path, *, average: bool = True, trust_code: bool = False) -> tuple[Encoder, list[str]]:
    """Load an encoder.

    Args:
        model: What DESIGN calls MODEL: a run folder (its newest checkpoint that verifies), ``RUN/checkpoints/STEP``, an exported folder, a
            JSON configuration, an open_clip ``.pt``, ``hf-hub:org/repo``, or an open_clip name with ``:tag``.
        average: Whether to take the moving average of the weights where the run keeps one (``optim.ema``): what is exported is what is
            scored, embedded and searched with.
        trust_code: Whether the user trusts whoever wrote a folder of programs or machine code (``.pt2``), which may run code.

    Returns:
        The encoder, and what the user must hear about how it was found.

    Raises:
        ValueError: If nothing of that name can be loaded; the message says what was looked for. If it holds programs, and nobody said
            that they are trusted.
    """
    parts = {"name": str(model), "pretrained": None} if Path(model).exists() else split_model(str(model))
    name, pretrained = str(parts["name"]), parts["pretrained"]
    artefact = artefact_of(Path(name))
    if artefact is not None:
        return _of_artefact(artefact, Path(name), str(model), trust_code=trust_code)
    pair, source, notes = load_pair(name, pretrained)
    averaged = _averaged(pair, _checkpoint_of(Path(name), source)) if average else None
    if averaged is not None:
        notes = [*notes, f"{model}: the moving average of the weights that the run keeps, not those of the step itself"]
    whole = averaged or pair
    return Encoder.from_pair(whole, model=str(model), pretrained=source, averaged=averaged is not None), notes


def load_pair(name: str, pretrained: str | None) -> tuple[OpenClipPair, str | None, list[str]]:
    """The towers of a MODEL, where their weights come from (None: random), and notes for the user."""
    path = Path(name)
    if pretrained is not None and (path.is_dir() or path.suffix in WEIGHTS):
        raise ValueError(f"{name} brings its own weights; leave out pretrained ({pretrained})")
    if path.is_dir():
        return _from_folder(path)
    if path.suffix in WEIGHTS:
        pair = _from_file(path)
        return pair, str(path), list(pair.notes)
    pair = build_pair(name, pretrained)
    if pretrained is not None or name.startswith("hf-hub:"):
        return pair, pretrained or name, list(pair.notes)
    return pair, None, [f"{name} has random weights; name a tag (NAME:TAG) for trained ones"]


_CONSENT = (
    "if you trust them, evaluate, embed and search take it with --trust-code, clipkit.load with trust_code=True; else name the run or "
    "another export of it"
)


def _of_artefact(artefact: Artefact, path: Path, model: str, *, trust_code: bool) -> tuple[Encoder, list[str]]:
    holds = f"{path} holds {artefact.holds}"
    if artefact.code and not trust_code:
        raise ValueError(f"{holds}, and {artefact.code}; {_CONSENT}")
    pair = artefact.pair(path)
    trusted = ", trusted by you" if artefact.code else ""
    note = f"{holds}{trusted}: it runs in {artefact.runs}, and has {artefact.lacks} to train or to export"
    return Encoder.from_pair(pair, model=model, pretrained=str(path)), [note, *pair.notes]


def _from_folder(path: Path) -> tuple[OpenClipPair, str | None, list[str]]:
    artefact = artefact_of(path)
    if artefact is not None:
        risk = f", and {artefact.code}" if artefact.code else ""
        raise ValueError(
            f"{path} holds {artefact.holds}{risk}, and {artefact.lacks} to start from; name the run or its open_clip export"
        )
    if (path / CONFIG_FILE).is_file():
        return _from_export(path)
    if (path / MANIFEST).is_file() or (path / INFO).is_file():
        return _from_checkpoint(path), path.name, []
    if (path / "checkpoints").is_dir():
        found, passed_over = newest(path / "checkpoints")
        notes = [f"warning: passed over the checkpoint {line}" for line in passed_over]
        if found is None:
            detail = f"; passed over: {'; '.join(passed_over)}" if passed_over else ""
            raise ValueError(f"the run {path} has no checkpoint that verifies{detail}")
        return _from_checkpoint(found), found.name, notes
    raise ValueError(
        f"{path} is no model: it holds neither checkpoints/ (a run), {MANIFEST} (a checkpoint) nor {CONFIG_FILE} (an exported folder)"
    )


def _from_export(path: Path) -> tuple[OpenClipPair, str | None, list[str]]:
    if any(file.suffix in (".safetensors", ".bin", ".pth") for file in path.iterdir()):
        return build_pair(str(path)), str(path), []
    graphs = sorted(file.name for file in path.iterdir() if file.suffix in (".onnx", ".pt2", ".xml"))
    if graphs or (path / PARITY_FILE).is_file():
        left = f"only {', '.join(graphs)}" if graphs else "no weights"
        raise ValueError(f"{path} is an export that is not whole: it holds {left}; copy it again, or export again")
    return build_pair(str(path)), None, [f"{path} holds a configuration and no file of weights: they are random"]


def _from_checkpoint(folder: Path) -> OpenClipPair:
    stored = read_checkpoint(folder, with_state=False)
    for keys, tower in ((IMAGE_KEYS, "image"), (TEXT_KEYS, "text")):
        if not any(key.startswith(keys) for key in stored.model):
            raise ValueError(f"{folder} has no {tower} tower; a model here takes both, images are compared with texts")
    model: dict[str, Any] = stored.info["model"]
    pair = pair_from_config(model["config"], preprocess=model["preprocess"])
    _load(pair.image, stored.model, IMAGE_KEYS, folder)
    _load(pair.text, stored.model, TEXT_KEYS, folder)
    bias = stored.model.get(f"{SCALE_KEYS}bias")
    return OpenClipPair(
        image=pair.image,
        text=pair.text,
        tokenize=pair.tokenize,
        preprocess=pair.preprocess,
        config=pair.config,
        log_scale=float(stored.model[f"{SCALE_KEYS}log_scale"]),
        bias=None if bias is None else float(bias),
    )


def _checkpoint_of(path: Path, source: str | None) -> Path | None:
    """The checkpoint that a run or a checkpoint's folder was loaded from; None for everything else."""
    found = path if (path / INFO).is_file() else path / "checkpoints" / str(source)
    return found if (found / MANIFEST).is_file() else None


def _averaged(pair: OpenClipPair, checkpoint: Path | None) -> OpenClipPair | None:
    """The pair with the run's moving average in place of each weight that was trained; None where the run keeps none."""
    average = None if checkpoint is None else read_average(checkpoint)
    if average is None:
        return None
    for keys, tower in ((IMAGE_KEYS, pair.image), (TEXT_KEYS, pair.text)):
        whole = {keys + name: value for name, value in tower.state_dict().items()}
        own = {name: value for name, value in average.items() if name.startswith(keys)}
        _load(tower, whole | own, keys, Path(str(checkpoint)))
    scale, bias = (average.get(f"{SCALE_KEYS}{name}") for name in ("log_scale", "bias"))
    log_scale = pair.log_scale if scale is None else float(scale)
    return dataclasses.replace(pair, log_scale=log_scale, bias=pair.bias if bias is None else float(bias))


def _load(tower: nn.Module, weights: dict[str, Tensor], prefix: str, place: Path) -> None:
    own = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
    try:
        tower.load_state_dict(own, strict=True)
    except RuntimeError as error:
        raise ValueError(f"{place} does not hold the weights of its own configuration: {error}") from error


def _from_file(path: Path) -> OpenClipPair:
    """Weights of a file whose architecture stands beside it: open_clip's ``params.txt`` of the run, or an exported configuration."""
    if not path.is_file():
        raise ValueError(f"{path} does not exist")
    trained = trained_model(path)
    if trained is not None:
        return pair_of_run(trained, str(path))
    beside = path.parent / CONFIG_FILE
    if beside.is_file():
        stored = read_config_file(beside)
        return pair_from_config(
            stored["model_cfg"], preprocess=stored.get("preprocess_cfg"), weights=str(path), place=str(beside)
        )
    raise ValueError(f"{path} does not say which architecture it holds; write NAME:{path} with the open_clip name")

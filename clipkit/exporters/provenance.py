"""Where an encoder comes from: its run's command, configuration, data and figures, read from the files beside the weights.

It stands as ``provenance.json`` in every exported folder, so that an export of an export still knows. All of it may come from a stranger:
whoever shows it escapes it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from clipkit.checkpoint import INFO, MANIFEST
from clipkit.config.json_text import parse_json
from clipkit.data.urls import shown
from clipkit.encoder import Encoder
from clipkit.evaluation.digests import digest
from clipkit.evaluation.fingerprints import encoder_hashes

NAME = "provenance.json"
FORMAT = 1
_CONFIG, _COMMAND, _RECORD = "config.yaml", "command.txt", "metrics.jsonl"
_MOST_BYTES, _MOST_FILES = 2**20, 1000  # of a result; of files looked at


class Figure(NamedTuple):
    """One measured figure.

    Attributes:
        data: The data set or task.
        name: As in every file, ``acc1``.
        value: A fraction of one, or a count.
        interval: Its 95 % interval, None where none was taken.
        where: The file that it stands in, and the step.
    """

    data: str
    name: str
    value: float
    interval: list[float] | None
    where: str


@dataclass(frozen=True)
class Provenance:
    """What is known of an encoder.

    Args:
        model: What the user called it.
        weights: SHA-256 of its weights under open_clip's names.
        step: Of the checkpoint, None for what is none.
        steps: Of its whole run.
        averaged: Whether the weights are the run's moving average.
        command: That trained it, without secrets; empty where it is not known.
        config: The resolved configuration (YAML), likewise.
        data: Each training source with the fingerprint of its shards.
        figures: What was measured.
        parents: Of a merge: each model's ``model``, ``weights``, ``share``, and what else is known of it.
        licence: Of the weights, as the user stated it; empty where nobody did.
        notes: What a reader must know.
    """

    model: str
    weights: str
    step: int | None = None
    steps: int | None = None
    averaged: bool = False
    command: str = ""
    config: str = ""
    data: tuple[dict[str, str], ...] = ()
    figures: tuple[Figure, ...] = ()
    parents: tuple[dict[str, Any], ...] = ()
    licence: str = ""
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, encoder: Encoder) -> Provenance:
        """Of an encoder that was loaded from ``encoder.info.model``; a name that is no folder says no more than itself."""
        if not _has_weights(encoder):
            return cls(encoder.info.model, "")
        weights = str(encoder_hashes(encoder)["weights"])
        plain = cls(encoder.info.model, weights, averaged=encoder.info.averaged)
        place = Path(encoder.info.model)
        if not place.is_dir():
            return plain
        if (place / NAME).is_file():
            return _exported(plain, place / NAME)
        checkpoint = place if (place / INFO).is_file() else place / "checkpoints" / str(encoder.info.pretrained)
        return _trained(plain, checkpoint) if (checkpoint / MANIFEST).is_file() else plain

    def to_dict(self) -> dict[str, Any]:
        """The object that ``provenance.json`` holds."""
        found = {"format": FORMAT} | asdict(self)
        return found | {"figures": [figure._asdict() for figure in self.figures]}

    @classmethod
    def from_dict(cls, found: Any) -> Provenance:
        """Read one back, whoever wrote it.

        Raises:
            ValueError: If it is none.
        """
        try:
            if found["format"] != FORMAT:
                raise ValueError(f"format {found['format']}")
            figures = tuple(_figure(**figure) for figure in found["figures"])
            data = tuple({str(key): str(value) for key, value in source.items()} for source in found["data"])
            texts = {name: str(found[name]) for name in ("model", "weights", "command", "config", "licence")}
            numbers = {name: None if found[name] is None else int(found[name]) for name in ("step", "steps")}
            parents = tuple(dict(parent) for parent in found["parents"])
            notes = tuple(str(note) for note in found["notes"])
            whether = bool(found["averaged"])
        except (TypeError, KeyError, AttributeError, ValueError) as error:
            raise ValueError(f"no provenance that this clipkit reads ({type(error).__name__}: {error})") from error
        return cls(**texts, **numbers, averaged=whether, data=data, figures=figures, parents=parents, notes=notes)  # type: ignore[arg-type]

    def stating(self, licence: str | None) -> Provenance:
        """The same with the licence of the weights, where the user states one."""
        return self if not licence else replace(self, licence=" ".join(licence.split()))


def _has_weights(encoder: Encoder) -> bool:
    from clipkit.towers.graph_files import graph_of

    return graph_of(encoder.image) is None


def _figure(data: Any, name: Any, value: Any, interval: Any, where: Any) -> Figure:
    low_high = None if interval is None else [float(end) for end in interval]
    return Figure(str(data), str(name), float(value) if not isinstance(value, int) else value, low_high, str(where))


def _exported(plain: Provenance, place: Path) -> Provenance:
    """What an exported folder knows, as long as it is of these weights."""
    try:
        if place.stat().st_size > _MOST_BYTES:
            raise ValueError("it is too long")
        known = Provenance.from_dict(json.loads(place.read_bytes()))
    except (OSError, ValueError) as error:
        return replace(plain, notes=(f"its {NAME} cannot be read ({error})",))
    if known.weights != plain.weights:
        return replace(plain, notes=(f"its {NAME} is of other weights and was left out",))
    return known


def _trained(plain: Provenance, checkpoint: Path) -> Provenance:
    from clipkit.loading import load_encoder

    stored, _ = load_encoder(checkpoint, average=plain.averaged)
    if encoder_hashes(stored)["weights"] != plain.weights:
        return replace(plain, notes=(f"the weights are not those of {checkpoint}; what is known of them was left out",))
    info = json.loads((checkpoint / INFO).read_bytes())
    run = checkpoint.parent.parent
    sources = info.get("lightning", {}).get("ShardDataModule", {}).get("sources", {})
    data = tuple(
        {"source": str(name), "fingerprint": str(source.get("shards")), "weight": str(source.get("weight"))}
        | ({"selection": digest(source["selection"])} if source.get("selection") else {})
        for name, source in sources.items()
    )
    step = int(info["step"])
    notes = []
    if plain.averaged:
        notes.append(
            "the weights are the run's moving average; figures that the run logged are of the weights of the step itself"
        )
    logged, torn = _logged(run / _RECORD, step)
    return replace(
        plain,
        step=step,
        steps=int(info["steps"]),
        command=shown(_text(run / _COMMAND)),
        config=shown(_text(run / _CONFIG)),
        data=data,
        figures=(*logged, *_measured(run, plain.weights)),
        notes=(*notes, *torn),
    )


def _text(path: Path) -> str:
    return path.read_text(errors="replace").strip() if path.is_file() else ""


def _logged(record: Path, step: int) -> tuple[list[Figure], list[str]]:
    """Figures of the run's last evaluation up to the step, and a note where a kill or a full disk cut the last line short.

    Raises:
        ValueError: If another line is damaged.
    """
    last: dict[str, Any] = {}
    texts = _text(record).splitlines()
    notes = []
    for number, text in enumerate(texts, start=1):
        try:
            line = parse_json(text)
        except ValueError as error:
            if number == len(texts):
                notes.append(f"the last line of {record.name} is torn and was left out")
                break
            raise _damaged(record, number, str(error)) from error
        if not isinstance(line, dict) or not isinstance(line.get("step"), int):
            raise _damaged(record, number, "no object with a `step`")
        if line["step"] <= step and any(name.startswith("val/") for name in line):
            last = line
    metrics = {name.removeprefix("val/"): value for name, value in last.items() if name.startswith("val/")}
    tasks = {name.rpartition("/")[0] for name in metrics}
    figures: list[Figure] = []
    for task in sorted(tasks):
        own = {name.rpartition("/")[2]: value for name, value in metrics.items() if name.rpartition("/")[0] == task}
        figures += _figures(task or "validation data", own, f"{record.name}, step {last['step']}")
    return figures, notes


def _damaged(record: Path, number: int, why: str) -> ValueError:
    cure = "mend or remove that line; without the file the card has no figures of the run itself"
    return ValueError(f"{record}, line {number}: {why}; {cure}")


def _measured(run: Path, weights: str) -> Iterator[Figure]:
    """Figures of ``clipkit evaluate`` on these very weights, whose files lie in the run folder or a folder of it."""
    found = [path for pattern in ("*.json", "*/*.json") for path in sorted(run.glob(pattern))]
    for path in found[:_MOST_FILES]:
        if path.parent.name == "checkpoints" or path.stat().st_size > _MOST_BYTES:
            continue
        try:
            result = json.loads(path.read_bytes())
        except ValueError:
            continue
        if not isinstance(result, dict) or not isinstance(result.get("hashes"), dict):
            continue
        if result["hashes"].get("weights") == weights and isinstance(result.get("metrics"), dict):
            yield from _figures(str(result.get("dataset")), result["metrics"], str(path.relative_to(run)))


def _figures(data: str, metrics: dict[str, Any], where: str) -> Iterator[Figure]:
    for name, value in metrics.items():
        if isinstance(value, int | float) and not name.endswith("_ci"):
            interval = metrics.get(f"{name}_ci")
            yield Figure(data, name, value, interval if isinstance(interval, list) else None, where)


def merged(encoder: Encoder, parents: Sequence[tuple[Provenance, float]], notes: Sequence[str]) -> Provenance:
    """The provenance of a merge: its parents, each with its share and all that is known of it."""
    known = tuple(parent.to_dict() | {"share": share} for parent, share in parents)
    return Provenance(encoder.info.model, str(encoder_hashes(encoder)["weights"]), parents=known, notes=tuple(notes))


def file_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of each file of a folder, by its path below it."""
    import hashlib

    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                found[path.relative_to(folder).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return found

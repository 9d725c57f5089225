"""The model card: what a stranger who finds an exported folder must know, as ``README.md`` with a model hub's front matter.

Names, commands and configurations may come from anyone: they stand in code, where neither Markdown nor HTML means anything.
"""

from __future__ import annotations

import contextlib
import json
import re
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from clipkit.config.names import DISTRIBUTION
from clipkit.evaluation.result import percent
from clipkit.exporters.candidate import Format
from clipkit.exporters.parity import ParityReport
from clipkit.exporters.provenance import NAME, Figure, Provenance, file_hashes

CARD = "README.md"
CODE_LICENCE = "Apache-2.0"
LICENCES = {  # that the hub knows by these names; any other is "other" with its name beside
    *("apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "mpl-2.0", "unlicense", "openrail"),
    *("cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0", "cc-by-nd-4.0"),
    *("gpl-2.0", "gpl-3.0", "lgpl-3.0", "agpl-3.0"),
}
LIBRARIES = {"open_clip": "open_clip", "transformers": "transformers", "sentence_transformers": "sentence-transformers"}


def write_card(folder: Path, format: Format, report: ParityReport, known: Provenance) -> None:
    """Write ``provenance.json``, with the hash of each file that was proven, and ``README.md``.

    Args:
        folder: The exported folder, complete but for these two.
        format: What was exported.
        report: Its proof.
        known: Where the encoder comes from.
    """
    stored = known.to_dict() | {"files": file_hashes(folder)}
    (folder / NAME).write_text(json.dumps(stored, indent=2, ensure_ascii=False) + "\n")
    (folder / CARD).write_text(card(format, report, known), errors="replace")


def card(format: Format, report: ParityReport, known: Provenance) -> str:
    """The whole card."""
    parts = [
        _front_matter(format, known),
        f"# {_title(known)} as {format.name}\n",
        "Image and text encoders of one space, exported and compared by clipkit.\n",
        f"## Load\n\n{_block(format.usage, 'python')}",
        f"## Proof\n\n{_proof(report)}",
        f"## Figures\n\n{_figures(known, str(report.details.get('precision', 'float32')))}",
        f"## Training\n\n{_training(known)}",
        *([f"## Merged from\n\n{_parents(known.parents)}"] if known.parents else []),
        f"## Licence\n\n{_licence(known)}",
    ]
    return "\n".join(parts)


def _front_matter(format: Format, known: Provenance) -> str:
    tags = ["clip", "clipkit", "zero-shot-image-classification", format.name.replace("_", "-")]
    fields: dict[str, Any] = {"pipeline_tag": "zero-shot-image-classification", "tags": tags}
    if format.name in LIBRARIES:
        fields["library_name"] = LIBRARIES[format.name]
    if known.licence.lower() in LICENCES:
        fields["license"] = known.licence.lower()
    elif known.licence:
        fields |= {"license": "other", "license_name": known.licence}
    return f"---\n{yaml.safe_dump(fields, sort_keys=True)}---\n"


def _proof(report: ParityReport) -> str:
    counts = report.details.get("probes", {})
    versions = ", ".join(f"{name} {number}" for name, number in report.details.get("versions", {}).items())
    lines = [
        f"{'Held' if report.held else 'NOT held'}: the files, loaded as their receiver loads them, against the encoder that was trained, "
        f"on {counts.get('images', 0)} images and {counts.get('texts', 0)} texts (`parity.json` has it all; {versions}).\n",
        "| what was compared | bound | largest difference | smallest centred cosine |",
        "| --- | --- | ---: | ---: |",
    ]
    for check in report.checks:
        cosine = "" if check.smallest_cosine is None else f"{check.smallest_cosine:.7f}"
        lines.append(f"| {check.name} | {check.bound} | {check.largest_difference:.1e} | {cosine} |")
    notes = [line for line in report.lines() if line.startswith("NOTE")]
    if notes:
        lines += ["\nWhat a receiver must know:\n", *(f"- {_code(line.removeprefix('NOTE '))}" for line in notes)]
    return "\n".join(lines) + "\n"


def _figures(known: Provenance, precision: str) -> str:
    if not known.figures:
        return "None measured.\n"
    told = f"Of the weights before they became {precision}; these files themselves were not measured.\n"
    lines = [
        *([] if precision == "float32" else [told]),
        "| data | figure | value | 95 % interval | from |",
        "| --- | --- | ---: | ---: | --- |",
    ]
    return "\n".join([*lines, *(_figure(figure) for figure in known.figures)]) + "\n"


def _figure(figure: Figure) -> str:
    value = f"{figure.value:.4f}" if figure.name == "loss" else percent(figure.name, figure.value)
    interval = "" if figure.interval is None else percent(figure.name, figure.interval)
    if figure.interval is not None and figure.name == "loss":
        interval = " to ".join(f"{end:.4f}" for end in figure.interval)
    return f"| {_cell(figure.data)} | {_cell(figure.name)} | {value} | {interval} | {_cell(figure.where)} |"


def _training(known: Provenance) -> str:
    lines = [f"- model: {_code(known.model)}", f"- SHA-256 of the weights: {_code(known.weights or 'not known')}"]
    if known.step is not None:
        lines.append(f"- step: {known.step:,} of {known.steps or 0:,}{', moving average' if known.averaged else ''}")
    lines += [f"- {_code(note)}" for note in known.notes]
    if known.parents:
        return "\n".join([*lines, "- data, command and configuration: see what it was merged from"]) + "\n"
    lines += [f"- {line}" for line in _data(known)]
    for title, text, language in (("Command", known.command, "sh"), ("Configuration", known.config, "yaml")):
        lines += [f"\n{title}:\n", _block(text, language)] if text else [f"- {title.lower()}: not known"]
    return "\n".join(lines) + "\n"


def _data(known: Provenance) -> Iterator[str]:
    if not known.data:
        yield "data: not known"
    for source in known.data:
        yield "data: " + ", ".join(
            f"{key if key.isidentifier() else _code(key)} {_code(value)}" for key, value in source.items()
        )


def _parents(parents: Sequence[dict[str, Any]]) -> str:
    lines = ["| model | share | SHA-256 of the weights |", "| --- | ---: | --- |"]
    lines += [
        f"| {_cell(str(x.get('model')))} | {_cell(str(x.get('share')))} | {_cell(str(x.get('weights')))} |"
        for x in parents
    ]
    text = "\n".join(lines) + "\n"
    for parent in parents:
        with contextlib.suppress(ValueError):  # a stranger's file may say less
            known = Provenance.from_dict(parent)
            text += f"\n### {_code(known.model)}\n\n{_training(known)}\n"
            text += f"Figures of this parent, not of the merge:\n\n{_figures(known, 'float32')}"
    return text


def _licence(known: Provenance) -> str:
    stated = _code(known.licence) if known.licence else "not stated by whoever exported them"
    return f"Weights: {stated}. The code that made these files, clipkit (`{DISTRIBUTION}`), is under {CODE_LICENCE}.\n"


def _title(known: Provenance) -> str:
    """A name, the last part of a path, or a run and its step."""
    if known.parents:
        return f"A merge of {len(known.parents)} models"
    parts = [part for part in known.model.split("/") if part] or ["a model"]
    run = parts[-3] if parts[-2:-1] == ["checkpoints"] and len(parts) > 2 else parts[-1]
    return _code(run) + (f", step {known.step:,}," if known.step is not None else "")


def plain(text: str) -> str:
    r"""A text in one line without characters that cannot be seen or that turn the order of what is shown.

    >>> plain("two\nlines\u202e")
    'two lines'
    """
    return "".join(x for x in " ".join(text.split()) if unicodedata.category(x)[0] != "C")


def _code(text: str) -> str:
    """A text as a code span, whatever it holds."""
    clean = plain(text) or "-"
    ticks = "`" * (max((len(run) for run in re.findall("`+", clean)), default=0) + 1)
    space = " " if clean.startswith("`") or clean.endswith("`") else ""
    return f"{ticks}{space}{clean}{space}{ticks}"


def _cell(text: str) -> str:
    """Likewise in a table, where a bar would end the cell."""
    return _code(text).replace("|", "\\|")


def _block(text: str, language: str) -> str:
    """A text as a fenced block, whatever it holds."""
    lines = ["".join(x for x in line if unicodedata.category(x)[0] != "C" or x == "\t") for line in text.splitlines()]
    fence = "`" * max(3, max((len(run) for line in lines for run in re.findall("`+", line)), default=0) + 1)
    return "\n".join([f"{fence}{language}", *lines, fence]) + "\n"

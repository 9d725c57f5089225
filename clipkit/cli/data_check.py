"""``clipkit data check``: what stands in the way of a run, as a table, as a file and as an exit code."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table
from rich.text import Text

from clipkit.building import cache_folder, shipped_model
from clipkit.cli.data_paths import fields_of, shards_of
from clipkit.config.model import split_model
from clipkit.data.atomic import write_atomically
from clipkit.data.audit import Inspect, Loose
from clipkit.data.audit_report import report
from clipkit.data.embedded import resolve
from clipkit.data.gathered import Gathered
from clipkit.data.parallel import map_shards
from clipkit.evaluation.datasets import open_classification, open_retrieval, task_of
from clipkit.evaluation.folders import find_images
from clipkit.evaluation.places import EMBEDDED
from clipkit.evaluation.samples import ImageFile
from clipkit.evaluation.shards import find_layout
from clipkit.towers.open_clip import TokenCount, build_tokenizer

_AT_ONCE = 500  # loose pictures that go to a worker together
Json = dict[str, Any]


def check_all(
    paths: Sequence[str],
    against: Sequence[str],
    *,
    model: str,
    fields: Sequence[str],
    budget: float,
    strict: bool,
    out: Path | None,
    workers: int,
    ray: str | None,
) -> int:
    """Check shards and print what was found.

    Returns:
        0 if they can be trained on, else 1.

    Raises:
        ValueError: If paths, fields or model are wrong.
    """
    if out is not None and (out.is_dir() or not out.absolute().parent.is_dir()):
        raise ValueError(f"--json {out}: it is a folder or lies in none; name a file, such as check.json")
    name, cache = shipped_model(_name(model)), cache_folder()
    places = fields_of(fields)
    shards = [shard for path in paths for shard in shards_of(path, cache)]
    sets = [item for path in against for item in _evaluation(path, cache)]
    context = (name, build_tokenizer(name)[1]) if "text" in places else None
    inspect = Inspect(places, TokenCount(name) if context else None, cache)
    console = Console(stderr=True)

    def gather(items: Sequence[str | Loose], what: str, looking: Inspect) -> Gathered:
        parts: Iterable[Any] = map_shards(looking, items, workers=workers, ray=ray)
        if console.is_terminal:
            parts = track(parts, f"{what} of {len(items):,} shards", len(items), console=console, transient=True)
        return Gathered(items, list(parts), places, cache)

    held = gather(shards, "samples", inspect)
    other = gather(sets, "evaluation data", Inspect(places, None, cache)) if sets else None
    found = report(held, other, context)
    faults = list(failures(found, budget=budget, strict=strict))
    found |= {"paths": list(paths), "against": list(against), "budget": budget, "strict": strict, "failures": faults}
    _print(found)
    if out is not None:
        data = json.dumps(found, indent=1, allow_nan=False).encode()
        write_atomically(out, lambda file: file.write(data))
        print(f"written to {out}")
    return 1 if faults else 0


def _name(model: str) -> str:
    """The model without its tag: weights do not matter here."""
    return model if Path(model).exists() else str(split_model(model)["name"])


def failures(found: Json, *, budget: float, strict: bool) -> Iterator[str]:
    """Why the shards should not be trained on as they are; nothing if they can be."""
    unreadable = len(found["unreadable_shards"])
    if unreadable:
        yield f"{unreadable:,} of {found['shards']:,} shards cannot be read"
    broken = found["broken"]
    if broken["share"] > budget:
        yield f"{broken['share']:.2%} of the samples are broken, the budget is {budget:.2%}"
    leaks = found.get("leakage")
    if leaks:
        if leaks["pictures"]["count"]:
            yield f"{leaks['pictures']['count']:,} pictures of the evaluation data are trained on"
        if leaks["unreadable_shards"] or sum(leaks["broken"].values()):
            yield "some of the evaluation data cannot be read, so it was not looked for"
    if strict:
        twice = found["duplicates"]
        for what, number in (
            ("image files occur again", twice["images"]["surplus"]),
            ("captions occur again", twice["captions"]["surplus"]),
            ("image files look like another", twice["near_images"]["files"]),
            ("captions of the evaluation data are trained on", leaks["same_caption"] if leaks else 0),
        ):
            if number:
                yield f"{number:,} {what} (--strict)"


def _evaluation(path: str, cache: Path) -> list[str | Loose]:
    """Evaluation data of any kind: shards, or loose pictures with their captions."""
    known = resolve(path, cache) if path.startswith(EMBEDDED) else Path(path).expanduser()
    if isinstance(known, list):
        return list(known)
    layout = find_layout(known) if known.is_dir() else None
    if not layout and (not known.exists() or known.suffix == ".tar" or any(known.glob("*.tar"))):
        return list(shards_of(path, cache))
    pictures: Sequence[ImageFile]
    texts: Sequence[Sequence[str]] = ()
    if known.suffix.lower() in (".csv", ".tsv") or (known.is_dir() and task_of(known) == "retrieval"):
        captioned = open_retrieval(known)
        pictures, texts = captioned.images, captioned.captions
    elif layout:
        pictures = open_classification(known).images
    else:  # the pictures alone count, so class folders and plain ones are the same
        pictures = [ImageFile(image) for image in (find_images(known) if known.is_dir() else [known])]
    if not pictures:
        raise ValueError(f"--against {path}: neither shards nor pictures; check the path")
    texts = texts or [()] * len(pictures)
    return [
        Loose(pictures[start : start + _AT_ONCE], texts[start : start + _AT_ONCE])
        for start in range(0, len(pictures), _AT_ONCE)
    ]


def _print(found: Json) -> None:
    console = Console()
    if not console.is_terminal:
        console = Console(width=120)
    table = Table("what", "figure", "detail", title="clipkit data check", title_justify="left")
    table.columns[0].no_wrap = table.columns[1].no_wrap = True
    table.columns[1].justify = "right"
    for rows in (_samples(found), _pictures(found["images"]), _texts(found["captions"]), _twice(found), _leaks(found)):
        for what, figure, detail in rows:
            table.add_row(*(Text(cell) for cell in (what, figure, detail)))  # Text: nothing in it is markup
        table.add_section()
    console.print(table)
    faults = found["failures"]
    console.print(Text("\n".join(faults) or "no failure: this can be trained on", style="red" if faults else "green"))


Rows = Iterator[tuple[str, str, str]]


def _samples(found: Json) -> Rows:
    yield "samples", f"{found['samples']:,}", f"in {found['shards']:,} shards"
    for error in list(found["unreadable_shards"].values())[:5]:
        yield "shard unreadable", "", error
    broken = found["broken"]
    yield "broken", f"{broken['count']:,}", f"{broken['share']:.2%} of the samples"
    for cause, held in broken["causes"].items():
        first = held["examples"][0]
        yield f"  {cause}", f"{held['count']:,}", f"{first['key']} of {first['shard']}: {first['detail']}"


def _spread(held: Json) -> str:
    return f"5 % {held['p5']:,}, 95 % {held['p95']:,}, from {held['min']:,} to {held['max']:,}"


def _pictures(images: Json) -> Rows:
    yield "images", f"{images['count']:,}", _named(images["formats"])
    for name in ("width", "height", "short_side", "aspect"):
        if images[name]:
            yield f"  {name.replace('_', ' ')} (median)", f"{images[name]['median']:,}", _spread(images[name])
    if images["traits"]:
        yield "  of these", "", _named(images["traits"])
    if images["of_one_colour"]:
        yield "  of one colour", f"{images['of_one_colour']:,}", "left out where looks are compared"


def _named(counts: dict[str, int]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {count:,}" for name, count in counts.items())


def _texts(captions: Json) -> Rows:
    yield "captions", f"{captions['count']:,}", f"{captions['distinct']:,} different ones"
    for unit in ("characters", "words", "tokens"):
        if captions.get(unit):
            yield f"  {unit} (median)", f"{captions[unit]['median']:,}", _spread(captions[unit])
    if "cut" in captions:
        cut = captions["cut"]
        yield (
            "  cut",
            f"{cut['share']:.2%}",
            f"{cut['count']:,} are longer than {cut['model']}'s {cut['context']} tokens",
        )
    if captions["suspicious"]:
        yield "  suspicious", f"{sum(captions['suspicious'].values()):,}", _named(captions["suspicious"])
    for held in captions["most_frequent"]:
        yield "  frequent", f"{held['count']:,}", held["text"]


def _place(held: dict[str, str]) -> str:
    return held.get("file") or f"{held['key']} of {held['shard']}"


def _twice(found: Json) -> Rows:
    for name, held in (("images", found["duplicates"]["images"]), ("captions", found["duplicates"]["captions"])):
        detail = f"in {held['groups']:,} groups"
        if held["examples"]:
            largest = held["examples"][0]
            detail += f", the largest of {largest['count']:,}: {_place(largest['samples'][0])}"
        yield f"equal {name}", f"{held['surplus']:,}", detail
    near = found["duplicates"]["near_images"]
    detail = " and ".join(_place(held) for held in near["examples"][0]) if near["examples"] else ""
    yield "look like another", f"{near['files']:,}", detail
    if near["not_compared"]:
        yield "  not compared", f"{near['not_compared']:,}", "pairs among very many of one look"


def _leaks(found: Json) -> Rows:
    leaks = found.get("leakage")
    if leaks is None:
        return
    yield "evaluation samples", f"{leaks['samples']:,}", ", ".join(found["against"])
    for name in ("file", "look", "caption"):
        first = next((held for held in leaks["listed"] if held["by"] == name), None)
        detail = f"{_place(first['evaluation'])} is {_place(first['training'])}" if first else ""
        yield f"  same {name} trained on", f"{leaks[f'same_{name}']:,}", detail
    if leaks["broken"] or leaks["unreadable_shards"]:
        yield "  not looked for", f"{sum(leaks['broken'].values()):,}", _named(leaks["broken"])

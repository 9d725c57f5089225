"""``clipkit data preview``: some samples as one HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from clipkit.building import build_model, cache_folder
from clipkit.cli.data_paths import fields_of, shards_of
from clipkit.config import load_config
from clipkit.data.atomic import write_atomically
from clipkit.data.contact_sheet import MOST_SAMPLES, page
from clipkit.data.preview import Views, draw
from clipkit.data.stages import IMAGE
from clipkit.staging import build_stages


def preview(
    paths: Sequence[str], out: Path, *, samples: int, seed: int, fields: Sequence[str], augment: str | None
) -> None:
    """Draw samples and write the page.

    Raises:
        ValueError: If paths, fields, the configuration or the file are wrong.
    """
    if out.suffix.lower() not in (".html", ".htm") or out.is_dir() or not out.absolute().parent.is_dir():
        raise ValueError(f"--out {out}: name a file FILE.html in a folder that exists")
    if samples > MOST_SAMPLES:
        raise ValueError(f"--samples {samples}: at most {MOST_SAMPLES} are shown; draw others with --seed")
    cache = cache_folder()
    places = fields_of(fields)
    shards = [shard for path in paths for shard in shards_of(path, cache)]
    notes = [", ".join(paths)]
    views = None
    if augment is not None:
        config = load_config(augment)
        last, stages = build_stages(config.data, build_model(config))
        first = stages[0][1] if stages else last
        views = Views(first.images[IMAGE], config.seed)
        notes.append(f"below each picture {views.count} of the views that {augment} may train on")
    shown = draw(shards, places, samples=samples, seed=seed, cache=cache, views=views)
    drawn = len({sample.shard for sample in shown})
    notes.insert(1, f"{len(shown):,} samples drawn from {drawn:,} of {len(shards):,} shards, seed {seed}")
    text = page(shown, title="clipkit data preview", notes=notes)
    write_atomically(out, lambda file: file.write(text.encode("utf-8", "backslashreplace")))
    bad = sum(bool(sample.faults) for sample in shown)
    print(f"{len(shown):,} samples, {bad:,} of them broken; written to {out}")

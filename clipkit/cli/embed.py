"""``clipkit embed`` and ``clipkit search``: what they print."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from clipkit import api, distributed
from clipkit.callbacks.say import say
from clipkit.encoder import Encoder
from clipkit.exporters.card import plain
from clipkit.hardware import pick_device
from clipkit.quiet import quieten


def embed_all(model: str, data: str, *, out: Path, device: str, average: bool, trust_code: bool, **how: Any) -> None:
    """Embed on all ranks with a bar of parts, then say what lies where."""
    quieten()
    local, nodes = distributed.launcher_world()
    place = pick_device(device)
    distributed.init(local * nodes, gpu=place.startswith("cuda"))
    torch.manual_seed(0)  # random weights, where there are no others, are the same on every rank
    encoder = api.load(model, device=place, average=average, trust_code=trust_code)
    columns = (TextColumn("embedding"), BarColumn(), MofNCompleteColumn(), TextColumn("parts"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=distributed.rank() > 0) as bar:
        task = bar.add_task("parts", total=None, visible=False)  # shown from the first part on, and not above an error
        try:
            made = api.embed(
                encoder,
                data,
                out,
                on_part=lambda done, total: bar.update(task, completed=done, total=total, visible=True),
                **how,
            )
        except KeyboardInterrupt:
            say("stopped; the parts that are done stay, and the same command goes on")
            raise
    if distributed.rank() == 0:
        words = f"{made['images']:,} pictures and {made['captions']:,} captions"
        print(f"{words}, {made['dim']} values of {made['dtype']} each, in {made['parts']} part(s) of {out}")
    distributed.barrier()


def trusted(model: str | None, *, trust_code: bool) -> str | Encoder | None:
    """The model of a search, loaded where consent goes with it: to what the user named, never to what a manifest names.

    Raises:
        ValueError: If consent is given to no model.
    """
    if not trust_code:
        return model
    if model is None:
        raise ValueError("--trust-code says that you trust a model: name it with --model; a manifest cannot")
    return api.load(model, trust_code=True)


def search(folder: Path, queries: Sequence[str], *, image: Path | None, html: Path | None, **how: Any) -> None:
    """Print what is found for each query, and write a gallery.

    Raises:
        ValueError: If there is nothing to look for, or a file cannot be read.
    """
    if html is not None and html.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"--html {html}: a gallery is a page; name a file that ends in .html")
    if not queries and image is None:
        raise ValueError('nothing to look for: write clipkit search DIR "a red bicycle", or --image FILE, or --serve')
    answers = api.search(folder, list(queries), image=image, **how)
    for question, hits in answers:
        shown = Table("cosine", "key", "caption", title=question, title_justify="left")
        shown.columns[0].justify = "right"
        for hit in hits:
            shown.add_row(f"{hit.score:.4f}", plain(hit.shown.key), plain(hit.shown.caption)[:120])
        Console(markup=False).print(shown)
    if html is not None:
        from clipkit.embedding.gallery import write_page

        write_page(html, answers, f"Search in {folder.name}")
        print(f"written to {html}")

"""`clipkit data`: make and look at shards."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Make shards.", no_args_is_help=True, add_completion=False, rich_markup_mode=None)


@app.callback()
def _data() -> None:
    """Make shards."""  # a group of one verb stays a group


@app.command()
def pack(
    source: Annotated[
        Path, typer.Argument(help="Images with captions beside them, class folders, a CSV, TSV or JSONL.")
    ],
    out: Annotated[Path, typer.Option(help="Folder to make; absent or empty.")],
    shard_size: Annotated[str, typer.Option(help="Samples of a shard, such as 10k.")] = "10k",
    image_column: Annotated[
        str | None, typer.Option(help="Column of the image's path; unset: filepath, image or path.")
    ] = None,
    caption_column: Annotated[
        str | None, typer.Option(help="Column of the caption; unset: caption, title or text.")
    ] = None,
) -> None:
    """Pack images with captions into WebDataset shards, with their indexes."""
    from clipkit.config.units import parse_count

    try:
        samples = parse_count(shard_size)
    except ValueError as error:
        raise ValueError(f"--shard-size {shard_size}: {error}") from None
    from clipkit.data.pack import pack as pack_shards

    typer.echo(
        str(pack_shards(source, out, shard_size=samples, image_column=image_column, caption_column=caption_column))
    )

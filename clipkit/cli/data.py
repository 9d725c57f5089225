"""`clipkit data`: make and look at shards."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    help="Make shards, index them and look at them.", no_args_is_help=True, add_completion=False, rich_markup_mode=None
)


@app.command()
def pack(
    source: Annotated[
        Path,
        typer.Argument(help="Images with captions beside them, class folders, CSV, TSV, JSONL, parquet, datasets."),
    ],
    out: Annotated[Path, typer.Option(help="Folder to make; absent or empty.")],
    shard_size: Annotated[str, typer.Option(help="Samples of a shard, such as 10k.")] = "10k",
    image_column: Annotated[
        str | None, typer.Option(help="Column of the image's path or bytes; unset: filepath, image, path or file_name.")
    ] = None,
    caption_column: Annotated[
        str | None, typer.Option(help="Column of the caption; unset: caption, title or text.")
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="NAME=SHARE, such as val=0.02: held out by the image's hash, in a folder NAME.")
    ] = None,
    resize: Annotated[int | None, typer.Option(help="Shorter side, in pixels, to shrink larger images to.")] = None,
    strip_exif: Annotated[
        bool, typer.Option("--strip-exif", help="Remove EXIF, XMP, IPTC and comments; pixels stay as they are.")
    ] = False,
    fields: Annotated[
        str | None, typer.Option(help="Keys of the JSON or columns of the table to keep, such as width,similarity.")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes.")] = 1,
    ray: Annotated[str | None, typer.Option(help="Address of a Ray cluster to work on instead.")] = None,
) -> None:
    """Pack images with captions into WebDataset shards, with their indexes. Killed, the same command goes on."""
    from clipkit.config.units import parse_count

    try:
        samples = parse_count(shard_size)
    except ValueError as error:
        raise ValueError(f"--shard-size {shard_size}: {error}") from None
    from clipkit.data.pack import PackOptions
    from clipkit.data.pack import pack as pack_shards

    options = PackOptions(
        shard_size=samples,
        image_column=image_column,
        caption_column=caption_column,
        split=None if split is None else _share(split),
        resize=resize,
        strip_exif=strip_exif,
        fields=None if fields is None else tuple(name.strip() for name in fields.split(",") if name.strip()),
    )
    typer.echo(str(pack_shards(source, out, options, workers=workers, ray=ray)))


@app.command()
def index(
    paths: Annotated[
        list[str], typer.Argument(help="Folders of shards, shards, ranges {00000..01099}.tar, wildcards, URLs.")
    ],
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes; unset: one a core, fewer for a few shards.")
    ] = None,
    ray: Annotated[str | None, typer.Option(help="Address of a Ray cluster to work on instead.")] = None,
) -> None:
    """Index shards: a sidecar each and the list of their folder, so that a run starts at once. What is fresh stays."""
    from clipkit.data.index import default_cache
    from clipkit.data.indexing import index_shards
    from clipkit.data.node_cache import NodeCache
    from clipkit.data.remote_counts import index_remote
    from clipkit.data.source import expand_shards
    from clipkit.data.urls import is_remote

    shards = [shard for pattern in paths for shard in expand_shards(pattern)]
    if remote := [shard for shard in shards if is_remote(shard)]:
        if ray is not None or workers is not None:
            raise ValueError(
                "--workers and --ray are for files; remote shards are indexed as they come to this machine"
            )
        for path in index_remote(remote, NodeCache(default_cache())):
            typer.echo(f"{path}: copied beside the shards, as index.json, it serves every machine")
    if len(remote) == len(shards):
        return
    report = index_shards(
        [shard for shard in shards if not is_remote(shard)], default_cache(), workers=workers, ray=ray
    )
    typer.echo(str(report))
    report.raise_refusals()
    report.raise_unkept()


@app.command()
def check(
    paths: Annotated[list[str], typer.Argument(help="Shards: files, patterns or folders.")],
    against: Annotated[
        list[str] | None, typer.Option(help="Evaluation data that must not be trained on; may be repeated.")
    ] = None,
    model: Annotated[str, typer.Option(help="Model whose tokenizer and context length captions meet.")] = "ViT-B-32",
    fields: Annotated[
        list[str] | None, typer.Option(help="FIELD=PLACE,PLACE such as text=json.caption; may be repeated.")
    ] = None,
    budget: Annotated[float, typer.Option(min=0, max=1, help="Share of the samples that may be broken.")] = 0.01,
    strict: Annotated[bool, typer.Option("--strict", help="Duplicates and equal captions fail too.")] = False,
    json: Annotated[Path | None, typer.Option(help="File for all figures and examples.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes.")] = 1,
    ray: Annotated[str | None, typer.Option(help="Address of a Ray cluster to work on instead.")] = None,
) -> None:
    """Read every sample as training will: broken files, duplicates, captions, and evaluation data among them."""
    from clipkit.cli.data_check import check_all

    code = check_all(
        paths,
        against or [],
        model=model,
        fields=fields or [],
        budget=budget,
        strict=strict,
        out=json,
        workers=workers,
        ray=ray,
    )
    if code:
        raise typer.Exit(code)


@app.command()
def preview(
    paths: Annotated[list[str], typer.Argument(help="Shards: files, patterns or folders.")],
    out: Annotated[Path, typer.Option(help="The page, FILE.html.")],
    samples: Annotated[int, typer.Option(min=1, help="How many are shown.")] = 64,
    seed: Annotated[int, typer.Option(min=0, help="Of the draw.")] = 0,
    fields: Annotated[
        list[str] | None, typer.Option(help="FIELD=PLACE,PLACE such as text=json.caption; may be repeated.")
    ] = None,
    augment: Annotated[
        str | None, typer.Option(help="A configuration: show pictures as it trains on them too.")
    ] = None,
) -> None:
    """Write some samples as one HTML page to look at."""
    from clipkit.cli.data_preview import preview as write_preview

    write_preview(paths, out, samples=samples, seed=seed, fields=fields or [], augment=augment)


def _share(split: str) -> tuple[str, float]:
    name, _, share = split.partition("=")
    try:
        return name, float(share)
    except ValueError:
        raise ValueError(f"--split {split}: write NAME=SHARE, such as val=0.02") from None

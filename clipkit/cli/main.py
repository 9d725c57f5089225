"""The command line: verbs that parse, call ``clipkit.api`` and print. Nothing heavy is imported before a verb runs."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from clipkit.cli import config as config_verbs
from clipkit.cli import data as data_verbs
from clipkit.cli.early import answering
from clipkit.cli.exits import exit_code
from clipkit.cli.logged import speaking
from clipkit.exporters.formats import FORMATS

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
    help="CLIP-style contrastive pretraining: fit, evaluate, export, embed, search.",
)
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Devices = Annotated[int, typer.Option(min=1, help="Processes of this machine that share the work.")]
TrustCode = Annotated[
    bool,
    typer.Option(
        "--trust-code",
        help="Read a folder of .pt2 files (programs, machine code): they can run code of whoever wrote them.",
    ),
]
Average = Annotated[
    bool, typer.Option("--average/--no-average", help="Take a run's moving average (optim.ema), if it keeps one.")
]
_arguments: list[str] | None = None  # what ``run`` was given: ranks are started with the same
app.add_typer(config_verbs.app, name="config")
app.add_typer(data_verbs.app, name="data")


@app.command()
def demo(
    quick: Annotated[bool, typer.Option("--quick", help="The whole story in under 90 seconds.")] = False,
    out: Annotated[
        Path | None, typer.Option(help="Run folder; runs/demo, with --quick runs/demo-quick. Made anew.")
    ] = None,
) -> None:
    """Train, evaluate, prove and export on the embedded data, offline."""
    from clipkit.demo.story import tell

    code = tell(out or Path("runs") / ("demo-quick" if quick else "demo"), quick=quick)
    if code:
        raise typer.Exit(code)


@app.command(context_settings={"ignore_unknown_options": False})
def fit(
    config: Annotated[str, typer.Argument(help="A configuration file, or the name of a shipped one.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="key=value, such as optim.lr=1e-3 or run=runs/mine.")
    ] = None,
    resume: Annotated[str, typer.Option(help="auto, never, a checkpoint folder, or a copy's URL.")] = "auto",
    plugin: Annotated[str | None, typer.Option(help="Python module with own LOSSES.")] = None,
    allow_mismatch: Annotated[
        bool,
        typer.Option(
            "--allow-mismatch", help="Resume although data or seed differ: the weights go on, the new data begin."
        ),
    ] = False,
    image_column: Annotated[str | None, typer.Option(help="Of a table to be packed: data.pack.image_column.")] = None,
    caption_column: Annotated[str | None, typer.Option(help="Likewise data.pack.caption_column.")] = None,
    allow_pipe: Annotated[
        bool, typer.Option("--allow-pipe", help="Let `pipe:` shards run their program; read the configuration first.")
    ] = False,
) -> None:
    """Train; the same command again goes on with an unfinished run."""
    from clipkit import api

    columns = {"image_column": image_column, "caption_column": caption_column}
    given = [f"data.pack.{key}={json.dumps(name)}" for key, name in columns.items() if name is not None]
    changes = [*(overrides or []), *given]
    run = api.fit(config, changes, resume=resume, plugin=plugin, allow_mismatch=allow_mismatch, allow_pipe=allow_pipe)
    if run.code:
        raise typer.Exit(run.code)


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="Run, checkpoint, exported folder, .pt, hf-hub:org/repo, or NAME:TAG.")],
    data: Annotated[
        list[str] | None,
        typer.Option(help="Shards (here or a URL), class folders, captioned images, a CSV or JSON; may be repeated."),
    ] = None,
    task: Annotated[str | None, typer.Option(help="zero_shot, retrieval, ...; by default the data says.")] = None,
    option: Annotated[list[str] | None, typer.Option(help="key=value of the task; may be repeated.")] = None,
    suite: Annotated[
        str | None, typer.Option(help="datacomp38, vtab, imagenet-shift, retrieval, mini, or FILE.yaml.")
    ] = None,
    root: Annotated[str | None, typer.Option(help="Folder or URL that holds the sets of --suite.")] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="FILE.json for one result, FILE.csv or FILE.md, or a folder: it is gone on with."),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images of one forward.")] = 64,
    workers: Annotated[int, typer.Option(min=0, help="Processes that read and decode images.")] = 0,
    precision: Annotated[str, typer.Option(help="fp32, bf16 or fp16.")] = "fp32",
    device: Device = "auto",
    devices: Devices = 1,
    seed: Annotated[int, typer.Option(min=0, help="Of the intervals.")] = 0,
    average: Average = True,
    trust_code: TrustCode = False,
) -> None:
    """Score any model on data of your own or on a benchmark."""
    if _ran_on_ranks(devices):
        return
    from clipkit.cli.evaluate import Asked, evaluate_all
    from clipkit.data.index import default_cache
    from clipkit.evaluation.engine import Setting

    kept = default_cache() / "features"
    setting = Setting(batch_size=batch_size, workers=workers, precision=precision, seed=seed, feature_cache=kept)
    evaluate_all(Asked(model, data or [], task, option or [], suite, root, out, device, setting, average, trust_code))


@app.command()
def export(
    model: Annotated[str, typer.Argument(help="Run, checkpoint, exported folder, .pt, hf-hub:org/repo, or NAME:TAG.")],
    out: Annotated[Path, typer.Option(help="Folder to make.")],
    format: Annotated[
        list[str] | None, typer.Option(help=f"{', '.join(FORMATS)}; several go to OUT/FORMAT each.")
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(help="key=value of the format, FORMAT.key=value where there are several; may be repeated."),
    ] = None,
    merge: Annotated[
        list[str] | None, typer.Option(help="A model of the same architecture to average with; may be repeated.")
    ] = None,
    weight: Annotated[
        list[float] | None, typer.Option(help="The share of each --merge; without, all models have equal shares.")
    ] = None,
    average: Average = True,
    license: Annotated[str | None, typer.Option(help="Of the weights, for the card: apache-2.0, cc-by-4.0 ...")] = None,
    force: Annotated[
        bool,
        typer.Option(
            "--force", help="Replace an earlier export; anything else in OUT but a run moves to OUT.replaced."
        ),
    ] = False,
    push: Annotated[
        str | None, typer.Option(help="org/repo on the Hugging Face hub to upload to, once proven.")
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="Make a new repository public, not private.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what --push would upload, and do not.")] = False,
) -> None:
    """Write an encoder for another program, with proof that it is the same encoder."""
    from clipkit.cli.export import Asked, export_all

    formats, options = format or ["open_clip"], option or []
    asked = Asked(
        model, formats, out, options, merge or [], weight or [], average, license, force, push, public, dry_run
    )
    export_all(asked)


@app.command()
def embed(
    model: Annotated[str, typer.Argument(help="Run, checkpoint, exported folder, .pt, hf-hub:org/repo, or NAME:TAG.")],
    data: Annotated[str, typer.Argument(help="Shards (here or a URL), a folder of pictures, a CSV, or embedded:NAME.")],
    out: Annotated[Path, typer.Option(help="Folder to make, or to go on with.")],
    dtype: Annotated[str, typer.Option(help="fp16 or fp32: what is stored.")] = "fp16",
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures of one forward.")] = 64,
    workers: Annotated[int, typer.Option(min=0, help="Processes that read and decode images.")] = 0,
    thumbnail: Annotated[int, typer.Option(min=0, help="Longer side of the thumbnails in pixels, 0 without.")] = 96,
    force: Annotated[bool, typer.Option("--force", help="Replace embeddings of something else.")] = False,
    device: Device = "auto",
    devices: Devices = 1,
    average: Average = True,
    trust_code: TrustCode = False,
) -> None:
    """Write unit-norm embeddings of pictures and captions as .npy and parquet."""
    if _ran_on_ranks(devices):
        return
    from clipkit.cli.embed import embed_all

    how = {"dtype": dtype, "batch_size": batch_size, "workers": workers, "thumbnail": thumbnail, "force": force}
    embed_all(model, data, out=out, device=device, average=average, trust_code=trust_code, **how)


@app.command()
def search(
    folder: Annotated[Path, typer.Argument(help="A folder of embeddings, or of pictures (then with --model).")],
    queries: Annotated[list[str] | None, typer.Argument(help="What to find; each is a question of its own.")] = None,
    model: Annotated[str | None, typer.Option(help="The model; by default the one that made the embeddings.")] = None,
    image: Annotated[Path | None, typer.Option(help="A picture to find the like of.")] = None,
    k: Annotated[int, typer.Option("-k", "--k", min=1, help="Results of each question.")] = 10,
    of: Annotated[str, typer.Option(help="What to find: images or texts.")] = "images",
    html: Annotated[Path | None, typer.Option(help="Write a gallery with thumbnails too.")] = None,
    index: Annotated[bool, typer.Option("--index", help="Search an HNSW index: approximate, for many rows.")] = False,
    workers: Annotated[int, typer.Option(min=0, help="Processes that read pictures on first use.")] = 0,
    serve: Annotated[bool, typer.Option("--serve", help="A page and a JSON API instead.")] = False,
    host: Annotated[
        str, typer.Option(help="Where to serve; other machines reach only what is not loopback.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to serve on.")] = 8008,
    trust_code: TrustCode = False,
) -> None:
    """Find pictures by words, or pictures and texts by a picture."""
    from clipkit.cli import embed as verbs

    chosen = verbs.trusted(model, trust_code=trust_code)
    if serve:
        from clipkit import api

        if queries or image is not None or html is not None:
            raise ValueError("--serve takes its questions in the browser; leave the words, --image and --html out")
        try:
            from clipkit.embedding.serve import serve as answer
        except ImportError as error:
            from clipkit.config.names import DISTRIBUTION

            raise ValueError(f"--serve needs fastapi and uvicorn: pip install '{DISTRIBUTION}[serve]'") from error
        answer(api.finder(folder, model=chosen, index=index, workers=workers), host=host, port=port)
        return
    how = {"model": chosen, "k": k, "of": of, "index": index, "workers": workers}
    verbs.search(folder, queries or [], image=image, html=html, **how)


@app.command()
def report(
    runs: Annotated[list[str], typer.Argument(metavar="RUN [RUN2]", help="A run folder, or two to compare.")],
    out: Annotated[Path, typer.Option(help="The page to write, FILE.html.")] = Path("report.html"),
    batch_size: Annotated[int, typer.Option(min=1, help="Images of one forward.")] = 64,
    workers: Annotated[int, typer.Option(min=0, help="Processes that read and decode images.")] = 0,
) -> None:
    """Make one HTML page about a run, or about two side by side; it needs no network."""
    from clipkit.report.build import write_report

    if len(runs) > 2:
        raise ValueError(f"{len(runs)} runs given; a report is of one run, or compares two")
    path = write_report(runs, out, batch_size=batch_size, workers=workers, say=typer.echo)
    typer.echo(f"written to {path} ({path.stat().st_size / 1e6:.1f} MB)")


@app.command()
def explain(
    model: Annotated[str, typer.Argument(help="Run, checkpoint, exported folder, .pt, hf-hub:org/repo, or NAME:TAG.")],
    image: Annotated[Path, typer.Argument(help="JPEG, PNG, WebP, GIF or BMP.")],
    text: Annotated[str, typer.Argument(help="What to look for, such as 'a red bicycle'.")],
    out: Annotated[Path, typer.Option(help="The picture to write, FILE.png; its words go to FILE.words.png.")] = Path(
        "explain.png"
    ),
) -> None:
    """Show where in an image a text is seen, and each of its words."""
    from clipkit.cli.explain import explain_image

    for path in explain_image(model, image, text, out=out):
        typer.echo(f"written to {path}")


def _ran_on_ranks(devices: int) -> bool:
    """Whether this command ran on so many ranks of its own instead."""
    from clipkit import distributed

    if devices == 1 or distributed.launched():
        return False
    from clipkit.launch import run_again

    code, message = run_again(sys.argv[1:] if _arguments is None else _arguments, ranks=devices)
    if code:
        print(message, file=sys.stderr)
        raise typer.Exit(code)
    return True


def run(arguments: list[str] | None = None) -> int:
    """Run the command line and return the exit code; errors of the user are one paragraph."""
    global _arguments
    _arguments = arguments
    fits = (sys.argv[1:] if arguments is None else arguments)[:1] == ["fit"]
    with speaking(), answering(training=fits):
        return _run(arguments)


def _run(arguments: list[str] | None) -> int:
    if os.environ.get("CLIPKIT_OUTCOME"):
        from clipkit.launch import die_with_torchrun, started_here

        if started_here():
            die_with_torchrun()
    alone = False
    try:
        result = app(arguments, standalone_mode=False)
        code, message = (int(result) if isinstance(result, int) else 0), ""
    except BaseException as error:
        code, message = exit_code(error)
        alone = isinstance(error, OSError)  # a place may be missing for one rank only: torchrun must end the others
    if os.environ.get("CLIPKIT_OUTCOME"):
        from clipkit.launch import leave_word

        if leave_word(code, message) and code in (0, 2, 75) and not alone:
            return 0
    if message:
        print(message, file=sys.stderr)
    return code

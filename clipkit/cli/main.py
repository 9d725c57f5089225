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
from clipkit.cli.exits import exit_code
from clipkit.exporters.formats import FORMATS

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
    help="CLIP-style contrastive pretraining: fit, evaluate, export.",
)
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
    resume: Annotated[str, typer.Option(help="auto, never, or a checkpoint folder.")] = "auto",
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
    data: Annotated[list[str], typer.Option(help="Shards, class folders, captioned images or a CSV; may be repeated.")],
    task: Annotated[str | None, typer.Option(help="zero_shot or retrieval; by default the data says.")] = None,
    out: Annotated[Path | None, typer.Option(help="FILE.json for one result, a folder for several.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images of one forward.")] = 64,
    workers: Annotated[int, typer.Option(min=0, help="Processes that read and decode images.")] = 0,
) -> None:
    """Score any model on data of your own or on a benchmark."""
    from clipkit.cli.evaluate import evaluate_all

    evaluate_all(model, data, task=task, out=out, batch_size=batch_size, workers=workers)


@app.command()
def export(
    model: Annotated[str, typer.Argument(help="Run, checkpoint, exported folder, .pt, hf-hub:org/repo, or NAME:TAG.")],
    out: Annotated[Path, typer.Option(help="Folder to make.")],
    format: Annotated[
        list[str] | None, typer.Option(help=f"{', '.join(FORMATS)}; several go to OUT/FORMAT each.")
    ] = None,
    option: Annotated[
        list[str] | None, typer.Option(help="key=value, an option of the format; may be repeated.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a folder that is not empty.")] = False,
) -> None:
    """Write an encoder for another program, with proof that it is the same encoder."""
    from clipkit.cli.export import export_all

    export_all(model, format or ["open_clip"], out=out, options=option or [], force=force)


def run(arguments: list[str] | None = None) -> int:
    """Run the command line and return the exit code; errors of the user are one paragraph."""
    if os.environ.get("CLIPKIT_OUTCOME"):
        from clipkit.launch import die_with_parent, started_here

        if started_here():
            die_with_parent()
    try:
        result = app(arguments, standalone_mode=False)
        code, message = (int(result) if isinstance(result, int) else 0), ""
    except BaseException as error:
        code, message = exit_code(error)
    if os.environ.get("CLIPKIT_OUTCOME"):
        from clipkit.launch import leave_word

        if leave_word(code, message) and code in (0, 2, 75):
            return 0
    if message:
        print(message, file=sys.stderr)
    return code

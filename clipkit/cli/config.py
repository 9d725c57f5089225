"""`clipkit config`: look at configurations without running them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    help="Show, check and copy configurations.", no_args_is_help=True, add_completion=False, rich_markup_mode=None
)

Config = Annotated[str, typer.Argument(help="A YAML file, or the name of a shipped configuration.")]
Overrides = Annotated[list[str] | None, typer.Argument(help="Changes, as in optim.lr=1e-3 data.batch_size=4Ki.")]


@app.command()
def show(
    config: Config,
    overrides: Overrides = None,
    sources: Annotated[bool, typer.Option("--sources", help="Name where each value comes from.")] = False,
) -> None:
    """Print the resolved configuration as YAML."""
    from clipkit.config import as_yaml, load_with_sources, with_sources

    loaded = load_with_sources(config, overrides or ())
    typer.echo(with_sources(loaded.config, loaded.sources) if sources else as_yaml(loaded.config), nl=False)


@app.command()
def validate(config: Config, overrides: Overrides = None) -> None:
    """Check a configuration; name everything that is wrong with it."""
    from clipkit.config import load_config

    load_config(config, overrides or ())
    typer.echo(f"{config}: no errors")


@app.command()
def schema() -> None:
    """Print the JSON schema of configuration files, for editors."""
    from clipkit.config import json_schema

    typer.echo(json.dumps(json_schema(), indent=2))


@app.command("list")
def list_shipped() -> None:
    """List the configurations that come with clipkit, and whether they were ever run."""
    from clipkit.config import shipped
    from clipkit.config.catalog import comments, status

    for name, path in shipped().items():
        about = [next(iter(comments(path)), ""), status(path)]
        typer.echo("\n".join([name, *(f"  {line}" for line in about if line)]))


@app.command("from-open-clip")
def from_open_clip(
    command: Annotated[
        str, typer.Argument(help="The whole command line, in quotes: torchrun ... -m open_clip_train.main ...")
    ],
    world_size: Annotated[
        int | None, typer.Option(min=1, help="Processes that it starts, where its launcher does not say.")
    ] = None,
) -> None:
    """Print the configuration of a command line of open_clip's trainer, and what has no place in it."""
    from clipkit.config.from_open_clip import from_open_clip as translate

    typer.echo(str(translate(command, world=world_size)), nl=False)


@app.command()
def copy(
    name: Annotated[str, typer.Argument(help="The name of a shipped configuration.")],
    dest: Annotated[Path, typer.Argument(help="The file to write, or a folder to write it in.")],
) -> None:
    """Copy a shipped configuration, to be changed; no file is overwritten."""
    from clipkit.config import shipped

    found = shipped()
    name = name.removesuffix(".yaml")
    if name not in found:
        raise ValueError(f"no shipped configuration is called {name!r}; there are: {', '.join(found) or 'none'}")
    target = dest / Path(f"{name}.yaml").name if dest.is_dir() else dest
    try:
        with target.open("x", encoding="utf-8") as file:
            file.write(found[name].read_text(encoding="utf-8"))
    except FileExistsError:
        raise ValueError(f"{target} exists; choose another name or remove it") from None
    except OSError as error:
        raise ValueError(f"{target} cannot be written ({error.strerror}); choose another place") from None
    typer.echo(str(target))

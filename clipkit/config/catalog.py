"""The configurations that come with clipkit."""

from __future__ import annotations

from pathlib import Path


def shipped_folder() -> Path | None:
    """Return the folder of shipped configurations: inside the package in a wheel, beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    in_wheel = package / "configs"
    if in_wheel.is_dir():
        return in_wheel
    in_checkout = package.parent / "configs"
    if in_checkout.is_dir() and (package.parent / "pyproject.toml").is_file():  # not a stranger's site-packages/configs
        return in_checkout
    return None


def shipped() -> dict[str, Path]:
    """Return the shipped configurations: name (without .yaml) to file, sorted by name."""
    folder = shipped_folder()
    if folder is None:
        return {}
    return {
        path.relative_to(folder).with_suffix("").as_posix(): path
        for path in sorted(folder.rglob("*.yaml"))
        if not path.name.startswith(".")
    }


def find(reference: str | Path, beside: Path | None = None) -> Path | None:
    """Find a configuration: a path first (relative to the folder ``beside``), then a shipped name.

    Args:
        reference: A path, or a shipped name with or without `.yaml`.
        beside: The folder that a relative path starts from; None is the working directory.
    """
    path = (beside or Path()) / Path(reference).expanduser()
    if path.is_file():
        return path
    name = str(reference)
    return shipped().get(name.removesuffix(".yaml"))

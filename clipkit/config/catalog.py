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


def comments(path: Path) -> list[str]:
    """Return the lines of the comment at the head of a configuration, without their marks."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.strip() and not line.startswith("#"):
            break
        found.append(line.lstrip("# ").rstrip())
    return [line for line in found if line]


def status(path: Path) -> str:
    """Return what a configuration says of itself: `run by us (...)`, or `published elsewhere (...), not run`; empty if nothing."""
    return next((line.removeprefix("status: ") for line in comments(path) if line.startswith("status: ")), "")


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

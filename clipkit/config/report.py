"""Configuration errors as people read them: place, path, value, what is allowed, the nearest key."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches

Path = tuple[str | int, ...]


@dataclass(frozen=True)
class Place:
    """Where a value was written: a position in a file, or the name of another origin."""

    origin: str
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        return f"{self.origin}:{self.line}:{self.column}" if self.line else self.origin


@dataclass(frozen=True)
class Problem:
    """One fault of a configuration.

    Args:
        place: Where it stands.
        path: Keys from the top down to it.
        message: What is wrong and what to do.
        value: The value, as text; None where there is none to show.
        allowed: What could stand there.
        nearest: The allowed key or value that looks most like the one given.
    """

    place: Place
    path: Path
    message: str
    value: str | None = None
    allowed: tuple[str, ...] = ()
    nearest: str | None = None

    def __str__(self) -> str:
        dotted = ".".join(map(str, self.path))
        shown = f"{dotted} = {self.value}" if self.value is not None else dotted
        hint = f"; did you mean '{self.nearest}'?" if self.nearest else ""
        lines = [f"{self.place}: {shown + ': ' if shown else ''}{self.message}{hint}"]
        if self.allowed:
            lines.append(f"    allowed: {', '.join(self.allowed)}")
        return "\n".join(lines)


class ConfigError(ValueError):
    """Everything that is wrong with a configuration; its text is the whole report."""

    def __init__(self, name: str, problems: Iterable[Problem]) -> None:
        self.problems = tuple(
            sorted(
                dict.fromkeys(problems), key=lambda fault: (fault.place.origin, fault.place.line, fault.place.column)
            )
        )
        count = len(self.problems)
        head = f"{name}: {count} error{'s' if count != 1 else ''}"
        super().__init__(
            "\n".join([head, *(f"  {line}" for fault in self.problems for line in str(fault).split("\n"))])
        )


def nearest(given: object, known: Iterable[str]) -> str | None:
    """Return the entry of ``known`` that looks most like ``given``, if one does."""
    known = list(known)
    if not isinstance(given, str) or not given:
        return None
    folded = {name.lower(): name for name in known}
    match = get_close_matches(given.lower(), list(folded), n=1, cutoff=0.6)
    return folded[match[0]] if match else None


def show(value: object, width: int = 60) -> str:
    """Write a value on one line of at most ``width`` characters."""
    text = repr(value)
    return text if len(text) <= width else text[: width - 3] + "..."


def place_of(path: Path, places: Mapping[Path, Place], default: Place) -> Place:
    """Return the place of ``path``, or of the closest parent that has one."""
    for length in range(len(path), 0, -1):
        if path[:length] in places:
            return places[path[:length]]
    return default

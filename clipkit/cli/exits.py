"""What an error means for the process: its exit code and the words for the user."""

from __future__ import annotations

import os
import re
import traceback

import typer

from clipkit.data.urls import shown

# typer brings its own copy of click; this is that copy's base of all usage errors
_UsageError = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")
DONE, FAILURE, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130
# a place that the user named and that is none, or no place to write to; a full or broken disk is nobody's input
_PLACES = (FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError, PermissionError)

_OF_THE_SYSTEM = re.compile(r"\(os error \d+\)$")  # an OSError in the words of Rust: safetensors, tokenizers


def exit_code(error: BaseException) -> tuple[int, str]:
    """The exit code of an exception and what to print, less the secrets of URLs; CLIPKIT_TRACEBACK=1 shows where bad input was found.

    Example:
        >>> exit_code(ValueError("batch_size=3 is no multiple of the 2 ranks"))
        (2, 'error: batch_size=3 is no multiple of the 2 ranks')
    """
    code, message = _outcome(error)
    return code, shown(message)


def _outcome(error: BaseException) -> tuple[int, str]:
    if isinstance(error, typer.Exit):
        return error.exit_code, ""
    if isinstance(error, _UsageError):
        if isinstance(error, typer.BadParameter):
            _name_value(error)
        error.show()  # type: ignore[attr-defined]
        return BAD_INPUT, ""
    if isinstance(error, SystemExit):
        return (error.code if isinstance(error.code, int) else FAILURE), ""
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        return INTERRUPTED, "interrupted"
    code, message = _failed(error)
    if not message or os.environ.get("CLIPKIT_TRACEBACK"):
        message = "".join(traceback.format_exception(error))
    return code, message


def _failed(error: BaseException) -> tuple[int, str]:
    """The code of an error and one line; no line where only its traceback says where it comes from."""
    if isinstance(error, ValueError):
        return getattr(error, "exit_code", BAD_INPUT), f"error: {error}"
    if isinstance(error, OSError):
        named = isinstance(error, _PLACES) and error.filename is not None
        return (BAD_INPUT if named else FAILURE), f"error: {_place(error)}"
    ours = type(error).__module__.startswith("clipkit.")
    if ours or _OF_THE_SYSTEM.search(str(error)):  # they say all there is to say
        return FAILURE, f"error: {error}"
    return FAILURE, ""


def _place(error: OSError) -> str:
    """Where, and why not: ``out/a: Is a directory``."""
    names = [os.fsdecode(x) for x in (error.filename, error.filename2) if isinstance(x, str | bytes | os.PathLike)]
    why = error.strerror or str(error) or type(error).__name__
    return f"{' to '.join(names)}: {why}" if names else why


def _name_value(error: typer.BadParameter) -> None:
    """Say the value and the whole range too: typer's own words name the option and one end."""
    from pydantic import ValidationError

    if not isinstance(error.__cause__, ValidationError):
        return
    found = error.__cause__.errors(include_url=False, include_context=False)[0]
    outside = found["type"] in ("greater_than_equal", "less_than_equal")
    words = "out of range" if outside else error.message
    allowed = _allowed(getattr(error.param, "min", None), getattr(error.param, "max", None))
    error.message = f"{found['input']}: {words}" + (f"; allowed: {allowed}" if allowed else "")


def _allowed(low: float | None, high: float | None) -> str:
    if low is None or high is None:
        return f"at least {low}" if low is not None else f"at most {high}" if high is not None else ""
    return f"{low} to {high}"

"""What an error means for the process: its exit code and the words for the user."""

from __future__ import annotations

import os
import traceback

import typer

from clipkit.data.urls import shown

# typer brings its own copy of click; this is that copy's base of all usage errors
_UsageError = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")
DONE, FAILURE, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130


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
        error.show()  # type: ignore[attr-defined]
        return BAD_INPUT, ""
    if isinstance(error, SystemExit):
        return (error.code if isinstance(error.code, int) else FAILURE), ""
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        return INTERRUPTED, "interrupted"
    if os.environ.get("CLIPKIT_TRACEBACK"):
        return (BAD_INPUT if isinstance(error, ValueError) else FAILURE), "".join(traceback.format_exception(error))
    if isinstance(error, ValueError):
        return BAD_INPUT, f"error: {error}"
    if type(error).__module__.startswith("clipkit."):  # our own failures say all there is to say
        return FAILURE, f"error: {error}"
    return FAILURE, "".join(traceback.format_exception(error))

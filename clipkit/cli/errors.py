"""How the command line says that its input is bad: the report on stderr, exit code 2, no traceback."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

BAD_INPUT = 2


@contextmanager
def bad_input(*kinds: type[Exception]) -> Iterator[None]:
    """Turn exceptions of these kinds into their text and exit code 2."""
    try:
        yield
    except kinds as error:
        print(error, file=sys.stderr)
        raise SystemExit(BAD_INPUT) from None

"""``python -m clipkit``, and the ``clipkit`` command."""

from __future__ import annotations

import gc
import signal

from clipkit.cli.main import run


def main() -> None:
    """Run the command line; at the end nobody searches a million objects for garbage, which takes torch's users seconds."""
    code = run()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # one more Ctrl-C on the way out would replace the code
    gc.freeze()
    raise SystemExit(code)


if __name__ == "__main__":
    main()

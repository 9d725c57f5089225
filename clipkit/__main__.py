"""``python -m clipkit``, and the ``clipkit`` command."""

from __future__ import annotations

from clipkit.cli.main import run


def main() -> None:
    """Run the command line."""
    raise SystemExit(run())


if __name__ == "__main__":
    main()

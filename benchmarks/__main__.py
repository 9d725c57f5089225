"""``python -m benchmarks [--quick]``: every benchmark in turn, in one table; 0 where every bound holds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.common import scripts


def run(script: Path, arguments: list[str]) -> tuple[int, dict[str, Any] | None]:
    """Exit code and last line of a benchmark; None where it did not get that far."""
    done = subprocess.run([sys.executable, str(script), *arguments], stdout=subprocess.PIPE, text=True, check=False)
    lines = done.stdout.strip().splitlines()
    try:
        return done.returncode, json.loads(lines[-1])
    except (IndexError, ValueError):
        return done.returncode or 1, None


def rows(result: dict[str, Any]) -> list[tuple[str, ...]]:
    """A line of the table for each figure."""
    found = []
    for key, value in result["figures"].items():
        low, high = result["at_least"].get(key), result["at_most"].get(key)
        bound = f">= {low}" if low is not None else f"<= {high}" if high is not None else ""
        kept = (low is None or value["value"] >= low) and (high is None or value["value"] <= high)
        verdict = ("yes" if kept else "NO") if bound else ""
        spread = f"{value['min']:.4g} to {value['max']:.4g}"
        found.append((result["benchmark"], key, f"{value['value']:.4g}", spread, bound, verdict))
    return found


def main() -> int:
    """Run them all."""
    table = Table("benchmark", "figure", "median", "spread", "bound", "held")
    failed, device = False, ""
    for script in scripts():
        code, result = run(script, sys.argv[1:])
        failed = failed or code != 0
        if result is None:
            table.add_row(script.stem, "", "", "", "", f"failed with code {code}")
            continue
        device = result["device"]
        for row in rows(result):
            table.add_row(*row)
        table.add_section()
    Console().print(table)
    print(f"on {device}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

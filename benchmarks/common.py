"""What every benchmark shares: its options, its bounds, its last line and its exit code."""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import platform
import statistics
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
BOUNDS = Path(__file__).resolve().with_name("bounds.json")
HELPERS = (
    "__init__",
    "__main__",
    "chaos_faults",
    "chaos_ranks",
    "chaos_world",
    "common",
    "export_models",
    "forked",
    "hangs",
    "open_clip_loop",
    "photos",
    "tower_gradients",
)


def scripts() -> list[Path]:
    """The benchmarks among the files of this folder, by name."""
    return sorted(path for path in BOUNDS.parent.glob("*.py") if path.stem not in HELPERS)


def quick(description: str) -> bool:
    """Read the command line; whether ``--quick`` was given."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="fewer repetitions, the same bounds")
    return bool(parser.parse_args().quick)


def figure(values: Sequence[float], value: float | None = None) -> dict[str, float]:
    """Several measurements of one thing: their median (or ``value``, taken over all of them) and how far they spread."""
    middle = statistics.median(values) if value is None else value
    return {"value": middle, "min": min(middle, *values), "max": max(middle, *values)}


def finish(
    benchmark: str,
    *,
    peer: str,
    figures: Mapping[str, Mapping[str, float]],
    device: str | None = None,
    short: bool = False,
) -> int:
    """Hold the figures against ``bounds.json``, print the last line, and return the exit code: 0 where every bound holds, else 1.

    ``short``: hold them against the bounds that stand under ``quick`` for the smaller size, where there are any.
    """
    bounds = json.loads(BOUNDS.read_text())[benchmark]
    bounds |= bounds.get("quick", {}) if short else {}
    at_least, at_most = bounds.get("at_least", {}), bounds.get("at_most", {})
    held = all(figures[key]["value"] >= bound for key, bound in at_least.items())
    held = held and all(figures[key]["value"] <= bound for key, bound in at_most.items())
    line: dict[str, Any] = {
        "benchmark": benchmark,
        "device": device or cpu_name(),
        "peer": peer,
        "figures": figures,
        "at_least": at_least,
        "at_most": at_most,
        "held": held,
    }
    print(json.dumps(line))
    return 0 if held else 1


def anonymous_megabytes(pid: int | str = "self") -> float:
    """RssAnon and RssShmem of a process: what it holds beside files."""
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return sum(int(lines[name].split()[0]) for name in ("RssAnon", "RssShmem")) / 1024


def peak_growth(operation: Callable[[], object]) -> float:
    """Megabytes that this process grows by at the most while an operation runs, read every millisecond."""
    give_memory_back()
    before, seen, done = anonymous_megabytes(), [0.0], threading.Event()

    def watch() -> None:
        while not done.wait(0.001):
            seen[0] = max(seen[0], anonymous_megabytes())  # not a list of all: over minutes that would be megabytes

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        operation()
        seen.append(anonymous_megabytes())
    finally:
        done.set()
        watcher.join()
    return max(seen) - before


def give_memory_back() -> None:
    """Free memory that the allocator keeps: what an operation takes of it would not show."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it
    if trim is not None:
        trim(0)


def cpu_name() -> str:
    """The processor as the system names it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()

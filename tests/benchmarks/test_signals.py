"""SIGTERM to some of two ranks at random times: twice a subset always, ten times in `make slow`."""

import pytest

from tests.benchmarks.test_benchmarks import last_line, run


def figures(*arguments, timeout):
    """What the trials found; how long they took is not asked, but for the 30 s in which all must be gone."""
    done = run("benchmarks/signals.py", *arguments, timeout=timeout)
    result = last_line("signals", done)
    assert result["held"], done.stdout + done.stderr
    return result["figures"]


@pytest.mark.timeout(620)
def test_two_signals_a_subset_lose_nothing():
    assert figures("--quick", timeout=600)["trials"]["value"] == 6


@pytest.mark.slow
@pytest.mark.timeout(3620)
def test_ten_signals_a_subset_lose_nothing():
    assert figures(timeout=3600)["trials"]["value"] == 30

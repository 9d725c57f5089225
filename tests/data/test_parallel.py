import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from clipkit.data.parallel import map_shards


def double(item, bad=None):
    if item == bad:
        raise ValueError("is bad; mend it")
    if item == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if item == "odd":
        raise KeyError("k")
    time.sleep(0.02 * (item == 0))
    return item * 2, os.getpid()


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_in_order(workers):
    found = list(map_shards(double, range(9), workers=workers))
    assert [value for value, _ in found] == list(range(0, 18, 2))
    assert ({process for _, process in found} == {os.getpid()}) == (workers == 1)


@pytest.mark.parametrize("workers", [1, 2])
def test_errors_name_their_item(workers):
    results = map_shards(partial(double, bad="b.tar"), ["a.tar", "b.tar", "c.tar"], workers=workers)
    assert next(results)[0] == "a.tara.tar"
    with pytest.raises(ValueError, match=r"^b\.tar: is bad; mend it$"):
        next(results)
    with pytest.raises(RuntimeError, match="odd: KeyError: 'k'"):
        list(map_shards(double, ["odd"], workers=workers))


def test_a_worker_that_dies_is_said():
    with pytest.raises(RuntimeError, match="die: a worker died"):
        list(map_shards(double, ["die"], workers=2))


def test_items_are_taken_as_they_are_needed():
    taken = []
    results = map_shards(double, (taken.append(n) or n for n in range(1000)), workers=2)
    next(results)
    results.close()
    assert len(taken) <= 6


def alive(pid):
    try:
        return bool(Path(f"/proc/{pid}/cmdline").read_bytes())  # empty: ended, and not yet waited for
    except OSError:
        return False


def test_workers_end_with_a_parent_that_is_killed(tmp_path):
    script = tmp_path / "main.py"
    script.write_text(
        "from clipkit.data.parallel import map_shards\n"
        "import os, time\n"
        "def work(item):\n    time.sleep(0.01)\n    return os.getpid()\n"
        "if __name__ == '__main__':\n"
        "    for pid in map_shards(work, iter(int, 1), workers=2):\n        print(pid, flush=True)\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen([sys.executable, str(script)], env=environment, stdout=subprocess.PIPE, text=True)
    workers = {int(process.stdout.readline()) for _ in range(4)}
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 30
    while any(alive(pid) for pid in workers):
        assert time.monotonic() < deadline, "workers outlived their parent"
        time.sleep(0.02)


def test_a_script_without_a_guard_does_not_run_again_in_the_workers(tmp_path):
    script = tmp_path / "main.py"
    script.write_text(
        "print('script runs', flush=True)\n"
        "from clipkit.config.units import parse_count\n"
        "from clipkit.data.parallel import map_shards\n"
        "print(list(map_shards(parse_count, ['1k', '2k', '3k'] * 3, workers=2)))\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout == f"script runs\n{[1000, 2000, 3000] * 3}\n", done.stderr

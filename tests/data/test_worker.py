"""Loader processes end with the program, whoever forgot them."""

import os
import subprocess
import sys

import pytest
import torch
from torch.utils.data import DataLoader

from clipkit.data.worker import starter

FORGOTTEN = """
import gc
import torch
from torch.utils.data import DataLoader
from clipkit.data import worker

class Slow(torch.utils.data.Dataset):
    def __len__(self): return 4
    def __getitem__(self, index):
        if index:
            import time; time.sleep(600)
        return index

loader = DataLoader(Slow(), batch_size=None, num_workers=1, worker_init_fn=worker.start_worker, multiprocessing_context="fork")
iterator = iter(loader)
next(iterator)
print("read", flush=True)
"""


def test_a_forgotten_loader_does_not_hold_the_program():
    done = subprocess.run([sys.executable, "-c", FORGOTTEN], capture_output=True, text=True, timeout=120)
    assert done.stdout == "read\n"
    assert done.returncode == 0, done.stderr


class Niceness(torch.utils.data.Dataset):
    def __len__(self):
        return 1

    def __getitem__(self, index):
        return os.nice(0)


@pytest.mark.parametrize(("device", "behind"), [("cpu", True), ("cuda", False)])
def test_who_decodes_for_the_cpu_lets_it_compute_first(device, behind):
    loader = DataLoader(Niceness(), batch_size=None, num_workers=1, worker_init_fn=starter(torch.device(device)))
    assert (next(iter(loader)) > os.nice(0)) == behind

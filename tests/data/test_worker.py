"""Loader processes end with the program, whoever forgot them."""

import subprocess
import sys

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

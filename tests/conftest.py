"""Shared by all tests: an offline environment, a cache of their own, real gloo ranks, tiny models and shards."""

import contextlib
import importlib.util
import io
import json
import multiprocessing
import os
import shutil
import socket
import tarfile
import traceback
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")

TINY_MODEL = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 16, "layers": 1, "width": 32, "patch_size": 8, "head_width": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    os.environ["CLIPKIT_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def tiny_model(tmp_path):
    """An open_clip configuration of 1.6 million parameters, nearly all of them its vocabulary."""
    path = tmp_path / "tiny.json"
    path.write_text(json.dumps(TINY_MODEL))
    return path


def write_shard(path: Path, count: int, *, first: int = 0, captions=None) -> Path:
    """A real tar of real PNGs: colour squares with a caption that names their number."""
    with tarfile.open(path, "w") as tar:
        for i in range(first, first + count):
            rng = np.random.default_rng(i)
            pixels = np.full((16, 16, 3), rng.integers(0, 256, 3), dtype=np.uint8)
            buffer = io.BytesIO()
            Image.fromarray(pixels).save(buffer, "PNG")
            caption = captions[i - first] if captions else f"square number {i}"
            for name, data in ((f"{i:05d}.png", buffer.getvalue()), (f"{i:05d}.txt", caption.encode())):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture
def shards(tmp_path):
    """Two shards of 40 and 24 samples."""
    folder = tmp_path / "shards"
    folder.mkdir()
    write_shard(folder / "00000.tar", 40)
    write_shard(folder / "00001.tar", 24, first=40)
    return folder


class Ranks:
    """Real processes in one gloo group, started once and given many jobs.

    Args:
        world: How many.
    """

    def __init__(self, world: int) -> None:
        context = multiprocessing.get_context("forkserver")  # torch is imported once for all of them
        context.set_forkserver_preload(["torch", "torch.distributed"])
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.pipes, self.processes = [], []
        for rank in range(world):
            here, there = context.Pipe()
            process = context.Process(target=_serve, args=(there, rank, world, port), daemon=True)
            process.start()
            self.pipes.append(here)
            self.processes.append(process)

    def run(self, file, function, *args):
        """Call ``function`` of ``file`` on every rank; the results by rank, or the first failure."""
        for pipe in self.pipes:
            pipe.send((str(file), function, args))
        results = [pipe.recv() for pipe in self.pipes]
        for rank, (ok, value) in enumerate(results):
            assert ok, f"rank {rank} failed:\n{value}"
        return [value for _, value in results]

    def close(self):
        """End the processes."""
        for pipe in self.pipes:
            with contextlib.suppress(BrokenPipeError):  # a rank that died was told by the test that it died in
                pipe.send(None)
        for process in self.processes:
            process.join(10)
            if process.is_alive():
                process.kill()


def _serve(pipe, rank, world, port):
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=world)
    while (job := pipe.recv()) is not None:
        file, function, args = job
        try:
            spec = importlib.util.spec_from_file_location("rank_job", file)
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            pipe.send((True, getattr(module, function)(*args)))
        except BaseException:
            pipe.send((False, traceback.format_exc()))
    dist.destroy_process_group()


@pytest.fixture(scope="session")
def two_ranks():
    """Two gloo ranks, one start for the whole session."""
    ranks = Ranks(2)
    yield ranks
    ranks.close()


@pytest.fixture(scope="session")
def three_ranks():
    """Three gloo ranks."""
    ranks = Ranks(3)
    yield ranks
    ranks.close()


@pytest.fixture(scope="module")
def forked():
    """One warm process that forks the ranks of whole runs."""
    from tests.forked_ranks import ForkedRanks

    ranks = ForkedRanks()
    yield ranks
    ranks.close()


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium that keeps its console and its requests."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("chromium or chromedriver is not installed (Debian: chromium, chromium-driver); see .ci/apt.txt")
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--window-size=1100,900",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    session = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield session
    session.quit()

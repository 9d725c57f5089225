"""What `chaos.py` trains: shards with a few broken pictures, a configuration, a server that fails when told to; how a run is read."""

from __future__ import annotations

import io
import json
import os
import tarfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

SHARDS, SAMPLES, BATCH, EVERY = 4, 99, 16, 3
EPOCH = SHARDS * SAMPLES
"""The plan takes them all, so an epoch ends within a batch; `chaos.py` looks it up in what the run says."""
BROKEN = (5, 31, 77)
"""Samples of each shard whose picture is cut short: their substitutes must be the same in every run."""
TOWERS = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 16, "layers": 1, "width": 32, "patch_size": 8, "head_width": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
TIMED = ("train/samples_per_second", "train/data_wait", "train/rank_seconds/")


def make_shards(folder: Path) -> None:
    """Real tars of real PNGs, and the list of their sizes for whoever fetches them."""
    folder.mkdir()
    for shard in range(SHARDS):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as tar:
            for sample in range(SAMPLES):
                number = shard * SAMPLES + sample
                pixels = np.random.default_rng(number).integers(0, 256, (16, 16, 3)).astype(np.uint8)
                buffer = io.BytesIO()
                Image.fromarray(pixels).save(buffer, "PNG")
                image = buffer.getvalue()[: 200 if sample in BROKEN else None]
                for name, data in ((f"{number:05d}.png", image), (f"{number:05d}.txt", f"noise {number}".encode())):
                    info = tarfile.TarInfo(name)
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    (folder / "sizes.json").write_text(json.dumps({f"{shard:05d}.tar": SAMPLES for shard in range(SHARDS)}))


def write_config(folder: Path, shards: str, steps: int) -> Path:
    """A run that logs and traces every step and saves every ``EVERY``."""
    (folder / "towers.json").write_text(json.dumps(TOWERS))
    config: dict[str, Any] = {
        "model": str(folder / "towers.json"),
        "seed": 5,
        "data": {
            "train": {"noise": {"shards": f"{shards}/{{00000..{SHARDS - 1:05d}}}.tar"}},
            "batch_size": BATCH,
            "workers": 0,
            "trace": True,
            "bad_samples": 0.1,
            "cache": str(folder / "cache"),
        },
        "loss": "infonce",
        "optim": {"lr": 1e-3, "warmup": "10 steps", "clip_norm": 1.0},
        "trainer": {"length": f"{steps} steps", "devices": 2, "accelerator": "cpu"},
        "checkpoint": {"every": f"{EVERY} steps", "keep_last": 2},
        "logging": {"every": "1 steps"},
    }
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def edges(first: int, size: int) -> bool:
    """Whether an epoch of the plan ends within the positions from ``first`` on."""
    return first >= 0 and first // EPOCH != (first + size) // EPOCH


class Progress:
    """When the steps of a launch were seen to end, read from the run's own record.

    Args:
        folder: The run folder.
    """

    def __init__(self, folder: Path) -> None:
        self.record = folder / "metrics.jsonl"
        self.times: dict[int, float] = {}
        self._seen = self._mark()
        self._old = self._seen[0]

    def _mark(self) -> tuple[int, int]:
        try:
            found = self.record.stat()
        except FileNotFoundError:
            return 0, 0
        return found.st_ino, found.st_size

    def look(self) -> int:
        """Steps of this launch so far: the record is cut back, into a new file, when it begins."""
        mark = self._mark()
        if mark == self._seen or mark[0] == self._old:
            return len(self.times)
        fresh, self._seen = self._seen[0] == mark[0], mark
        with self.record.open("rb") as file:
            file.seek(max(0, mark[1] - 4096))
            lines = file.read().split(b"\n")
        if (fresh and len(lines) > 1) or (self._old == 0 and len(lines) > 1):
            self.times.setdefault(int(json.loads(lines[-2])["step"]), time.time())
        return len(self.times)


def figures_of(folder: Path) -> dict[int, dict[str, str]]:
    """Each step's figures but those of clocks, floats as ``hex``."""
    found = {}
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        found[int(record["step"])] = {
            key: value.hex() if isinstance(value, float) else str(value)
            for key, value in record.items()
            if not key.startswith(TIMED)
        }
    return found


def keys_of(folder: Path, rank: int) -> dict[int, list[str]]:
    """Each batch's keys by its position."""
    lines = (folder / f"samples.rank{rank}.jsonl").read_text().splitlines()
    return {found["position"]: found["keys"] for found in map(json.loads, lines)}


def account_of(checkpoint: Path) -> dict[str, Any]:
    """Where a checkpoint stands in the data, and what was bad on the way, by source, epoch and cause."""
    data = json.loads((checkpoint / "state.json").read_text())["lightning"]["ShardDataModule"]
    return {name: data[name] for name in ("position", "bad", "noted", "earlier")}


class Web:
    """Serves a folder on loopback; answers 503 as often as told.

    Args:
        folder: What it serves.
    """

    def __init__(self, folder: Path) -> None:
        self.failing, self.failed = 0, 0
        web = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                path = folder / os.path.basename(self.path)
                if web.failing and path.suffix == ".tar":
                    web.failing, web.failed = web.failing - 1, web.failed + 1
                    self.send_error(503)
                elif not path.is_file():
                    self.send_error(404)
                else:
                    body = path.read_bytes()
                    self.send_response(200)
                    self.send_header("Content-Length", str(len(body)))
                    self.send_header("ETag", f'"{path.name}-{len(body)}"')
                    self.end_headers()
                    self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"

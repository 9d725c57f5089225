"""``clipkit demo``: pack, fit, prove, evaluate and export on the embedded data, offline, and say what came out."""

from __future__ import annotations

import io
import json
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from clipkit import api
from clipkit.callbacks.metrics import RECORD
from clipkit.callbacks.say import say
from clipkit.config import RunConfig, load_config, write_config
from clipkit.data.embedded import HELD_OUT_STYLE, TRAIN_STYLES, materialise
from clipkit.demo.gallery import draw_gallery
from clipkit.demo.pixel_baseline import figures as baselines
from clipkit.demo.proofs import Proofs
from clipkit.demo.table import print_summary
from clipkit.encoder import Encoder
from clipkit.evaluation.datasets import open_retrieval
from clipkit.evaluation.places import local_place
from clipkit.run_folder import CONFIG

MARKER = "demo.json"
TASKS = ("style_transfer", "unseen", "subgroup")
GALLERY = 8  # texts shown


def tell(out: Path, *, quick: bool) -> int:
    """Run the demo into ``out``, which is made anew and is itself the run folder.

    Returns:
        The exit code: 0, or 75 if a signal stopped it.

    Raises:
        ValueError: If ``out`` holds something that is no demo.
    """
    started = time.monotonic()
    _make_room(out)
    say(f"clipkit demo: everything happens on this machine and is left in {out}")
    config = _config(out, quick=quick)
    sets = materialise(out / "shards")
    say(
        f"packed {len(TRAIN_STYLES)} drawing styles as WebDataset shards; {HELD_OUT_STYLE} and a tenth of the concepts are held out"
    )
    with Proofs(config, out) as proofs:
        finished = api.fit(config)
        if finished.stopped:
            say("the demo was stopped; run it again, it starts anew")
            return finished.code
        proven = proofs.finish()
    (out / MARKER).write_text(json.dumps({"finished": True}))
    encoder = api.load(out)
    scores = _scores(encoder, out / "shards")
    say("exporting, and comparing what open_clip loads from the files with what was trained")
    report = api.export(encoder, "open_clip", out / "export")
    say("proof: " + "\nproof: ".join(report.lines()))
    proven["export"] = {
        "held": report.held,
        "largest_difference": max(check.largest_difference for check in report.checks),
    }
    _gallery(encoder, sets["retrieval"], out / "retrieval.png")
    summary = scores | {
        "samples_per_second": _samples_per_second(out / RECORD),
        "steps": finished.steps,
        "seconds": time.monotonic() - started,
        "proofs": proven,
    }
    (out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    print_summary(summary, out)
    return 0


def _make_room(out: Path) -> None:
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / MARKER).is_file())):
        raise ValueError(
            f"{out} exists and is no demo's folder ({MARKER} is missing); nothing was touched. Name another with --out DIR"
        )
    shutil.rmtree(out, ignore_errors=True)


def _config(out: Path, *, quick: bool) -> RunConfig:
    config = load_config("demo-quick" if quick else "demo", {"run": str(out), "data.cache": str(out / "shards")})
    out.mkdir(parents=True)
    write_config(config, out / CONFIG)
    (out / MARKER).write_text(json.dumps({"finished": False}))
    return config


def _scores(encoder: Encoder, cache: Path) -> dict[str, Any]:
    found: dict[str, Any] = baselines()
    for name in TASKS:
        figures = api.evaluate(encoder, data=local_place(f"embedded:{name}", cache), task="zero_shot")
        wanted = ("acc1",) if name == "subgroup" else ("acc1", "acc5")
        found[name] = {key: figures[key] for key in wanted} | found[name]
    found["retrieval"] = api.evaluate(encoder, data=local_place("embedded:retrieval", cache), task="retrieval")
    return found


def _gallery(encoder: Encoder, place: Path, out: Path) -> None:
    data = open_retrieval(place)
    pictures = [Image.open(io.BytesIO(image.read())).convert("RGB") for image in data.images]
    captions = [texts[0] for texts in data.captions]
    texts = list(range(0, len(captions), max(1, len(captions) // GALLERY)))[:GALLERY]
    similarity = encoder.similarity(encoder.encode_text([captions[i] for i in texts]), encoder.encode_image(pictures))
    rows = []
    for row, text in enumerate(texts):
        nearest = torch.topk(similarity[row], 5).indices.tolist()
        rows.append((captions[text], [(pictures[i], i == text) for i in nearest]))
    draw_gallery(rows, out, title=f"{len(pictures):,} pictures in a style that was never trained on ({HELD_OUT_STYLE})")


def _samples_per_second(record: Path) -> float:
    rates = [json.loads(line).get("train/samples_per_second") for line in record.read_text().splitlines()]
    return float(torch.tensor([rate for rate in rates if rate]).median())

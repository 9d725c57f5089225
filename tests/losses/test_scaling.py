"""The page on scaling: its formula against what real gloo ranks send, multiply and hold, and its tables against the formula."""

import importlib.util
import re
from pathlib import Path

import pytest

from clipkit.losses.cost import loss_cost
from tests.conftest import Ranks

JOBS = Path(__file__).with_name("scaling_jobs.py")
PAGE = Path(__file__).parents[2] / "docs" / "scaling.md"
PAIRS, WIDTH, TILE = 768, 64, 96
WAYS = [("infonce", "gather"), ("infonce", "ring"), ("sigmoid", "gather"), ("sigmoid", "ring")]


def agrees(found, world, kind, exchange):
    want = loss_cost(PAIRS, world, WIDTH, kind=kind, exchange=exchange, tile=TILE)
    # the gradients of rows and columns are no part of it; those of the columns are cut out of the gathered ones where gloo gathers
    gradients = (1 if world > 1 and exchange == "gather" else 2) * PAIRS // world * WIDTH * 4
    for sent, flops, held in found:
        for name in ("gather", "scatter", "reduce", "ring"):
            assert sent.get(name, 0) == getattr(want, name), name
        assert flops == want.flops
        assert held - gradients == pytest.approx(want.memory, rel=0.05)


@pytest.mark.parametrize(("kind", "exchange"), WAYS)
def test_two_ranks_send_multiply_and_hold_what_the_formula_says(two_ranks, kind, exchange):
    agrees(two_ranks.run(JOBS, "cost", kind, exchange, PAIRS, WIDTH, TILE), 2, kind, exchange)


def test_four_ranks_too():
    ranks = Ranks(4)
    try:
        for kind, exchange in WAYS:
            agrees(ranks.run(JOBS, "cost", kind, exchange, PAIRS, WIDTH, TILE), 4, kind, exchange)
    finally:
        ranks.close()


@pytest.mark.parametrize("kind", ["infonce", "sigmoid"])
def test_one_process_sends_nothing(kind):
    spec = importlib.util.spec_from_file_location("scaling_jobs", JOBS)
    jobs = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(jobs)
    agrees([jobs.cost(kind, "gather", PAIRS, WIDTH, TILE)], 1, kind, "gather")


def of_size(count, base=1024, units=("B", "KiB", "MiB", "GiB", "TiB")):
    """Three digits and a unit.

    >>> of_size(134217728), of_size(2.7e12, 1000, ("", "K", "M", "G", "T"))
    ('128 MiB', '2.7 T')
    """
    for unit in units:
        if count < 999.5 or unit == units[-1]:
            return f"{count:.3g} {unit}".strip()
        count /= base
    raise AssertionError


def flops(count):
    return of_size(count, 1000, ("", "K", "M", "G", "T", "P"))


def loss_row(pairs, ranks, width=512):
    gather, ring = (loss_cost(pairs, ranks, width, exchange=way) for way in ("gather", "ring"))
    dense = 4 * pairs // ranks * pairs * 4  # two matrices of logits and their gradients
    sizes = [gather.gather, gather.scatter, gather.reduce, gather.sent, ring.sent]
    return [
        f"{pairs:,}",
        f"{ranks:,}",
        *map(of_size, sizes),
        flops(gather.flops),
        *map(of_size, (gather.memory, ring.memory, dense)),
    ]


def sizes():
    for pairs in (4096, 32768, 131072, 1048576):
        for ranks in (1, 8, 64, 256, 1024):
            if pairs // ranks >= 64:
                yield pairs, ranks


def rows_of(text, title):
    """The cells of the table under a heading, without its head."""
    part = re.split(r"^## ", text, flags=re.M)
    lines = next(p for p in part if p.startswith(title)).splitlines()
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    return table[2:]


def test_the_table_of_the_page_is_the_formula_s():
    assert rows_of(PAGE.read_text(), "The loss") == [loss_row(*size) for size in sizes()]


MODELS = {"ViT-B-32": (151.28, 14.78, 512), "ViT-B-16": (149.62, 41.09, 512), "ViT-L-14": (427.62, 175.33, 768)}
"""Millions of parameters, GFLOP of a pair's forward pass and embedding width (open_clip's docs/model_profile.csv)."""


def tower_row(name):
    millions, forward, width = MODELS[name]
    gradient = millions * 1e6 * 4
    pair = 3 * forward * 1e9
    shares = [loss_cost(pairs, 1, width).flops / pairs / pair for pairs in (32768, 1048576)]
    sent = [2 * (ranks - 1) / ranks * gradient for ranks in (8, 1024)]
    loss = [loss_cost(32768, 8, width).sent, loss_cost(1048576, 1024, width).sent]
    sizes = map(of_size, (gradient, *sent, *loss))
    return [name, f"{millions:.0f} M", *sizes, flops(pair), *(f"{100 * share:.2g} %" for share in shares)]


def test_the_towers_beside_it():
    assert rows_of(PAGE.read_text(), "The towers") == [tower_row(name) for name in MODELS]

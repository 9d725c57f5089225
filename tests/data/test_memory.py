"""A loader process that lives for many epochs stays as small as it was after a few."""

import pytest

from clipkit.data.source import Source

from .test_datamodule import module

EPOCH, KIB = 64, 1024


def memory(pid):
    """Bytes that the process alone holds, and what it shares in memory: RssAnon + RssShmem."""
    with open(f"/proc/{pid}/status") as status:
        lines = dict(line.split(":", 1) for line in status)
    return sum(int(lines[name].split()[0]) * KIB for name in ("RssAnon", "RssShmem"))


def growth(make_shards, epochs, few):
    data = module(Source("pairs", make_shards([40, 24])), workers=1, batch_size=16, length=EPOCH * epochs, cache=None)
    iterator = iter(data.train_dataloader())
    early = None
    for batch in iterator:
        data.advance(batch)
        if data.position == few * EPOCH:
            early = memory(iterator._workers[0].pid)
        if data.position == (epochs - 2) * EPOCH:  # the worker is still there
            late = memory(iterator._workers[0].pid)
    return late - early


def test_a_worker_does_not_grow(make_shards):
    assert growth(make_shards, epochs=150, few=30) < 3 << 20


@pytest.mark.slow
def test_a_worker_does_not_grow_over_thousands_of_epochs(make_shards):
    assert growth(make_shards, epochs=3000, few=100) < 4 << 20

"""Indexing and packing on a real Ray cluster of this machine, started once: the same bytes as in this process."""

import os

import numpy as np
import pytest
from PIL import Image

from clipkit.cli.main import run
from clipkit.config.units import parse_count
from clipkit.data.index import read_sidecar, sidecar_path
from clipkit.data.indexing import index_shards
from clipkit.data.pack import PackOptions, pack
from clipkit.data.parallel import map_shards
from clipkit.data.source import expand_shards

from .conftest import write_tar

ray = pytest.importorskip("ray", reason="needs the extra ray")


@pytest.fixture(scope="module")
def cluster():
    """A cluster of two cores that this process is connected to, as ``--ray auto`` finds it."""
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield "auto"
    ray.shutdown()


def content(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_results_and_errors_come_in_order_from_other_processes(cluster):
    results = map_shards(parse_count, ["1k", "2k", "3k", "many", "5k"], workers=1, ray=cluster)
    assert [next(results) for _ in range(3)] == [1000, 2000, 3000]
    with pytest.raises(ValueError, match="many"):
        next(results)
    processes = set(map_shards(os.readlink, ["/proc/self"] * 4, workers=1, ray=cluster))
    assert str(os.getpid()) not in processes


def test_the_index_of_a_cluster_is_that_of_a_process(cluster, tmp_path, capsys):
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        for number in range(6):
            path = write_tar(tmp_path / name / f"{number}.tar", [("a.jpg", b"1"), ("a.txt", b"x" * number)])
            os.utime(path, ns=(1, 1))
    index_shards(expand_shards(str(tmp_path / "here")), None)
    assert run(["data", "index", str(tmp_path / "there"), "--ray", cluster]) == 0
    assert "indexed 6 shards, 0 were indexed already: 6 samples in 6 shards" in capsys.readouterr().out
    assert content(tmp_path / "there") == content(tmp_path / "here")
    bad = tmp_path / "there" / "2.tar"
    bad.write_bytes(bad.read_bytes()[:1024])
    assert run(["data", "index", str(tmp_path / "there"), "--ray", cluster]) == 2
    assert f"{bad}: the tar ends without its end marker at byte 1024" in capsys.readouterr().err
    assert len(read_sidecar(sidecar_path(tmp_path / "there" / "3.tar"))) == 1


def test_a_pack_of_a_cluster_is_that_of_a_process(cluster, tmp_path):
    (tmp_path / "images").mkdir()
    for number in range(70):
        pixels = np.full((20, 24, 3), number, np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{number}.png")
        (tmp_path / "images" / f"{number}.txt").write_text(f"caption {number}")
    options = PackOptions(shard_size=30, split=("val", 0.2), resize=16)
    there = pack(tmp_path / "images", tmp_path / "there", options, ray=cluster)
    here = pack(tmp_path / "images", tmp_path / "here", options)
    assert there.samples == here.samples == 70
    assert content(tmp_path / "there") == content(tmp_path / "here")

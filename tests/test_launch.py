import pytest

from clipkit import distributed
from clipkit.config import load_config
from clipkit.launch import ranks_wanted

LAUNCHER = {"LOCAL_RANK": "0", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(
        'model: ViT-B-32\ndata: {train: {a: {shards: "a.tar"}}, batch_size: 12}\nloss: infonce\ntrainer: {length: 1 epochs}\n'
    )

    def load(*overrides):
        return load_config(path, overrides)

    return load


@pytest.fixture
def launched(monkeypatch):
    def launch(world, local):
        for name, value in (LAUNCHER | {"WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(local)}).items():
            monkeypatch.setenv(name, value)

    return launch


def test_alone_the_configuration_decides(config):
    assert ranks_wanted(config(), 4) == (4, 1)
    assert ranks_wanted(config("trainer.devices=3"), 4) == (3, 1)
    with pytest.raises(ValueError, match="torchrun --nnodes 2"):
        ranks_wanted(config("trainer.nodes=2"), 4)


def test_a_launcher_decides_and_what_disagrees_is_refused(config, launched):
    launched(world=6, local=3)
    assert ranks_wanted(config(), 8) == (3, 2)
    assert ranks_wanted(config("trainer.devices=3", "trainer.nodes=2"), 8) == (3, 2)
    with pytest.raises(ValueError, match="started 3 ranks a node, but trainer.devices=2"):
        ranks_wanted(config("trainer.devices=2"), 8)
    with pytest.raises(ValueError, match="has 2 nodes, but trainer.nodes=3"):
        ranks_wanted(config("trainer.nodes=3"), 8)


def test_without_a_group_there_is_one_rank():
    assert (distributed.rank(), distributed.world_size(), distributed.launched()) == (0, 1, False)
    assert distributed.gather_json({"a": 1}) == [{"a": 1}]
    with pytest.raises(ValueError, match="taken"):
        distributed.on_rank_0(lambda: (_ for _ in ()).throw(ValueError("taken")))

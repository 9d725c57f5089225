"""The guard in whole runs of several real ranks, with the exit codes of real processes: going back together, replicas that drift apart."""

import json
import shutil

import pytest

import clipkit
from clipkit.checkpoint import steps, verify
from tests.test_batch_statistics import TIMM
from tests.test_rollback import rewrite
from tests.test_training import STEPS, final_hash, record, write_config

GUARD = ("guard.margin=1", "logging.every=3 steps", "guard.replicas_every=1")


@pytest.fixture
def config(tmp_path, tiny_model, shards):
    return write_config(tmp_path, tiny_model, shards, trainer={"length": f"{STEPS} steps", "accelerator": "cpu"})


def positions(run, rank):
    lines = (run / f"samples.rank{rank}.jsonl").read_text().splitlines()
    return [json.loads(line)["position"] for line in lines]


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_ranks_roll_back_together_and_end_as_a_resumed_run(forked, config, tmp_path, tiny_model, strategy):
    if strategy == "ddp":  # each rank's batch norms have statistics of their own after a step, which is no alarm
        tiny_model.write_text(json.dumps(TIMM))
    run, other, log = tmp_path / "run", tmp_path / "other", tmp_path / "log"
    options = [*GUARD, f"trainer.strategy={strategy}", "--plugin", "tests.plugin_spoilt"]
    assert forked.fit(config, f"run={run}", *options, log=log) == [0, 0], log.read_text()
    said = log.read_text()
    assert said.count("skipped for a gradient that is not finite (the first: step 6)") == 1
    assert said.count("roll-back 1 of 2") == 1
    assert said.count("steps 5 to 9 are left out") == 1
    assert "5 of 12 steps reached no weights" in said
    shutil.copytree(run, other)
    for step in (8, 12):
        shutil.rmtree(other / "checkpoints" / str(step))
    rewrite(other / "checkpoints" / "4", left_out=[[5, 9]], rollbacks=1)
    assert forked.fit(config, f"run={other}", *options, log=log) == [0, 0], log.read_text()
    assert final_hash(run) == final_hash(other)
    assert clipkit.load(run).encode_text(["a square"]).isfinite().all()
    for folder in (run, other):
        assert [line["step"] for line in record(folder)] == [3, 6, 9, 12]
        assert [positions(folder, rank) for rank in (0, 1)] == [[16 * step for step in range(STEPS)]] * 2
    assert all(one["train/loss"] == two["train/loss"] for one, two in zip(record(run), record(other), strict=True))


@pytest.mark.parametrize(("world", "every", "at"), [(2, 500, 8), (3, 3, 6)], ids=["before a save", "by the clock"])
def test_a_flipped_bit_of_one_rank_ends_the_run_and_is_never_saved(forked, config, tmp_path, world, every, at):
    run, log = tmp_path / "run", tmp_path / "log"
    options = [f"guard.replicas_every={every}", "data.batch_size=12", "--plugin", "tests.plugin_flipped"]
    assert forked.fit(config, f"run={run}", *options, log=log, world=world) == [1] * world, log.read_text()
    who = {2: "ranks 0, 1 hold other bits (no majority)", 3: "rank 1 holds other bits than the 2 ranks that agree"}
    said = log.read_text()
    assert f"error: at step {at} {who[world]}, the first in scales.image_text.log_scale" in said
    assert "they were equal at step 4" in said
    assert "Traceback" not in said
    assert [path.name for path in steps(run / "checkpoints")] == ["4"]
    assert verify(run / "checkpoints" / "4") is None

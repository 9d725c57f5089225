"""A signal to some of two real ranks in the moments that are hard to meet by chance: inside a save or an evaluation, and in the last steps."""

import json

import pytest

from clipkit.checkpoint import newest, verify
from tests.test_training import STEPS, final_hash, keys, record, write_config


@pytest.fixture
def config(tmp_path, tiny_model, shards):
    return write_config(tmp_path, tiny_model, shards, trainer={"length": f"{STEPS} steps", "accelerator": "cpu"})


@pytest.mark.timeout(120)
@pytest.mark.parametrize(("to", "background"), [([1], False), ([0, 1], False), ([0], True)])
def test_a_signal_inside_a_save_stops_both_ranks_after_it_and_loses_nothing(forked, config, tmp_path, to, background):
    run, log = tmp_path / "run", tmp_path / "log"
    options = [f"run={run}", f"checkpoint.background={background}"]
    codes = forked.fit(config, *options, log=log, at={"save": 4, "to": to})
    assert codes == [75, 75], log.read_text()
    stopped = json.loads((run / "stopped.json").read_text())
    assert (stopped["reason"], stopped["code"]) == ("SIGTERM", 75)
    at = stopped["step"]
    assert at in ((5, 6, 7) if background else (6,))  # known to all at the end of the second step that began after it
    assert at == len(record(run)) == len(keys(run, 0)) == len(keys(run, 1)), "a step that was trained is not lost"
    assert newest(run / "checkpoints") == (run / "checkpoints" / str(at), [])
    assert verify(run / "checkpoints" / "4") is None, "what was being written is whole"
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == sorted(["4", str(at)])
    assert forked.fit(config, *options, log=log) == [0, 0], log.read_text()
    assert [line["step"] for line in record(run)] == list(range(1, STEPS + 1))
    if background:
        whole = tmp_path / "whole"
        assert forked.fit(config, f"run={whole}", log=log) == [0, 0]
        assert final_hash(run) == final_hash(whole)


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    "moment", [{"train": STEPS - 1}, {"train": STEPS}, {"save": STEPS}], ids=["before", "in", "saving"]
)
def test_a_signal_in_the_last_steps_changes_nothing(forked, config, tmp_path, moment):
    run, log = tmp_path / "run", tmp_path / "log"
    assert forked.fit(config, f"run={run}", log=log, at=moment | {"to": [1]}) == [0, 0], log.read_text()
    assert not (run / "stopped.json").exists()
    assert len(record(run)) == len(keys(run, 0)) == len(keys(run, 1)) == STEPS
    assert newest(run / "checkpoints") == (run / "checkpoints" / str(STEPS), [])


@pytest.mark.timeout(120)
@pytest.mark.parametrize(("at", "to"), [(4, [1]), (STEPS, [0])], ids=["in the middle", "at the last step"])
def test_a_signal_gives_up_an_evaluation_and_the_next_run_makes_it_up(forked, tmp_path, tiny_model, shards, at, to):
    source = {"squares": {"shards": f"{shards}/*.tar"}}
    config = write_config(
        tmp_path,
        tiny_model,
        shards,
        data={"train": source, "val": source, "batch_size": 16, "workers": 0},
        evaluate={"every": f"{at} steps"},
        trainer={"length": f"{STEPS} steps", "accelerator": "cpu"},
    )
    run, log = tmp_path / "run", tmp_path / "log"
    assert forked.fit(config, f"run={run}", log=log, at={"evaluate": True, "to": to}) == [75, 75], log.read_text()
    assert json.loads((run / "stopped.json").read_text())["step"] == at
    assert newest(run / "checkpoints")[0].name == str(at)
    assert not any("val/loss" in line for line in record(run))
    assert forked.fit(config, f"run={run}", log=log) == [0, 0], log.read_text()
    measured = list(range(at, STEPS + 1, at))
    assert [line["step"] for line in record(run) if "val/loss" in line] == measured
    assert not (run / "stopped.json").exists()
    assert newest(run / "checkpoints") == (run / "checkpoints" / str(STEPS), [])
    if at == STEPS:
        assert forked.fit(config, f"run={run}", log=log) == [0, 0], log.read_text()
        assert "nothing to do" in log.read_text()
        assert [line["step"] for line in record(run) if "val/loss" in line] == measured

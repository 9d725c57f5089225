import json
import os
import signal
import subprocess
import sys

import pytest

import clipkit
from clipkit import distributed, launch
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


def test_the_first_failure_keeps_its_word(launched, monkeypatch, tmp_path):
    launched(world=2, local=2)
    outcome = tmp_path / "outcome.json"
    assert not launch.leave_word(0, "")  # nobody waits for it
    monkeypatch.setenv(launch.OUTCOME, str(outcome))
    monkeypatch.setenv("RANK", "1")
    assert launch.leave_word(0, "")
    assert not outcome.exists(), "rank 0 speaks for a run that went well"
    launch.leave_word(2, "error: the cause")
    monkeypatch.setenv("RANK", "0")
    launch.leave_word(1, "connection closed by peer")
    assert json.loads(outcome.read_text()) == {"code": 2, "message": "error: the cause"}


@pytest.mark.parametrize(("code", "raised"), [(2, ValueError), (130, KeyboardInterrupt), (1, launch.RanksFailed)])
def test_the_code_of_ranks_is_the_code_of_the_caller(config, monkeypatch, code, raised):
    monkeypatch.setattr(launch, "start_ranks", lambda *_, **__: (code, "words"))
    with pytest.raises(raised):
        clipkit.fit(config("trainer.devices=2", "trainer.accelerator=cpu"))


def test_torchrun_is_asked_to_stop_once(monkeypatch):
    sent = []

    class Process:
        pid = 0

        def send_signal(self, number):
            sent.append(number)

        def wait(self):
            for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT):
                os.kill(os.getpid(), number)
            return 0

    assert launch._wait(Process()) == (0, True)
    assert sent == [signal.SIGUSR1]


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone ends a process with its parent")
def test_a_rank_ends_with_torchrun():
    child = "from clipkit.processes import die_with_parent; import sys, time; die_with_parent(); print('up', flush=True); time.sleep(60)"
    parent = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', sys.argv[1]], start_new_session=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", parent, child], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"up\n"
    process.kill()
    assert process.stdout.read() == b"", "the pipe closes when the child, which holds it too, is gone"
    process.wait()


def test_tasks_of_srun_are_ranks_of_one_training():
    step = {
        "SLURM_STEP_NUM_TASKS": "16",
        "SLURM_STEP_NUM_NODES": "2",
        "SLURM_STEP_NODELIST": "gpu[017-018]",
        "SLURM_PROCID": "9",
        "SLURM_LOCALID": "1",
        "SLURM_JOB_ID": "123456",
    }
    environment = dict(step)
    distributed.adopt_srun(environment)
    got = {name: environment[name] for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR")}
    assert got == {"RANK": "9", "LOCAL_RANK": "1", "WORLD_SIZE": "16", "LOCAL_WORLD_SIZE": "8", "MASTER_ADDR": "gpu017"}
    assert 15000 <= int(environment["MASTER_PORT"]) < 35000
    for untouched in ({"SLURM_NTASKS": "16", "SLURM_PROCID": "0"}, step | {"WORLD_SIZE": "4"}, {}):
        environment = dict(untouched)
        distributed.adopt_srun(environment)
        assert environment == untouched


def test_ranks_leave_no_temporary_files(monkeypatch, tmp_path):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    assert launch.run_again(["config", "list"], ranks=1) == (0, "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("ended", "code"), [((1, True), 75), ((1, False), 1), ((0, True), 0), ((130, True), 130)])
def test_ranks_that_were_asked_to_stop_before_they_listened_count_as_stopped(monkeypatch, ended, code):
    monkeypatch.setattr(launch, "_wait", lambda process: process.kill() or ended)
    assert launch.run_again(["config", "list"], ranks=2) == (code, "")

"""Real signals to real processes are sent in test_training.py; here is the arithmetic of agreeing."""

import os
import signal
import time
from types import SimpleNamespace

import pytest

from clipkit.callbacks.agreement import Agreement, StopAgreed


def fake_trainer():
    loop = SimpleNamespace(_broadcast_sigterm_tensor=lambda: 1 / 0)
    connector = SimpleNamespace(register_signal_handlers=lambda: 1 / 0)
    return SimpleNamespace(fit_loop=SimpleNamespace(epoch_loop=loop), _signal_connector=connector, should_stop=False)


def step(agreement, trainer):
    agreement.on_train_batch_end(trainer, None, None, None, 0)


def test_a_signal_raises_a_flag_that_stops_at_the_end_of_the_step():
    agreement, trainer = Agreement(), fake_trainer()
    before = signal.getsignal(signal.SIGTERM)
    agreement.setup(trainer, None, "fit")
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor()  # Lightning's own is gone
    step(agreement, trainer)
    assert not trainer.should_stop
    os.kill(os.getpid(), signal.SIGTERM)
    assert not trainer.should_stop
    step(agreement, trainer)
    assert trainer.should_stop
    assert agreement.stopped == "SIGTERM"
    agreement.teardown(trainer, None, "fit")
    os.kill(os.getpid(), signal.SIGTERM)  # the last word is not written yet
    agreement.release()
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_clock_rises_once_an_interval_and_is_taken_once():
    agreement, trainer = Agreement({"checkpoint": 0.05}), fake_trainer()
    agreement.setup(trainer, None, "fit")
    agreement.on_train_start(trainer, None)
    step(agreement, trainer)
    assert not agreement.take("checkpoint")
    time.sleep(0.06)
    step(agreement, trainer)
    assert agreement.take("checkpoint")
    assert not agreement.take("checkpoint")
    step(agreement, trainer)
    assert not agreement.take("checkpoint")
    agreement.release()


def test_between_two_steps_a_signal_gives_up_what_is_under_way_and_a_clock_keeps():
    agreement, trainer = Agreement({"checkpoint": 0.0}), fake_trainer()
    agreement.setup(trainer, None, "fit")
    agreement.on_train_start(trainer, None)
    agreement._ring()
    agreement.poll()
    step(agreement, trainer)
    assert agreement.take("checkpoint")
    os.kill(os.getpid(), signal.SIGTERM)
    for _ in range(2):  # whoever asks once more hears it once more
        with pytest.raises(StopAgreed):
            agreement.poll()
    agreement.release()


def test_one_process_without_a_step_to_finish_stops_at_once():
    agreement = Agreement()
    agreement.listen()
    with pytest.raises(StopAgreed), agreement.at_once():
        os.kill(os.getpid(), signal.SIGTERM)
    assert agreement.stopped == "SIGTERM"
    with pytest.raises(StopAgreed), agreement.at_once():
        raise AssertionError("a signal that came before counts too")
    agreement.release()


def test_a_signal_while_the_run_is_put_together_stops_it_before_its_first_step():
    agreement, trainer = Agreement(), fake_trainer()
    agreement.listen()
    os.kill(os.getpid(), signal.SIGUSR1)
    agreement.setup(trainer, None, "fit")
    assert not trainer.should_stop
    agreement.on_train_start(trainer, None)
    assert trainer.should_stop
    assert agreement.stopped == "SIGUSR1"
    agreement.release()
    assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL

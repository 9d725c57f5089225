"""Real signals to real processes are sent in test_training.py; here is the arithmetic of agreeing."""

import os
import signal
import time
from types import SimpleNamespace

from clipkit.callbacks.agreement import Agreement


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
    assert agreement.signal_name == "SIGTERM"
    agreement.teardown(trainer, None, "fit")
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
    agreement.teardown(trainer, None, "fit")


def test_a_signal_while_the_run_is_put_together_stops_it_at_its_first_step():
    agreement, trainer = Agreement(), fake_trainer()
    agreement.listen()
    os.kill(os.getpid(), signal.SIGUSR1)
    agreement.setup(trainer, None, "fit")
    assert not trainer.should_stop
    step(agreement, trainer)
    assert trainer.should_stop
    assert agreement.signal_name == "SIGUSR1"
    agreement.release()
    assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL

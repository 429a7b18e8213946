"""Distributions without torch's checks: where they are off, and what takes their place."""

import threading

import numpy as np
import pytest
import torch as th
from torch.distributions import Distribution, Normal

from sb3_trmrl.common.distributions import unchecked_distributions
from tests.families import counter_vec_env
from tests.test_memory_algorithms import make_model

BAD = (th.zeros(1), -th.ones(1))


def checked() -> bool:
    try:
        Normal(*BAD)
    except ValueError:
        return True
    return False


def test_checks_are_off_inside_and_on_again_behind():
    assert checked()
    with unchecked_distributions():
        assert not checked()
        with unchecked_distributions():
            assert not checked()
        assert not checked()
    assert checked()
    with pytest.raises(ZeroDivisionError), unchecked_distributions():
        _ = 1 / 0
    assert checked()


def test_who_had_turned_them_off_keeps_them_off(monkeypatch):
    monkeypatch.setattr(Distribution, "_validate_args", False)
    with unchecked_distributions():
        pass
    assert not checked()


def test_contexts_of_threads_that_overlap():
    entered, leave = threading.Event(), threading.Event()

    def other() -> None:
        with unchecked_distributions():
            entered.set()
            leave.wait(10)

    with unchecked_distributions():
        thread = threading.Thread(target=other)
        thread.start()
        assert entered.wait(10)
    # This one began first and is left; the other goes on
    assert not checked()
    leave.set()
    thread.join()
    assert checked()


def test_acting_and_training_leave_them_on():
    model = make_model(counter_vec_env(2), "window")
    model.learn(2 * 7 * 2)
    model.predict(model.env.reset())
    assert checked()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_actions_that_are_not_finite_are_refused_before_they_are_taken(value):
    model = make_model(counter_vec_env(2), "window")
    model.learn(2 * 7)
    with th.no_grad():
        model.policy.action_net.bias[1] = value
    with pytest.raises(FloatingPointError, match="slot 0 is not finite"):
        model.predict(model.env.reset())
    steps = model.num_timesteps
    with pytest.raises(FloatingPointError, match="Load an earlier checkpoint"):
        model.learn(2 * 7, reset_num_timesteps=False)
    assert model.num_timesteps == steps

"""The rollout buffer: windows against brute force, advantages and returns by hand."""

from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces

from sb3_trmrl.common.buffers import WorkingMemoryRolloutBuffer


def make_buffer(n_steps: int, n_envs: int, context_length: int, **kwargs) -> Any:
    space = spaces.Box(-np.inf, np.inf, (1,), np.float32)
    return WorkingMemoryRolloutBuffer(
        n_steps, space, spaces.Discrete(2), device="cpu", n_envs=n_envs, context_length=context_length, **kwargs
    )


def add(buffer, tokens, starts, rewards=0.0, values=0.0) -> None:
    n_envs = buffer.n_envs
    buffer.add(
        th.as_tensor(tokens, dtype=th.float32).reshape(n_envs, 1),
        np.zeros(n_envs),
        np.full(n_envs, rewards, dtype=np.float32),
        np.asarray(starts),
        th.full((n_envs, 1), float(values)),
        th.zeros(n_envs),
        th.as_tensor(starts),
    )


@pytest.mark.parametrize("n_envs", [1, 3])
@pytest.mark.parametrize("memory_length", [1, 2, 5, 12])
@pytest.mark.parametrize("n_steps", [2, 8])
def test_windows_equal_brute_force_across_rollouts(n_envs, memory_length, n_steps):
    rng = np.random.default_rng(memory_length)
    buffer = make_buffer(n_steps, n_envs, memory_length - 1)
    memories: list[list[float]] = [[] for _ in range(n_envs)]
    token = 0.0
    for _ in range(5):
        buffer.reset()
        expected: dict[float, list[float]] = {}
        for env, memory in enumerate(memories):
            kept = memory[-(memory_length - 1) :] if memory_length > 1 else []
            context = buffer.context()
            length = int(context.lengths[env])
            assert length == len(kept)
            if length:
                assert context.observations[env, -length:, 0].tolist() == kept
        for _ in range(n_steps):
            starts = rng.random(n_envs) < 0.2
            tokens = []
            for env in range(n_envs):
                token += 1.0  # every token of the test is unique
                memories[env] = ([] if starts[env] else memories[env]) + [token]
                expected[token] = memories[env][-memory_length:]
                tokens.append(token)
            add(buffer, tokens, starts)
        seen = []
        for batch in buffer.get(3):
            windows, lengths = batch.observations
            assert windows.shape == (len(lengths), memory_length, 1)
            for window, length in zip(windows[:, :, 0].tolist(), lengths.tolist(), strict=True):
                assert window[:length] == expected[window[length - 1]]
                seen.append(window[length - 1])
        assert sorted(seen) == sorted(expected), "every step exactly once per epoch"


def test_memory_is_linear_in_steps_not_in_steps_times_window():
    short, long = make_buffer(1000, 4, 4), make_buffer(1000, 4, 99)
    stored = [sum(array.nbytes for array in buffer.tokens.values()) for buffer in (short, long)]
    assert stored[1] / stored[0] == pytest.approx(1099 / 1004)


def test_a_rollout_that_was_broken_off_leaves_the_right_context():
    buffer = make_buffer(6, 1, 3)
    for token in range(2):  # stopped by a callback after 2 of 6 steps
        add(buffer, [token], [token == 0])
    buffer.reset()
    context = buffer.context()
    assert int(context.lengths[0]) == 2
    assert context.observations[0, -2:, 0].tolist() == [0.0, 1.0]


def test_a_fresh_buffer_in_mid_trial_invents_no_context():
    buffer = make_buffer(2, 1, 3)
    add(buffer, [1], [False])
    add(buffer, [2], [False])
    assert buffer.memory_lengths[-2:, 0].tolist() == [1, 2]


def test_same_seed_same_minibatches():
    orders = []
    for _ in range(2):
        th.manual_seed(3)
        buffer = make_buffer(7, 2, 1)
        for step in range(7):
            add(buffer, [step, 10 + step], [step == 0] * 2)
        orders.append([batch.observations.observations[:, 0, 0].tolist() for batch in buffer.get(4)])
    assert orders[0] == orders[1]
    assert [len(order) for order in orders[0]] == [4, 4, 4, 2]


def test_rescale_changes_the_unit_of_everything_that_is_a_reward():
    buffer = make_buffer(2, 1, 0, gamma=0.5, gae_lambda=1.0)
    for step in range(2):
        add(buffer, [step], [step == 0], rewards=2.0, values=1.0)
    buffer.compute_returns_and_advantage(th.zeros(1), np.array([True]))
    before = [buffer.rewards.copy(), buffer.values.copy(), buffer.advantages.copy(), buffer.returns.copy()]
    buffer.rescale(0.5)
    for old, new in zip(before, (buffer.rewards, buffer.values, buffer.advantages, buffer.returns), strict=True):
        np.testing.assert_allclose(new, 0.5 * old)


def test_monte_carlo_returns_by_hand():
    # Two trials in one rollout, the second goes on behind it: gamma 1/2, reward 1 everywhere, value 8 at the end
    buffer = make_buffer(5, 1, 0, gamma=0.5)
    for start in (True, False, False, True, False):
        add(buffer, [0], [start], rewards=1.0)
    returns = buffer.monte_carlo_returns(np.array([8.0]), np.array([False]))[:, 0]
    assert returns.tolist() == [1.75, 1.5, 1.0, 1 + 0.5 * (1 + 0.5 * 8), 1 + 0.5 * 8]
    ended = buffer.monte_carlo_returns(np.array([8.0]), np.array([True]))[:, 0]
    assert ended.tolist() == [1.75, 1.5, 1.0, 1.5, 1.0]

"""The rollout buffers: windows and trial slices against brute force, advantages and returns by hand."""

from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces

from sb3_trmrl.common.buffers import MemoryRolloutBuffer, TrialSliceRolloutBuffer, WorkingMemoryRolloutBuffer
from sb3_trmrl.common.type_aliases import TrialSlices

BUFFERS: list[type[MemoryRolloutBuffer]] = [WorkingMemoryRolloutBuffer, TrialSliceRolloutBuffer]


def make_buffer(
    n_steps: int,
    n_envs: int,
    context_length: int,
    buffer_class: type[MemoryRolloutBuffer] = WorkingMemoryRolloutBuffer,
    **kwargs: Any,
) -> Any:
    space = spaces.Box(-np.inf, np.inf, (1,), np.float32)
    return buffer_class(
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


# -- Windows ---------------------------------------------------------------------------------------------------------


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


# -- Context ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("context_length", [0, 1, 3, 9])
def test_context_is_what_each_memory_holds_before_the_rollout(context_length):
    # Starts of memories: at 0, at 2, at 5 (which is the step behind the first rollout) and never
    buffer = make_buffer(5, 4, context_length)
    assert not buffer.context(np.zeros(4, dtype=bool)).lengths.any()
    for step in range(5):
        add(buffer, [10 * env + step for env in range(4)], [step == 0, step == 2, False, False])
    buffer.reset()
    context = buffer.context(np.array([False, False, True, False]))
    assert context.lengths.tolist() == [5, 3, 0, 5], "how many they are is known without the tokens"
    # No more rows than some memory holds or the context has
    rows = min(context_length, 5)
    assert context.observations.shape == (4, rows, 1)
    for env in range(4):
        assert context.observations[env, :, 0].tolist() == [10 * env + step for step in range(5 - rows, 5)]
    assert buffer.context(np.ones(4, dtype=bool)).observations.shape == (4, 0, 1)


def test_a_rollout_that_was_broken_off_leaves_the_right_context():
    buffer = make_buffer(6, 1, 3)
    for token in range(2):  # stopped by a callback after 2 of 6 steps
        add(buffer, [token], [token == 0])
    buffer.reset()
    context = buffer.context(np.array([False]))
    assert context.lengths.tolist() == [2]
    assert context.observations[0, :, 0].tolist() == [0.0, 1.0]


def test_a_fresh_buffer_in_mid_trial_invents_no_context():
    buffer = make_buffer(2, 1, 3)
    add(buffer, [1], [False])
    add(buffer, [2], [False])
    assert buffer.memory_lengths[-2:, 0].tolist() == [1, 2]


@pytest.mark.parametrize("buffer_class", BUFFERS)
def test_same_seed_same_minibatches(buffer_class):
    orders = []
    for seed in (3, 3, 4):
        th.manual_seed(seed)
        buffer = make_buffer(7, 2, 1, buffer_class)
        for step in range(7):
            add(buffer, [step, 10 + step], [step % 2 == 0] * 2)
        orders.append([batch.observations.observations[:, 0, 0].tolist() for _ in range(2) for batch in buffer.get(4)])
    assert orders[0] == orders[1] != orders[2]
    if buffer_class is WorkingMemoryRolloutBuffer:
        assert [len(order) for order in orders[0]] == [4, 4, 4, 2] * 2


# -- Trial slices ----------------------------------------------------------------------------------------------------

BATCH_SIZES = [1, 2, 3, 7, 8, 25, 1000, None]


@pytest.mark.parametrize("n_envs", [1, 3])
@pytest.mark.parametrize("context_length", [0, 1, 4, 30])
@pytest.mark.parametrize(("n_steps", "start_rate"), [(1, 0.3), (8, 0.0), (8, 0.2), (8, 0.9)])
def test_slices_equal_brute_force_across_rollouts(n_envs, context_length, n_steps, start_rate):
    rng = np.random.default_rng(n_steps)
    buffer = make_buffer(n_steps, n_envs, context_length, TrialSliceRolloutBuffer)
    memories: list[list[float]] = [[] for _ in range(n_envs)]
    token = 0.0
    for iteration in range(5):
        buffer.reset()
        # Token -> all that its memory saw before it
        expected: dict[float, list[float]] = {}
        n_slices = n_envs
        for step in range(n_steps):
            starts = (rng.random(n_envs) < start_rate) | (iteration == step == 0)
            n_slices += int(starts.sum()) if step else 0
            tokens = []
            for env in range(n_envs):
                token += 1.0  # every token of the test is unique
                memories[env] = [] if starts[env] else memories[env]
                expected[token] = list(memories[env])
                memories[env].append(token)
                tokens.append(token)
            add(buffer, tokens, starts)
        order = rng.permutation(n_steps * n_envs).reshape(n_steps, n_envs).astype(np.float32)
        buffer.values[:], buffer.log_probs[:], buffer.advantages[:], buffer.returns[:] = order, -order, 2 * order, 3 * order
        buffer.actions[..., 0] = order
        flat_tokens = buffer.tokens["token"][context_length:, :, 0]
        number_of = dict(zip(flat_tokens.flatten().tolist(), order.flatten().tolist(), strict=True))
        for batch_size in BATCH_SIZES:
            seen: list[float] = []
            rows = 0
            for batch in buffer.get(batch_size):
                sequences, offsets, steps = batch.observations
                rows += len(sequences)
                assert sequences.shape[:2] == steps.shape and len(offsets) == len(sequences)
                for sequence, offset, mask in zip(sequences[:, :, 0].tolist(), offsets.tolist(), steps, strict=True):
                    trained = mask.nonzero().flatten().tolist()
                    first, last = trained[0], trained[-1]
                    assert trained == list(range(first, last + 1)), "a slice is one stretch"
                    history = expected[sequence[first]]
                    reach = min(len(history), context_length)
                    assert first == reach and offset == len(history) - reach
                    assert sequence[:first] == history[len(history) - reach :]
                    for t in range(first, last + 1):  # in order, nothing left out
                        assert expected[sequence[t]] == history + sequence[first:t]
                trained_tokens = sequences[steps][:, 0].tolist()
                numbers = [number_of[x] for x in trained_tokens]
                # The numbers of the minibatch are in the order of observations[steps]
                assert batch.old_values.tolist() == batch.actions[:, 0].tolist() == numbers
                assert batch.old_log_prob.tolist() == [-x for x in numbers]
                assert batch.advantages.tolist() == [2 * x for x in numbers]
                assert batch.returns.tolist() == [3 * x for x in numbers]
                seen += trained_tokens
            assert sorted(seen) == sorted(expected), "every step exactly once per epoch"
            assert rows == n_slices, "no slice was cut"


@pytest.mark.parametrize("batch_size", BATCH_SIZES)
def test_minibatches_are_as_many_as_asked_for_and_of_that_size_up_to_one_slice(batch_size):
    rng = np.random.default_rng(0)
    n_steps, n_envs, longest = 40, 5, 8
    buffer = make_buffer(n_steps, n_envs, 3, TrialSliceRolloutBuffer)
    left = np.zeros(n_envs, dtype=int)
    for step in range(n_steps):
        starts = left == 0
        left = np.where(starts, rng.integers(1, longest + 1, n_envs), left) - 1
        add(buffer, np.arange(n_envs) + 10 * step, starts)
    asked = batch_size or n_steps * n_envs
    counts = []
    for _ in range(20):
        sizes = [len(batch.actions) for batch in buffer.get(batch_size)]
        assert sum(sizes) == n_steps * n_envs and min(sizes) >= 1
        assert max(sizes) <= asked + longest
        assert sum(size < asked - longest for size in sizes) <= 1, "only the last one may be short"
        counts.append(len(sizes))
    # Every minibatch but the last is there, as long as a slice is no longer than a minibatch
    n_slices = len(buffer.trial_slices())
    assert max(counts) <= min(-(-n_steps * n_envs // asked), n_slices)
    if asked >= longest:
        assert min(counts) >= n_steps * n_envs // asked


def test_trials_of_one_length_make_minibatches_of_one_size():
    # As in training: 20 environments, two trials of 10 steps each in a rollout
    buffer = make_buffer(20, 20, 30, TrialSliceRolloutBuffer)
    for step in range(20):
        add(buffer, [100 * step] * 20, [step % 10 == 0] * 20)
    for batch_size, sizes in ((80, [80] * 5), (100, [100] * 4), (160, [160, 160, 80]), (10, [10] * 40), (4, [10] * 40)):
        batches = list(buffer.get(batch_size))
        assert [len(batch.actions) for batch in batches] == sizes
        assert all(batch.observations.observations.shape[1] == 10 for batch in batches), "no context, no padding"


def test_slices_of_environments_and_times():
    buffer = make_buffer(6, 2, 2, TrialSliceRolloutBuffer)
    for step in range(6):
        add(buffer, [step, 10 + step], [step == 4, False])
    buffer.reset()
    for step in range(6):
        add(buffer, [20 + step, 30 + step], [step == 3, step in (0, 5)])
    # Environment, first row, row behind the last (rows 0 and 1 are the context), tokens before
    assert buffer.trial_slices().tolist() == [[0, 2, 5, 2], [0, 5, 8, 0], [1, 2, 7, 0], [1, 7, 8, 0]]


@pytest.mark.parametrize("buffer_class", BUFFERS)
def test_dict_observations_keep_their_keys_shapes_and_kinds(buffer_class):
    space = spaces.Dict({"camera": spaces.Box(0, 255, (2, 3), np.uint8), "count": spaces.Box(-1, 1, (1,), np.float32)})
    buffer = buffer_class(4, space, spaces.Discrete(2), device="cpu", n_envs=2, context_length=2)
    for rollout in range(2):
        buffer.reset()
        for step in range(4):
            number = 10 * rollout + 2 * step + th.arange(2.0)
            buffer.add(
                {"camera": number.view(2, 1, 1).expand(2, 2, 3).to(th.uint8), "count": number.unsqueeze(1)},
                np.zeros(2), np.zeros(2), np.zeros(2), th.zeros(2, 1), th.zeros(2),
                th.tensor([rollout == step == 0, step == 2]),
            )  # fmt: skip
    context = buffer.context(np.array([False, True]))
    assert isinstance(context.observations, dict)
    assert context.observations["camera"].shape == (2, 2, 2, 3) and context.observations["camera"].dtype == th.uint8
    assert context.observations["count"][0, :, 0].tolist() == [4.0, 6.0]
    for batch in buffer.get(5):
        parts = batch.observations.observations
        assert isinstance(parts, dict)
        assert parts["camera"].shape == (*parts["count"].shape[:2], 2, 3) and parts["camera"].dtype == th.uint8
        assert th.equal(parts["camera"][..., 0, 0].float(), parts["count"][..., 0]), "the keys stay together"
        if isinstance(batch.observations, TrialSlices):
            assert len(parts["count"][batch.observations.steps]) == len(batch.actions)


# -- Both ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("buffer_class", BUFFERS)
def test_a_buffer_must_be_full_before_it_is_sampled(buffer_class):
    buffer = make_buffer(3, 1, 1, buffer_class)
    add(buffer, [0], [True])
    with pytest.raises(AssertionError, match="must be full"):
        next(buffer.get(2))


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

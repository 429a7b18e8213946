"""TokenSpace and TrialWrapper on hand-made families in which every number is known."""

import copy
import json
import pickle
from typing import Any

import cloudpickle  # type: ignore[import-untyped]
import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from gymnasium.error import ResetNeeded
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.preprocessing import preprocess_obs

from sb3_trmrl.envs import MetaEnv, TokenSpace, TrialWrapper


class Counter(MetaEnv):
    """Observation [task, step]; reward 10 * task + step; terminates after ``length`` steps; success at step 2."""

    splits = ("train", "test")
    task_shapes = {"level": ()}

    def __init__(self, horizon: Any = 10, length: Any = 3, report_success: Any = True, action_space: Any = None) -> None:
        super().__init__(horizon)
        self.length = length
        self.report_success = report_success
        self.observation_space = spaces.Box(-1.0, 100.0, (2,))
        self.action_space = action_space if action_space is not None else spaces.Box(-1.0, 1.0, (1,))
        self.received: list[Any] = []

    def _sample_task(self, split: Any) -> Any:
        return {"level": float(self.np_random.integers(1, 1000) / 100)}

    def _reset(self) -> Any:
        self.count = 0
        return np.array([self._task["level"], 0.0])

    def _step(self, action: Any) -> Any:
        self.received.append(action)
        self.count += 1
        info = {"success": self.count == 2} if self.report_success else {}
        reward = 10 * self._task["level"] + self.count
        return np.array([self._task["level"], float(self.count)]), reward, self.count >= self.length, False, info


TASK = {"level": 2.0}


def play(env: Any, n: Any, action: Any = 0.5) -> Any:
    return [env.step(np.array([action], np.float32)) for _ in range(n)]


def test_tokens_of_a_trial_that_terminates() -> None:
    env = TrialWrapper(Counter(), episodes_per_trial=2, tasks=[TASK])
    token, info = env.reset(seed=0)
    np.testing.assert_array_equal(token, [2, 0, 0, 0, 0])  # obs, obs, prev_action, prev_reward, prev_done
    assert token.dtype == np.float32
    assert info == {}
    tokens, rewards, terminated, truncated, infos = zip(
        *[env.step(np.array([a], np.float32)) for a in (0.25, 0.5, 0.75, -0.25, -0.5, -0.75)], strict=True
    )
    np.testing.assert_array_equal(
        tokens,
        [
            [2, 1, 0.25, 21, 0],
            [2, 2, 0.5, 22, 0],
            [2, 0, 0.75, 23, 1],  # the next episode's first observation, the last action and reward of the one before
            [2, 1, -0.25, 21, 0],
            [2, 2, -0.5, 22, 0],
            [2, 3, -0.75, 23, 1],  # the final observation, after a real end
        ],
    )
    assert rewards == (21.0, 22.0, 23.0, 21.0, 22.0, 23.0)
    assert terminated == (False,) * 5 + (True,)
    assert truncated == (False,) * 6
    assert [info.get("inner_episode") for info in infos] == [
        None,
        None,
        {"index": 1, "r": 66.0, "l": 3, "terminated": True, "success": True},
        None,
        None,
        {"index": 2, "r": 66.0, "l": 3, "terminated": True, "success": True},
    ]
    assert ["trial" in info for info in infos] == [False] * 5 + [True]
    assert infos[-1]["trial"] == {"task": TASK, "returns": [66.0, 66.0], "lengths": [3, 3], "success": [True, True]}
    assert infos[-1]["is_success"] is True


def test_a_family_may_return_the_same_info_at_every_step() -> None:
    class Shared(Counter):
        shared: dict[str, Any] = {}

        def _step(self, action: Any) -> Any:
            return (*super()._step(action)[:4], self.shared)

    env = TrialWrapper(Shared(horizon=2, length=5), episodes_per_trial=2, tasks=[TASK])
    env.reset(seed=0)
    assert ["inner_episode" in step[4] for step in play(env, 4)] == [False, True, False, True]
    env.reset()
    assert [set(step[4]) for step in play(env, 1)] == [set()]


def test_trial_cut_by_its_time_limit() -> None:
    env = TrialWrapper(Counter(horizon=2, length=5), episodes_per_trial=2, tasks=[TASK])
    env.reset(seed=0)
    steps = play(env, 4)
    np.testing.assert_array_equal(steps[1][0], [2, 0, 0.5, 22, 1])  # an inner end is an end, whatever its reason
    np.testing.assert_array_equal(steps[3][0], [2, 2, 0.5, 22, 0])  # the state goes on: prev_done 0
    assert [step[2] for step in steps] == [False] * 4
    assert [step[3] for step in steps] == [False] * 3 + [True]
    assert [step[4]["inner_episode"]["terminated"] for step in (steps[1], steps[3])] == [False, False]


def test_trial_of_one_episode_and_of_one_step() -> None:
    env = TrialWrapper(Counter(horizon=1), episodes_per_trial=1, tasks=[TASK])
    env.reset(seed=0)
    token, reward, terminated, truncated, info = env.step(np.zeros(1, np.float32))
    assert (reward, terminated, truncated) == (21.0, False, True)
    assert info["trial"]["returns"] == [21.0]
    assert info["is_success"] is False  # success comes at step 2
    np.testing.assert_array_equal(token, [2, 1, 0, 21, 0])


def test_termination_wins_over_the_time_limit() -> None:
    env = TrialWrapper(Counter(horizon=3, length=3), episodes_per_trial=1, tasks=[TASK])
    env.reset(seed=0)
    token, _, terminated, truncated, _ = play(env, 3)[-1]
    assert (terminated, truncated, token[-1]) == (True, False, 1.0)


def test_success_is_that_of_the_last_episode() -> None:
    class Once(Counter):
        def _step(self, action: Any) -> Any:
            observation, reward, terminated, truncated, info = super()._step(action)
            return observation, reward, terminated, truncated, {"success": action[0] > 0}

    env = TrialWrapper(Once(), episodes_per_trial=2, tasks=[TASK])
    env.reset(seed=0)
    info = (play(env, 1, 1.0) + play(env, 5, -1.0))[-1][-1]
    assert info["trial"]["success"] == [True, False]
    assert info["is_success"] is False


def test_no_success_keys_without_success() -> None:
    env = TrialWrapper(Counter(report_success=False), tasks=[TASK])
    env.reset(seed=0)
    info = play(env, 6)[-1][-1]
    assert "success" not in info["inner_episode"]
    assert "success" not in info["trial"]
    assert "is_success" not in info


def test_success_that_is_told_only_where_there_is_some() -> None:
    class Told(Counter):
        def _step(self, action: Any) -> Any:
            observation, reward, terminated, truncated, _ = super()._step(action)
            return observation, reward, terminated, truncated, {"success": True} if action[0] > 0 else {}

    env = TrialWrapper(Told(), episodes_per_trial=3, tasks=[TASK])
    env.reset(seed=0)
    info = (play(env, 3, -1.0) + play(env, 3, 1.0) + play(env, 3, -1.0))[-1][-1]
    assert info["trial"]["success"] == [False, True, False]
    assert info["is_success"] is info["inner_episode"]["success"] is False
    # From then on it is known that the family tells success, in any trial until it is seeded anew
    env.reset()
    assert play(env, 9, -1.0)[-1][-1]["trial"]["success"] == [False] * 3
    env.reset(seed=0)
    assert "success" not in play(env, 9, -1.0)[-1][-1]["trial"]


def test_monitor_counts_the_trial_as_one_episode() -> None:
    env = Monitor(TrialWrapper(Counter(), tasks=[TASK]))
    env.reset(seed=0)
    info = play(env, 6)[-1][-1]
    assert info["episode"]["r"] == 132.0
    assert info["episode"]["l"] == 6


@pytest.mark.parametrize("counts_episodes", [Monitor, gym.wrappers.RecordEpisodeStatistics])
def test_what_counts_episodes_within_the_trial_does_not_count_for_sb3(counts_episodes: Any) -> None:
    env = TrialWrapper(counts_episodes(Counter()), tasks=[TASK])
    env.reset(seed=0)
    infos = [step[-1] for step in play(env, 6)]
    assert not any("episode" in info for info in infos)
    assert infos[-1]["trial"]["lengths"] == [3, 3]


def test_infos_of_trials_share_nothing() -> None:
    env: Any = TrialWrapper(Counter(), tasks=[TASK])
    env.reset(seed=0)
    first = play(env, 6)[-1][-1]["trial"]
    saved = copy.deepcopy(first)
    first["task"]["level"] = 99.0
    env.reset()
    second = play(env, 6)[-1][-1]["trial"]
    assert second == saved
    assert second["returns"] is not first["returns"]


# ---- seeds and tasks ---------------------------------------------------------------------------------------------


class Noisy(Counter):
    """Draws a number at each step, and episodes of random length: tasks must not depend on how many were drawn."""

    def _step(self, action: Any) -> Any:
        self.count += 1
        noise = self.np_random.uniform()
        for _ in range(int(10 * abs(float(action[0])))):
            self.np_random.uniform()
        return np.array([self._task["level"], noise]), noise, noise > 0.7, False, {}


def run_trials(env: Any, n: Any, action: Any, **reset: Any) -> Any:
    tokens, tasks = [], []
    for index in range(n):
        token, _ = env.reset(**(reset if index == 0 else {}))
        tasks.append(env.get_task())
        tokens.append(token)
        over = False
        while not over:
            token, _, terminated, truncated, _ = env.step(np.array([action], np.float32))
            tokens.append(token)
            over = terminated or truncated
    return np.array(tokens), tasks


def test_same_seed_same_trials_bit_for_bit() -> None:
    env = TrialWrapper(Noisy())
    tokens, tasks = run_trials(env, 4, 0.0, seed=7)
    again, tasks_again = run_trials(env, 4, 0.0, seed=7)  # same object, with a history
    other, tasks_other = run_trials(TrialWrapper(Noisy()), 4, 0.0, seed=7)
    np.testing.assert_array_equal(tokens, again)
    np.testing.assert_array_equal(tokens, other)
    assert tasks == tasks_again == tasks_other
    assert len({task["level"] for task in tasks}) == 4
    assert run_trials(TrialWrapper(Noisy()), 4, 0.0, seed=8)[1] != tasks


def test_tasks_do_not_depend_on_the_policy() -> None:
    tokens, tasks = run_trials(TrialWrapper(Noisy()), 5, 0.0, seed=7)
    other_tokens, other_tasks = run_trials(TrialWrapper(Noisy()), 5, 1.0, seed=7)
    assert tasks == other_tasks
    assert tokens.shape != other_tokens.shape or not np.array_equal(tokens, other_tokens)


def test_reset_in_mid_trial_starts_a_new_trial() -> None:
    env = TrialWrapper(Counter(), episodes_per_trial=2)
    env.reset(seed=0)
    first = env.get_task()
    play(env, 4)
    token, _ = env.reset()
    assert env.get_task() != first
    np.testing.assert_array_equal(token[1:], [0, 0, 0, 0])
    assert play(env, 6)[-1][-1]["trial"]["lengths"] == [3, 3]


def test_listed_tasks_are_played_in_order_and_from_the_first_after_a_seed() -> None:
    tasks = [{"level": float(level)} for level in (1, 2, 3)]
    env = TrialWrapper(Counter(), tasks=tasks)
    seen = []
    for seed in (5, None, None, None, 5, None):
        env.reset(seed=seed)
        seen.append(env.get_task()["level"])
    assert seen == [1.0, 2.0, 3.0, 1.0, 1.0, 2.0]
    env.set_tasks([{"level": 9}])
    env.reset()
    assert env.get_task() == {"level": 9.0}
    # Without a list: those that an environment which never had one draws
    env.set_tasks(None)
    drawing = TrialWrapper(Counter())
    for seed in (5, None):
        env.reset(seed=seed)
        drawing.reset(seed=seed)
        assert env.draws_tasks and env.get_task() == drawing.get_task()


def test_option_task_is_for_one_trial() -> None:
    tasks = [{"level": 1.0}, {"level": 2.0}]
    env = TrialWrapper(Counter(), tasks=tasks)
    seen = []
    for options in (None, {"task": {"level": 7.5}}, None):
        env.reset(options=options)
        seen.append(env.get_task()["level"])
    assert seen == [1.0, 7.5, 2.0]
    with pytest.raises(ValueError, match=r"options.*\"task\".*\['taks'\]"):
        env.reset(options={"taks": {}})
    with pytest.raises(ValueError, match="level"):
        env.reset(options={"task": {"speed": 1.0}})


def test_sample_tasks_has_a_stream_for_each_split_and_leaves_the_episodes_alone() -> None:
    env = TrialWrapper(Noisy())
    env.reset(seed=3)
    state = env.meta_env.np_random.bit_generator.state
    env.sample_tasks(5)
    assert env.meta_env.np_random.bit_generator.state == state
    env.reset(seed=3)
    first = env.sample_tasks(2)
    env.reset(seed=3)
    assert env.sample_tasks(20, split="test") != env.sample_tasks(20)
    env.reset(seed=3)
    env.sample_tasks(7, split="test")
    assert env.sample_tasks(2) == first, "drawing from another split moves nothing"


def test_wrapped_base_environment() -> None:
    env = TrialWrapper(gym.wrappers.TransformReward(Counter(), lambda reward: float(reward) / 10), tasks=[TASK])
    env.reset(seed=0)
    assert env.unwrapped is env
    np.testing.assert_allclose(play(env, 1)[0][0], [2, 1, 0.5, 2.1, 0])


# ---- token space ---------------------------------------------------------------------------------------------------


def test_token_space_layout_and_bounds() -> None:
    space = TokenSpace(spaces.Box(-2, 3, (2, 2)), spaces.Box(np.array([-1, -4]), np.array([1, 5]), dtype=np.float32))
    assert isinstance(space, spaces.Box)
    assert (space.observation_slice, space.action_slice) == (slice(0, 4), slice(4, 6))
    assert (space.reward_slice, space.done_slice) == (slice(6, 7), slice(7, 8))
    np.testing.assert_array_equal(space.low, np.array([-2] * 4 + [-1, -4, -np.inf, 0], np.float32))
    np.testing.assert_array_equal(space.high, np.array([3] * 4 + [1, 5, np.inf, 1], np.float32))
    assert space.dtype == np.float32


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s)), lambda s: cloudpickle.loads(cloudpickle.dumps(s))]
)
def test_token_space_survives_copies(duplicate: Any) -> None:
    space = TokenSpace(spaces.Box(-2, 3, (4,)), spaces.Discrete(3))
    space.seed(1)
    twin = duplicate(space)
    assert type(twin) is TokenSpace
    assert twin == space
    assert twin.action_slice == slice(4, 7)
    np.testing.assert_array_equal(twin.sample(), space.sample())


def test_token_space_equality_includes_the_layout() -> None:
    bits = spaces.MultiBinary(2), spaces.MultiBinary(3)
    space = TokenSpace(*bits)
    assert space == TokenSpace(*bits)
    assert space != TokenSpace(*reversed(bits))  # same bounds, other layout
    plain = spaces.Box(space.low, space.high, dtype=np.float32)
    assert space != plain
    assert plain != space


@pytest.mark.parametrize("bad", [spaces.Tuple([spaces.Discrete(2)]), spaces.Text(3)])
def test_token_space_rejects_other_spaces(bad: Any) -> None:
    with pytest.raises(ValueError, match=r"observation_space must be one of.*Box"):
        TokenSpace(bad, spaces.Discrete(2))
    with pytest.raises(ValueError, match=r"action_space must be one of.*Box"):
        TokenSpace(spaces.Discrete(2), bad)


@pytest.mark.parametrize(
    "action_space, action, expected",
    [
        (spaces.Discrete(3), 2, [0, 0, 1]),
        (spaces.Discrete(3), np.array(1), [0, 1, 0]),
        (spaces.Discrete(3, start=5), np.int64(5), [1, 0, 0]),
        (spaces.MultiDiscrete([2, 3]), np.array([1, 0]), [0, 1, 1, 0, 0]),
        (spaces.MultiBinary(3), np.array([1, 0, 1]), [1, 0, 1]),
        (spaces.Box(-1, 1, (1, 2)), np.array([[0.5, -0.25]], np.float32), [0.5, -0.25]),
    ],
)
def test_previous_action_in_the_token(action_space: Any, action: Any, expected: Any) -> None:
    env: Any = TrialWrapper(Counter(action_space=action_space), tasks=[TASK])
    token, _ = env.reset(seed=0)
    where = env.observation_space.action_slice
    np.testing.assert_array_equal(token[where], np.zeros(len(expected)))
    token = env.step(action)[0]
    np.testing.assert_array_equal(token[where], expected)
    assert token in env.observation_space
    np.testing.assert_array_equal(env.meta_env.received[-1], action)


def test_box_actions_are_clipped_for_the_base_environment_and_the_token() -> None:
    env: Any = TrialWrapper(Counter(), tasks=[TASK])
    env.reset(seed=0)
    token = env.step(np.array([3.0], np.float32))[0]
    assert token[2] == 1.0
    np.testing.assert_array_equal(env.meta_env.received[-1], [1.0])


class ChangesItsAction(Counter):
    def _step(self, action: Any) -> Any:
        action *= 10.0
        return super()._step(action)


def test_base_environments_may_change_their_action() -> None:
    env = TrialWrapper(ChangesItsAction())
    env.reset(seed=0)
    action = np.array([0.5], np.float32)
    token = env.step(action)[0]
    np.testing.assert_array_equal(token[env.observation_space.action_slice], [0.5])  # type: ignore[attr-defined]
    np.testing.assert_array_equal(action, [0.5])


class OtherObservation(Counter):
    def __init__(self, space: Any, observation: Any) -> None:
        super().__init__()
        self.observation_space = space
        self.observation = observation

    def _reset(self) -> Any:
        super()._reset()
        return copy.deepcopy(self.observation)

    def _step(self, action: Any) -> Any:
        return (copy.deepcopy(self.observation), *super()._step(action)[1:])


def test_discrete_observation_is_one_hot() -> None:
    env = TrialWrapper(OtherObservation(spaces.Discrete(3), 1), tasks=[TASK])
    np.testing.assert_array_equal(env.reset(seed=0)[0], [0, 1, 0, 0, 0, 0])


def test_matrix_observation_is_flattened() -> None:
    env = TrialWrapper(OtherObservation(spaces.Box(-9, 9, (2, 2)), np.array([[1.0, 2], [3, 4]])), tasks=[TASK])
    np.testing.assert_array_equal(env.reset(seed=0)[0], [1, 2, 3, 4, 0, 0, 0])


def test_dict_observation_gets_three_more_keys() -> None:
    space = spaces.Dict({"a": spaces.Box(-1, 1, (2,)), "b": spaces.Discrete(3)})
    env: Any = TrialWrapper(OtherObservation(space, {"a": np.array([0.5, 0], np.float32), "b": 2}), tasks=[TASK])
    assert set(env.observation_space.spaces) == {"a", "b", "prev_action", "prev_reward", "prev_done"}
    token, _ = env.reset(seed=0)
    assert token in env.observation_space
    assert (token["prev_action"], token["prev_reward"], token["prev_done"]) == ([0], [0], [0])
    token = play(env, 3, 0.5)[-1][0]
    assert token in env.observation_space
    assert token["b"] == 2
    assert (token["prev_action"], token["prev_reward"], token["prev_done"]) == ([0.5], [23], [1])


@pytest.mark.parametrize(
    ("space", "value", "expected"),
    [
        (spaces.Discrete(3, start=5), 7, 2),
        (spaces.Discrete(3, start=-1), np.int64(-1), 0),
        (spaces.MultiDiscrete([2, 3], start=[4, -2]), np.array([5, -2]), [1, 0]),
    ],
)
def test_numbers_of_a_dict_observation_begin_at_zero(space: Any, value: Any, expected: Any) -> None:
    env: Any = TrialWrapper(OtherObservation(spaces.Dict({"a": space}), {"a": value}), tasks=[TASK])
    token, _ = env.reset(seed=0)
    np.testing.assert_array_equal(token["a"], expected)
    assert token in env.observation_space
    one_hot = preprocess_obs({"a": th.as_tensor(token["a"])[None]}, spaces.Dict({"a": env.observation_space["a"]}))
    assert isinstance(one_hot, dict) and one_hot["a"].sum() == np.size(expected)


def test_image_observation_keeps_its_shape() -> None:
    image = np.full((4, 5, 3), 7, np.uint8)
    env = TrialWrapper(OtherObservation(spaces.Box(0, 255, (4, 5, 3), np.uint8), image), tasks=[TASK])
    token, _ = env.reset(seed=0)
    assert set(token) == {"observation", "prev_action", "prev_reward", "prev_done"}
    np.testing.assert_array_equal(token["observation"], image)
    assert token["observation"].dtype == np.uint8
    assert token in env.observation_space


def test_key_clash() -> None:
    space = spaces.Dict({"prev_reward": spaces.Box(-1, 1, (2,))})
    with pytest.raises(ValueError, match=r"keys \['prev_reward'\].*rename"):
        TrialWrapper(OtherObservation(space, {}))


# ---- what a user can get wrong ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"episodes_per_trial": 0}, "episodes_per_trial must be an integer >= 1, got 0"),
        ({"episodes_per_trial": 1.5}, "episodes_per_trial.*got 1.5"),
        ({"split": "trian"}, "split='trian'.*Did you mean 'train'"),
        ({"split": "ood"}, r"split='ood' does not exist in Counter, it has \['train', 'test'\]"),
        ({"tasks": []}, r"tasks must be a list of at least one task.*got \[\]"),
        ({"tasks": TASK}, "tasks must be a list"),
        ({"tasks": 5}, "tasks must be a list of at least one task.*got 5"),
        ({"tasks": [TASK, {"lvl": 1.0}]}, r"tasks\[1\].*missing: \['level'\], unknown: \['lvl'\]"),
        ({"tasks": [TASK, {"level": float("nan")}]}, r"tasks\[1\].*'level'.*finite, got nan"),
    ],
)
def test_bad_constructor_arguments(arguments: Any, message: Any) -> None:
    with pytest.raises(ValueError, match=message):
        TrialWrapper(Counter(), **arguments)


def test_base_environment_without_tasks() -> None:
    with pytest.raises(ValueError, match="env must be a MetaEnv"):
        TrialWrapper(gym.make("CartPole-v1"))


@pytest.mark.parametrize(
    "action_space, action, message",
    [
        (spaces.Box(-1, 1, (2,)), np.array([0.0, np.nan]), r"action for \w+ \(task .*\) must be finite, got .*nan.*diverged"),
        (spaces.Box(-1, 1, (2,)), np.array([0.0, -np.inf]), "must be finite, got .*inf"),
        (spaces.Box(-1, 1, (2,)), np.zeros(3), r"action must be an array of numbers of shape \(2,\), got"),
        (spaces.Box(-1, 1, (2,)), "left", "action must be an array of numbers.*left"),
        (spaces.Discrete(3), 3, r"action must be an integer in \[0, 2\].*got 3"),
        (spaces.Discrete(3), 0.5, "action must be an integer.*got 0.5"),
        (spaces.MultiDiscrete([2, 3]), np.array([2, 0]), "action must be an element of MultiDiscrete"),
        (spaces.MultiBinary(2), np.array([1, 0, 1]), "action must be an element of MultiBinary"),
        (spaces.MultiBinary(2), np.array([np.nan, 0.0]), "action must be an element of MultiBinary"),
        (spaces.MultiBinary(2), np.array([0.7, 0.0]), "action must be an element of MultiBinary"),
        (spaces.MultiBinary(2), np.array([256, 0]), "action must be an element of MultiBinary"),
        (spaces.MultiDiscrete([3, 3]), np.array([1.9, 0.0]), "action must be an element of MultiDiscrete"),
    ],
)
def test_bad_actions(action_space: Any, action: Any, message: Any) -> None:
    env = TrialWrapper(Counter(action_space=action_space), tasks=[TASK])
    env.reset(seed=0)
    with pytest.raises(ValueError, match=message):
        env.step(action)


def test_huge_but_finite_actions_are_no_error() -> None:
    env: Any = TrialWrapper(Counter(), tasks=[TASK])
    env.reset(seed=0)
    env.step(np.array([1e30], np.float32))  # its square overflows float32
    np.testing.assert_array_equal(env.meta_env.received[-1], [1.0])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_rewards_and_observations_of_the_base_environment_must_be_finite(value: Any) -> None:
    class BadReward(Counter):
        def _step(self, action: Any) -> Any:
            return (np.zeros(2), value, False, False, {})

    class BadObservation(Counter):
        def _step(self, action: Any) -> Any:
            return (np.array([0.0, value]), 0.0, False, False, {})

    for family, message in (
        (BadReward, f"BadReward .*returned the reward {value}"),
        (BadObservation, "BadObservation .*not finite"),
    ):
        env = TrialWrapper(family(), tasks=[TASK])
        env.reset(seed=0)
        with pytest.raises(ValueError, match=message):
            env.step(np.zeros(1))
    dictionary = OtherObservation(spaces.Dict({"a": spaces.Box(-1, 1, (1,))}), {"a": np.array([value])})
    with pytest.raises(ValueError, match="'a' is not finite"):
        TrialWrapper(dictionary, tasks=[TASK]).reset(seed=0)


def test_rewards_of_one_entry_are_numbers() -> None:
    class OneEntry(Counter):
        def _step(self, action: Any) -> Any:
            observation, _, *rest = super()._step(action)
            return (observation, -np.abs(action), *rest)

    env: Any = TrialWrapper(OneEntry(), tasks=[TASK])
    env.reset(seed=0)
    rewards = [transition[1] for transition in play(env, 2, 0.5)]
    assert rewards == [-0.5, -0.5] and all(isinstance(reward, float) for reward in rewards)
    for reward in (np.zeros(2), None, "much"):

        class NoNumber(Counter):
            def _step(self, action: Any, reward: Any = reward) -> Any:
                return np.zeros(2), reward, False, False, {}

        env = TrialWrapper(NoNumber(), tasks=[TASK])
        env.reset(seed=0)
        with pytest.raises(ValueError, match=r"NoNumber \(task .*\) returned the reward .*, which must be a number"):
            env.step(np.zeros(1))


def test_what_a_constructor_forgot_is_named() -> None:
    class NoSpaces(Counter):
        def __init__(self) -> None:
            MetaEnv.__init__(self, 5)

    class NothingAtAll(Counter):
        def __init__(self) -> None:
            pass

    for family, names in (
        (NoSpaces, "observation_space and no action_space"),
        (NothingAtAll, "horizon and no observation_space"),
    ):
        with pytest.raises(ValueError, match=rf"{family.__name__} has no {names}.*super\(\)\.__init__\(horizon\)"):
            TrialWrapper(family())


def test_wrong_observation_size() -> None:
    env = TrialWrapper(OtherObservation(spaces.Box(-9, 9, (3,)), np.zeros(2)), tasks=[TASK])
    with pytest.raises(ValueError, match=r"observation of 2 entries.*has 3"):
        env.reset(seed=0)


def test_order_of_calls() -> None:
    env: Any = TrialWrapper(Counter(), tasks=[TASK])
    with pytest.raises(ResetNeeded, match="reset"):
        env.step(np.zeros(1))
    env.reset(seed=0)
    play(env, 6)
    with pytest.raises(ResetNeeded, match="reset"):
        env.step(np.zeros(1))


# ---- MetaEnv itself ----------------------------------------------------------------------------------------------------


class Shapes(Counter):
    task_shapes = {"number": (), "matrix": (2, 2)}

    def _sample_task(self, split: Any) -> Any:
        return {"number": np.float32(1.5), "matrix": np.eye(2)}


def test_tasks_are_json_and_copies() -> None:
    env = Shapes()
    (task,) = env.sample_tasks(1)
    assert task == {"number": 1.5, "matrix": [[1.0, 0.0], [0.0, 1.0]]}
    assert json.loads(json.dumps(task)) == task
    env.set_task(task)
    task["matrix"][0][0] = 5.0
    env.get_task()["matrix"][0][0] = 6.0
    assert env.get_task()["matrix"][0][0] == 1.0


@pytest.mark.parametrize(
    "task, message",
    [
        ({"number": 1.0}, r"exactly the keys \['matrix', 'number'\].*missing: \['matrix'\]"),
        ({"number": 1.0, "matrix": np.eye(2), "more": 1}, r"unknown: \['more'\]"),
        ({"number": [1.0], "matrix": np.eye(2)}, r"'number'.*shape \(\), got shape \(1,\)"),
        ({"number": 1.0, "matrix": [[1, 2], [3]]}, r"'matrix'.*shape \(2, 2\)"),
        ({"number": "fast", "matrix": np.eye(2)}, "'number'.*numbers.*'fast'"),
        ({"number": None, "matrix": np.eye(2)}, "'number'.*numbers.*None"),
        ({"number": True, "matrix": np.eye(2)}, "'number'.*numbers.*True"),
        ({"number": np.inf, "matrix": np.eye(2)}, "'number'.*finite.*inf"),
        ([1.0], r"task must be a dict.*\[1.0\]"),
    ],
)
def test_bad_tasks(task: Any, message: Any) -> None:
    env = Shapes()
    env.set_task(env.sample_tasks(1)[0])
    with pytest.raises(ValueError, match=message):
        env.set_task(task)
    assert env.get_task()["number"] == 1.5  # the old task stands


@pytest.mark.parametrize("n", [0, -1, 1.5, True])
def test_bad_number_of_tasks(n: Any) -> None:
    with pytest.raises(ValueError, match=f"n must be an integer >= 1.*{n}"):
        Counter().sample_tasks(n)


@pytest.mark.parametrize("horizon", [0, 2.5, None])
def test_bad_horizon(horizon: Any) -> None:
    with pytest.raises(ValueError, match=f"horizon must be an integer >= 1.*{horizon}"):
        Counter(horizon=horizon)


def test_meta_env_order_of_calls() -> None:
    env = Counter()
    for call in (env.reset, env.get_task):
        with pytest.raises(RuntimeError, match="no task"):
            call()
    env.set_task(TASK)
    with pytest.raises(ResetNeeded):
        env.step(np.zeros(1))
    env.reset()
    env.set_task({"level": 3.0})
    with pytest.raises(ResetNeeded):  # not half an episode of each task
        env.step(np.zeros(1))
    env.reset()
    assert env.step(np.zeros(1))[1] == 31.0
    with pytest.raises(ValueError, match="options"):
        env.reset(options={"task": TASK})


def test_meta_env_truncates_at_the_horizon() -> None:
    env = Counter(horizon=2, length=9)
    env.set_task(TASK)
    env.reset()
    assert [env.step(np.zeros(1))[2:4] for _ in range(2)] == [(False, False), (False, True)]
    with pytest.raises(ResetNeeded):
        env.step(np.zeros(1))

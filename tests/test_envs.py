"""Registered ids, bandit, point robots, vectorised environments."""

import json
import pickle
import subprocess
import sys
import warnings
from types import MappingProxyType
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env as gym_check_env
from stable_baselines3.common.env_checker import check_env as sb3_check_env
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

from sb3_trmrl import evaluate_adaptation
from sb3_trmrl.common.env_util import make_meta_vec_env
from sb3_trmrl.envs import (
    META_ENVS,
    MetaBandit,
    MetaEnv,
    PointRobot,
    SparsePointRobot,
    Task,
    TokenSpace,
    TrialWrapper,
    register_envs,
)

IDS = list(META_ENVS)
FAMILIES: dict[str, Any] = dict(META_ENVS)


def test_ids_are_registered_once() -> None:
    assert len(META_ENVS) == 11
    specs = {env_id: gym.spec(env_id) for env_id in META_ENVS}
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # gymnasium warns when an id is registered over another
        register_envs()
    assert {env_id: gym.spec(env_id) for env_id in META_ENVS} == specs


@pytest.mark.parametrize("env_id", IDS)
def test_ids_are_complete(env_id: Any) -> None:
    env = gym.make(env_id, episodes_per_trial=3, split="test")
    trial = env.unwrapped
    assert isinstance(trial, TrialWrapper)
    assert type(trial.meta_env) is META_ENVS[env_id]
    assert isinstance(env.observation_space, TokenSpace)
    assert (trial.episodes_per_trial, trial.split) == (3, "test")
    env.close()


@pytest.mark.parametrize("env_id", IDS)
def test_checkers_have_nothing_to_say(env_id: Any) -> None:
    env = gym.make(env_id).unwrapped
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # Positions, velocities and rewards have no natural bounds; Gymnasium's own MuJoCo environments get this as well.
        warnings.filterwarnings("ignore", message=".*A Box observation space (minimum|maximum) value is -?infinity")
        gym_check_env(env, skip_render_check=True)  # rendering: test_mujoco_envs.py, where OpenGL may be missing
        sb3_check_env(env, warn=True)
    env.close()


@pytest.mark.parametrize("env_id", IDS)
def test_trials_of_every_family(env_id: Any) -> None:
    """Tokens stay in their space, the same seed gives the same trials bit for bit, trials end after two episodes."""

    def play(seed: Any) -> Any:
        env = gym.make(env_id, horizon=12)
        env.action_space.seed(seed)
        tokens, trials = [], []
        for reset in ({"seed": seed}, {}):
            token, _ = env.reset(**reset)
            over = False
            while not over:
                tokens.append(token)
                assert token in env.observation_space
                token, _, terminated, truncated, info = env.step(env.action_space.sample())
                over = terminated or truncated
            tokens.append(token)
            trials.append(info["trial"])
        env.close()
        return np.array(tokens), trials

    tokens, trials = play(3)
    again, trials_again = play(3)
    np.testing.assert_array_equal(tokens, again)
    assert trials == trials_again
    assert play(4)[1] != trials
    for trial in trials:
        assert len(trial["returns"]) == len(trial["lengths"]) == 2
        assert max(trial["lengths"]) <= 12
        assert json.loads(json.dumps(trial)) == trial


@pytest.mark.parametrize("env_id", IDS)
def test_sampling_and_setting_tasks(env_id: Any) -> None:
    env = FAMILIES[env_id]()
    env.np_random, _ = gym.utils.seeding.np_random(0)
    for split in env.splits:
        tasks = env.sample_tasks(3, split)
        assert json.loads(json.dumps(tasks)) == tasks
        for task in tasks:
            env.set_task(task)
            assert env.get_task() == task
        with pytest.raises(ValueError, match=r"missing: .*unknown: .*'nonsense'"):
            env.set_task({"nonsense": 1.0})
        key = next(iter(task))
        with pytest.raises(ValueError, match=f"'{key}'.*finite"):
            env.set_task({**task, key: np.full(np.shape(task[key]), np.nan)})
        assert env.get_task() == task
    # same generator state, same tasks
    first, second = FAMILIES[env_id](), FAMILIES[env_id]()
    for other in (first, second):
        other.np_random, _ = gym.utils.seeding.np_random(5)
    assert first.sample_tasks(4) == second.sample_tasks(4) != first.sample_tasks(4)


@pytest.mark.parametrize("env_id", IDS)
def test_unknown_split(env_id: Any) -> None:
    family = FAMILIES[env_id]()
    with pytest.raises(ValueError, match=r"split='trian' does not exist.*Did you mean 'train'"):
        family.sample_tasks(1, "trian")
    if "ood" not in family.splits:
        with pytest.raises(ValueError, match=r"split='ood' does not exist.*\['train', 'test'\]"):
            gym.make(env_id, split="ood")


def test_which_families_have_no_ood_range() -> None:
    assert [env_id for env_id, family in META_ENVS.items() if "ood" not in family.splits] == [
        "HalfCheetahDir-v0",
        "AntFwdBack-v0",
        "HumanoidDir-v0",
    ]


def test_unknown_keyword_is_an_error() -> None:
    with pytest.raises(TypeError, match="n_amrs"):
        gym.make("MetaBandit-v0", n_amrs=3)


@pytest.mark.parametrize("env_id", ["MetaBandit-v0", "PointRobot-v0", "HalfCheetahVel-v0"])
def test_unknown_render_mode(env_id: Any) -> None:
    with pytest.raises(ValueError, match=r"render_mode='ascii'.*\['rgb_array'\]"):
        FAMILIES[env_id](render_mode="ascii")


def test_wrong_id_in_the_entry_point() -> None:
    from sb3_trmrl.envs import make_trial_env

    with pytest.raises(ValueError, match=r"env_id='AntDri-v0'.*Did you mean 'AntDir-v0'"):
        make_trial_env("AntDri-v0")


def test_spec_is_json_and_picklable() -> None:
    env: Any = gym.make("PointRobot-v0", horizon=7)
    for spec in (gym.envs.registration.EnvSpec.from_json(env.spec.to_json()), pickle.loads(pickle.dumps(env.spec))):
        assert gym.make(spec).get_wrapper_attr("meta_env").horizon == 7


# ---- bandit ---------------------------------------------------------------------------------------------------------


def test_bandit_pays_with_the_arms_probabilities() -> None:
    env = MetaBandit(n_arms=3, horizon=3000)
    env.set_task({"probabilities": [0.0, 1.0, 0.25]})
    env.reset(seed=0)
    payout = np.array([[env.step(arm)[1] for _ in range(1000)] for arm in range(3)])
    assert set(np.unique(payout)) == {0.0, 1.0}
    assert payout[0].sum() == 0
    assert payout[1].sum() == 1000
    assert abs(payout[2].mean() - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 1000)  # four standard errors


def test_bandit_tells_nothing_but_through_actions_and_rewards() -> None:
    env = MetaBandit(n_arms=2, horizon=4)
    env.set_task({"probabilities": [0.25, 0.875]})
    observation, _ = env.reset(seed=0)
    steps = [env.step(arm) for arm in (0, 1, 0, 1)]
    np.testing.assert_array_equal([observation] + [step[0] for step in steps], np.zeros((5, 1)))
    assert [step[4]["regret"] for step in steps] == [0.625, 0.0, 0.625, 0.0]
    assert [step[2:4] for step in steps] == [(False, False)] * 3 + [(False, True)]


def test_bandit_tasks() -> None:
    env = MetaBandit()
    env.np_random, _ = gym.utils.seeding.np_random(0)
    for split, high in (("train", 1.0), ("test", 1.0), ("ood", 0.3)):
        probabilities = np.array([task["probabilities"] for task in env.sample_tasks(400, split)])
        assert probabilities.shape == (400, 5)
        assert 0 <= probabilities.min() < 0.01 * high
        assert 0.99 * high < probabilities.max() <= high
        assert abs(probabilities.mean() / high - 0.5) < 0.03  # 4.6 standard errors
    with pytest.raises(ValueError, match=r"'probabilities'.*\[0, 1\].*1.5"):
        env.set_task({"probabilities": [0.5, 0.5, 0.5, 0.5, 1.5]})
    with pytest.raises(ValueError, match="n_arms must be an integer >= 2, got 1"):
        MetaBandit(n_arms=1)


# ---- point robots -----------------------------------------------------------------------------------------------------


def test_point_robot_by_hand() -> None:
    env = PointRobot(horizon=3)
    env.set_task({"goal": [1.0, 0.5]})
    start, _ = env.reset(seed=0)
    position, reward, terminated, truncated, info = env.step(np.array([1.0, -0.5], np.float32))
    np.testing.assert_allclose(position - start, [0.1, -0.05], rtol=0, atol=1e-15)
    assert reward == -np.hypot(1.0 - position[0], 0.5 - position[1])
    assert info == {"distance": -reward, "success": False}
    assert (terminated, truncated) == (False, False)


def test_sparse_point_robot_by_hand() -> None:
    env = SparsePointRobot()
    env.set_task({"goal": [0.0, 1.0]})
    np.testing.assert_array_equal(env.reset(seed=0)[0], [0, 0])
    # y = 0.05, 0.15, ... 0.95: in the radius of 0.2 from the ninth step on
    steps = [env.step(np.array([0.0, dy])) for dy in [0.5] + [1.0] * 9]
    np.testing.assert_allclose([step[1] for step in steps], [0] * 8 + [0.85, 0.95], atol=1e-12)
    assert [step[4]["success"] for step in steps] == [False] * 8 + [True] * 2


def test_point_robot_rewards_are_array_functions() -> None:
    distance = np.array([0.0, 0.2, 0.3])
    np.testing.assert_array_equal(PointRobot.rewards(distance), [-0.0, -0.2, -0.3])
    np.testing.assert_array_equal(SparsePointRobot.rewards(distance), [1.0, 0.8, 0.0])


def test_point_robot_tasks_and_starts() -> None:
    env = PointRobot()
    env.np_random, _ = gym.utils.seeding.np_random(0)
    for split in ("train", "test"):
        goals = np.array([task["goal"] for task in env.sample_tasks(500, split)])
        assert np.abs(goals).max() <= 1
        assert (goals.min(axis=0) < -0.97).all() and (goals.max(axis=0) > 0.97).all()
        assert np.abs(goals.mean(axis=0)).max() < 0.1  # 3.9 standard errors
    goals = np.array([task["goal"] for task in env.sample_tasks(2000, "ood")])
    norm = np.abs(goals).max(axis=1)
    assert 1 <= norm.min() < 1.01 and 1.49 < norm.max() <= 1.5
    # uniform over the frame: the part within max-norm 1.25 has area (1.25^2 - 1) / (1.5^2 - 1) = 0.45
    assert abs((norm < 1.25).mean() - 0.45) < 0.045
    # every side is hit alike
    assert abs((np.abs(goals[:, 0]) > np.abs(goals[:, 1])).mean() - 0.5) < 0.05
    assert abs((goals > 0).mean() - 0.5) < 0.05
    env.set_task({"goal": [0.0, 0.0]})
    starts = np.array([env.reset()[0] for _ in range(500)])
    assert np.abs(starts).max() <= 1
    assert np.abs(starts.mean(axis=0)).max() < 0.1


def test_sparse_point_robot_tasks() -> None:
    env = SparsePointRobot()
    env.np_random, _ = gym.utils.seeding.np_random(0)
    for split, sign in (("train", 1), ("test", 1), ("ood", -1)):
        goals = np.array([task["goal"] for task in env.sample_tasks(300, split)])
        np.testing.assert_allclose(np.linalg.norm(goals, axis=1), 1.0)
        assert (sign * goals[:, 1] >= 0).all()
        assert goals[:, 0].min() < -0.99 and goals[:, 0].max() > 0.99


@pytest.mark.parametrize("env_id", ["MetaBandit-v0", "PointRobot-v0", "SparsePointRobot-v0"])
def test_plain_images(env_id: Any) -> None:
    env: Any = gym.make(env_id, render_mode="rgb_array")
    env.reset(seed=0)
    before = env.render()
    env.step(0 if env_id == "MetaBandit-v0" else np.ones(2, np.float32))
    image = env.render()
    assert image.shape == (240, 240, 3)
    assert image.dtype == np.uint8
    assert (image != before).any()
    assert gym.make(env_id).unwrapped.render_mode is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*A Box observation space (minimum|maximum) value is -?infinity")
        gym_check_env(env.unwrapped)  # with its rendering checks


@pytest.mark.parametrize("n_arms", [2, 100, 240])
def test_bars_of_many_arms(n_arms: int) -> None:
    env: Any = gym.make("MetaBandit-v0", n_arms=n_arms, render_mode="rgb_array")
    env.reset(seed=0, options={"task": {"probabilities": [0.5] + [0.0] * (n_arms - 1)}})
    image = env.render()
    height = (image != 255).any(axis=2).sum(axis=0)  # of the bars, in each column
    width = 240 // n_arms
    assert (height[: max(1, width - 1)] == 120).all() and height[width:].max() == 1


# ---- vectorised environments --------------------------------------------------------------------------------------------


class Blind(MetaEnv):
    """Has the keyword ``render_mode``, and no mode."""

    task_shapes = MappingProxyType({"p": ()})

    def __init__(self, horizon: int = 5, render_mode: str | None = None):
        super().__init__(horizon, render_mode)
        self.observation_space = self.action_space = spaces.Box(-1.0, 1.0, (1,))

    def _sample_task(self, split: str) -> Task:
        return {"p": self.np_random.uniform()}

    def _reset(self) -> np.ndarray:
        return np.zeros(1)

    def _step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        return np.zeros(1), 0.0, False, False, {}


def test_a_family_with_the_keyword_render_mode_and_without_modes() -> None:
    def make(**env_kwargs: Any) -> gym.Env[Any, Any]:
        return TrialWrapper(Blind(**env_kwargs))

    gym.register("Blind-v0", entry_point=make)
    try:
        assert make_meta_vec_env("Blind-v0", 2).num_envs == 2
        with pytest.raises(ValueError, match="render_mode='rgb_array' is unknown to Blind"):
            make_meta_vec_env("Blind-v0", 2, env_kwargs=dict(render_mode="rgb_array"))
        with pytest.raises(ValueError, match="horizon must be"):
            make_meta_vec_env("Blind-v0", 2, env_kwargs=dict(horizon=0))
    finally:
        del gym.registry["Blind-v0"]


def test_slots_meet_their_own_tasks() -> None:
    def tasks(**kwargs: Any) -> Any:
        env = make_meta_vec_env("PointRobot-v0", n_envs=3, **kwargs)
        env.reset()
        goals = [task["goal"] for task in env.env_method("get_task")]
        env.close()
        return goals

    goals = tasks(seed=0)
    assert len(np.unique(goals, axis=0)) == 3
    assert tasks(seed=0) == goals
    assert tasks(seed=1)[:2] == goals[1:]  # SB3: slot i has seed + i
    assert tasks(seed=0, start_index=1)[:2] == goals[1:]
    assert tasks() != tasks()


def test_one_task_for_each_slot() -> None:
    tasks = [{"goal": [0.0, 0.0]}, {"goal": [0.5, 0.0]}]
    kwargs = {"episodes_per_trial": 1, "horizon": 1}
    env = make_meta_vec_env("PointRobot-v0", n_envs=2, seed=0, tasks=tasks, env_kwargs=kwargs)
    env.reset()
    for _ in range(3):
        infos = env.step(np.zeros((2, 2)))[3]
        assert [info["trial"]["task"] for info in infos] == tasks
        assert [info["episode"]["l"] for info in infos] == [1, 1]
    env.close()


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"tasks": [{"goal": [0, 0]}]}, "got 1 tasks for n_envs=2"),
        ({"tasks": [{"goal": [0, 0]}] * 2, "env_kwargs": {"tasks": []}}, "either tasks.*or env_kwargs"),
        ({"tasks": [{"goal": [0, 0]}, {"gaol": 0}]}, "missing: .'goal'.*unknown: .'gaol'"),
        ({"n_envs": 0}, "n_envs must be an integer >= 1, got 0"),
        ({"env_kwargs": {"split": "odd"}}, "split='odd'.*Did you mean 'ood'"),
    ],
)
def test_bad_vec_env_arguments(arguments: Any, message: Any) -> None:
    with pytest.raises(ValueError, match=message):
        make_meta_vec_env("PointRobot-v0", **{"n_envs": 2, **arguments})


def test_per_slot_tasks_need_a_trial_environment() -> None:
    with pytest.raises(ValueError, match=r"tasks.*CartPole-v1"):
        make_meta_vec_env("CartPole-v1", n_envs=1, tasks=[{}])
    env: Any = make_meta_vec_env("CartPole-v1", n_envs=2)  # a plain environment is welcome
    assert env.reset().shape == (2, 4)


def test_ids_that_name_their_module(tmp_path: Any, monkeypatch: Any) -> None:
    (tmp_path / "ids_of_a_module.py").write_text(
        "import gymnasium as gym\n"
        "gym.register('FarPointRobot-v0', entry_point='sb3_trmrl.envs:make_trial_env', kwargs={'env_id': 'PointRobot-v0'})\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    env = make_meta_vec_env("ids_of_a_module:FarPointRobot-v0", 2, env_kwargs={"episodes_per_trial": 2})
    assert env.get_attr("episodes_per_trial") == [2, 2]
    result = evaluate_adaptation(lambda obs: np.zeros((len(obs), 2)), "ids_of_a_module:FarPointRobot-v0", 2, 2)
    assert result.settings["env_id"] == "FarPointRobot-v0"
    gym.registry.pop("FarPointRobot-v0")


def test_callable_and_monitor_files(tmp_path: Any) -> None:
    env = make_meta_vec_env(
        lambda **kwargs: TrialWrapper(PointRobot(horizon=2), **kwargs),
        n_envs=2,
        monitor_dir=str(tmp_path),
        env_kwargs={"episodes_per_trial": 3},
    )
    assert isinstance(env, DummyVecEnv)
    env.reset()
    for _ in range(6):
        _, _, dones, infos = env.step(np.zeros((2, 2)))
    assert dones.all()
    assert infos[0]["trial"]["lengths"] == [2, 2, 2]
    assert infos[0]["TimeLimit.truncated"] is True
    env.close()
    assert len(list(tmp_path.glob("*.monitor.csv"))) == 2


@pytest.mark.parametrize("start_method", ["forkserver", "spawn"])
def test_subprocesses(start_method: Any) -> None:
    kwargs: dict[str, Any] = {
        "n_envs": 2,
        "seed": 0,
        "env_kwargs": {"horizon": 3},
        "tasks": [{"velocity": 1.0}, {"velocity": 2.0}],
    }
    env = make_meta_vec_env(
        "HalfCheetahVel-v0", vec_env_cls=SubprocVecEnv, vec_env_kwargs={"start_method": start_method}, **kwargs
    )
    twin = make_meta_vec_env("HalfCheetahVel-v0", **kwargs)
    try:
        assert env.observation_space == twin.observation_space
        np.testing.assert_array_equal(env.reset(), twin.reset())
        for _ in range(7):
            action = np.random.default_rng(0).uniform(-1, 1, (2, 6)).astype(np.float32)
            step, twin_step = env.step(action), twin.step(action)
            np.testing.assert_array_equal(step[0], twin_step[0])
            np.testing.assert_array_equal(step[1].astype(np.float32), twin_step[1])  # SubprocVecEnv keeps float64
            np.testing.assert_array_equal(step[2], twin_step[2])
            assert [info.get("trial") for info in step[3]] == [info.get("trial") for info in twin_step[3]]
    finally:
        env.close()


def test_gymnasium_vector_environment() -> None:
    env = gym.make_vec("PointRobot-v0", num_envs=2, vectorization_mode="sync", horizon=2)
    tokens, _ = env.reset(seed=0)
    assert tokens.shape == (2, 6)
    assert isinstance(env.single_observation_space, spaces.Box)
    for _ in range(4):
        _, _, terminated, truncated, _ = env.step(np.zeros((2, 2), np.float32))
    assert truncated.all() and not terminated.any()
    env.close()


def test_importing_registers_and_changes_nothing_else() -> None:
    script = """
import os, random, warnings
import gymnasium, numpy, torch, stable_baselines3, mujoco
before = (set(gymnasium.registry), dict(os.environ), random.getstate(), str(numpy.random.get_state()), list(warnings.filters),
          torch.get_default_dtype(), torch.initial_seed())
import sb3_trmrl.envs
after = (set(gymnasium.registry), dict(os.environ), random.getstate(), str(numpy.random.get_state()), list(warnings.filters),
         torch.get_default_dtype(), torch.initial_seed())
assert before[1:] == after[1:]
assert len(after[0] - before[0]) >= 11 and before[0] < after[0]
assert "OpenGL" not in __import__("sys").modules
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)

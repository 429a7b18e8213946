"""MujocoVecEnv against DummyVecEnv of the same environments, bit for bit, and what is its own: threads, errors, close."""

import copy
import gc
import os
import pickle
import subprocess
import sys
import threading
import time
import warnings
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium.wrappers import TimeLimit
from stable_baselines3.common.monitor import Monitor, load_results
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_trmrl import TrMRLPPO
from sb3_trmrl.common.env_util import make_meta_vec_env
from sb3_trmrl.common.vec_env import MujocoVecEnv, mujoco_vec_env
from sb3_trmrl.envs import META_ENVS, HalfCheetahVel, HumanoidDir, MujocoMetaEnv, PointRobot, TrialWrapper

FAMILIES = [env_id for env_id, family in META_ENVS.items() if issubclass(family, MujocoMetaEnv)]
EVENTS = {"inner_episode", "trial", "episode", "terminal_observation", "TimeLimit.truncated", "unstable", "is_success"}
CHEETAH = "HalfCheetahVel-v0"


def make(env_id: str = CHEETAH, n_envs: int = 2, n_threads: int | None = 1, seed: int = 3, **kwargs: Any) -> Any:
    """A MujocoVecEnv, or with ``n_threads=None`` the DummyVecEnv of the same environments."""
    env_kwargs = {"horizon": 12, "episodes_per_trial": 2, **kwargs.pop("env_kwargs", {})}
    chosen = {"vec_env_cls": DummyVecEnv} if n_threads is None else {"vec_env_kwargs": {"n_threads": n_threads}}
    return make_meta_vec_env(env_id, n_envs=n_envs, seed=seed, env_kwargs=env_kwargs, **chosen, **kwargs)


class Wind(HalfCheetahVel):
    """The task is a force on the torso, too, which no control says."""

    def _reset(self) -> np.ndarray:
        observation = super()._reset()
        self.data.xfrc_applied[1, 0] = 20.0 * self._task["velocity"]
        return observation


class Gusts(HalfCheetahVel):
    def _step_physics(self) -> bool:
        self.data.qfrc_applied[0] = 20.0
        return super()._step_physics()


def test_families_with_forces_of_their_own_are_refused() -> None:
    env = MujocoVecEnv([lambda: TrialWrapper(Wind())])
    with pytest.raises(ValueError, match=r"Wind of slot 0 has set forces.*DummyVecEnv"):
        env.reset()
    with pytest.raises(ValueError, match=r"would pass by Gusts._step_physics\(\) of slot 0.*DummyVecEnv"):
        MujocoVecEnv([lambda: TrialWrapper(Gusts())])
    assert not MujocoVecEnv.can_step([TrialWrapper(Gusts())])


def test_forces_of_a_family_are_part_of_its_state() -> None:
    env, other = TrialWrapper(Wind()), TrialWrapper(Wind())
    env.reset(seed=0)
    env.step(np.zeros(6, np.float32))
    state = env.get_trial_state()
    assert state is not None
    other.reset(seed=1)
    other.set_trial_state(state)
    for _ in range(20):
        expected, found = (one.step(np.zeros(6, np.float32)) for one in (env, other))
        np.testing.assert_array_equal(expected[0], found[0])
    del state["meta_env"]["family"]["user_inputs"]  # as files of earlier states of 0.1.0 are
    other.set_trial_state(state)
    assert not other.meta_env.data.xfrc_applied.any()  # type: ignore[attr-defined]


def random_actions(env: Any, seed: int = 0) -> np.ndarray:
    # Beyond the bounds at times, so that clipping matters
    rng = np.random.default_rng(seed)
    return rng.uniform(-1.3, 1.3, (env.num_envs, *env.action_space.shape)).astype(np.float32)


def assert_infos_equal(expected: dict[str, Any], found: dict[str, Any]) -> None:
    """All that happens is in both; terms of the reward are in DummyVecEnv's only, except at the end of an episode."""
    if "inner_episode" not in expected:
        expected = {key: value for key, value in expected.items() if key in EVENTS}
    expected, found = dict(expected), dict(found)
    np.testing.assert_array_equal(expected.pop("terminal_observation", None), found.pop("terminal_observation", None))
    for info in (expected, found):
        if "episode" in info:
            info["episode"] = {key: value for key, value in info["episode"].items() if key != "t"}  # wall clock
    assert expected == found


def assert_steps_equal(expected: Any, found: Any) -> None:
    for ours, theirs in zip(found[:3], expected[:3], strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)
    for ours, theirs in zip(found[3], expected[3], strict=True):
        assert_infos_equal(theirs, ours)


# ---- the same as DummyVecEnv -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_envs", [1, 2, 7, 64])
@pytest.mark.parametrize("env_id", FAMILIES)
def test_equals_dummy_vec_env_bit_for_bit(env_id: str, n_envs: int) -> None:
    expected, one, two = [make(env_id, n_envs, n_threads) for n_threads in (None, 1, 2)]
    assert isinstance(expected, DummyVecEnv) and type(one) is MujocoVecEnv and type(two) is MujocoVecEnv
    first = expected.reset()
    np.testing.assert_array_equal(one.reset(), first)
    np.testing.assert_array_equal(two.reset(), first)
    trials = 0
    for step in range(60 if n_envs < 64 else 27):
        actions = random_actions(expected, step)
        wanted = expected.step(actions)
        assert_steps_equal(wanted, one.step(actions))
        assert_steps_equal(wanted, two.step(actions))
        trials += int(wanted[2].sum())
        assert one.env_method("get_task") == expected.env_method("get_task")
    assert trials >= n_envs  # at least one trial in each slot
    for env in (expected, one, two):
        env.close()


@pytest.mark.parametrize("env_id", ["AntDir-v0", "HumanoidDir-v0", "Walker2DRandParams-v0", "HopperRandParams-v0"])
def test_early_terminations_equal_those_of_dummy_vec_env(env_id: str) -> None:
    expected, env = [make(env_id, 4, n_threads, env_kwargs={"horizon": 150}) for n_threads in (None, 2)]
    expected.reset()
    env.reset()
    fallen, terminated = 0, 0
    for step in range(260):
        actions = random_actions(env, step)
        wanted = expected.step(actions)
        assert_steps_equal(wanted, env.step(actions))
        fallen += sum(info["inner_episode"]["l"] < 150 for info in wanted[3] if "inner_episode" in info)
        terminated += sum(not info["TimeLimit.truncated"] for info, done in zip(wanted[3], wanted[2], strict=True) if done)
    assert fallen >= 2
    assert terminated >= 1 or env_id == "AntDir-v0"


def test_trajectories_do_not_depend_on_the_number_of_threads() -> None:
    ends = []
    for n_threads in (1, 2, 3, 16):
        env = make("AntDir-v0", 7, n_threads)
        env.reset()
        for step in range(30):
            result = env.step(random_actions(env, step))
        ends.append(result[0])
        env.close()
    for end in ends[1:]:
        np.testing.assert_array_equal(end, ends[0])


def test_results_are_not_overwritten_by_the_next_step() -> None:
    env = make(n_envs=3, n_threads=2)
    first = env.reset()
    kept = first.copy()
    results = [env.step(random_actions(env, step)) for step in range(3)]
    copies = [[part.copy() for part in result[:3]] for result in results]
    env.step(random_actions(env, 3))
    np.testing.assert_array_equal(first, kept)
    for result, copied in zip(results, copies, strict=True):
        for part, kept in zip(result, copied, strict=False):
            np.testing.assert_array_equal(part, kept)


def test_options_and_seeds_at_reset() -> None:
    task = {"velocity": 2.5}
    expected, env = [make(n_threads=n_threads) for n_threads in (None, 1)]
    for vec_env in (expected, env):
        vec_env.set_options({"task": task})
    np.testing.assert_array_equal(env.reset(), expected.reset())
    assert env.env_method("get_task") == [task, task]
    for _ in range(5):
        assert_steps_equal(expected.step(random_actions(env)), env.step(random_actions(env)))
    for vec_env in (expected, env):  # in mid-trial
        vec_env.seed(77)
    np.testing.assert_array_equal(env.reset(), expected.reset())
    assert env.env_method("get_task") == expected.env_method("get_task") != [task, task]
    assert env.reset_infos == expected.reset_infos


def test_one_task_for_each_slot_and_split() -> None:
    tasks = [{"velocity": 0.5}, {"velocity": 1.5}]
    env = make(n_threads=2, tasks=tasks)
    env.reset()
    for step in range(48):
        infos = env.step(random_actions(env, step))[3]
        if "trial" in infos[0]:
            assert [info["trial"]["task"] for info in infos] == tasks
    env = MujocoVecEnv([partial(gym.make, CHEETAH, split=split, horizon=2) for split in ("train", "ood")])
    env.reset()
    velocities = [task["velocity"] for task in env.env_method("get_task")]
    assert velocities[0] <= 3 <= velocities[1]


@pytest.mark.parametrize("env_id", FAMILIES)
def test_equal_models_are_shared_unless_tasks_change_them(env_id: str) -> None:
    def make_env(colour: float) -> Any:
        env = gym.make(env_id)
        env.get_wrapper_attr("meta_env").model.geom_rgba[0, 0] = colour
        return env

    env = MujocoVecEnv([partial(make_env, colour) for colour in (0.1, 0.2, 0.1)])
    models = [meta_env.model for meta_env in env.get_attr("meta_env")]
    assert models[1] is not models[0] and models[1].geom_rgba[0, 0] == np.float32(0.2)
    assert (models[2] is models[0]) is ("RandParams" not in env_id)


class Icy(HalfCheetahVel):
    """Changes its model where a family need not expect that anybody looks."""

    def sample_initial_state(self) -> tuple[np.ndarray, np.ndarray]:
        self.model.geom_friction[:] = self.np_random.uniform(0.1, 1.0)
        return super().sample_initial_state()


def test_a_subclass_that_changes_its_model_keeps_one_for_each_slot() -> None:
    expected, env = [cls([lambda: TrialWrapper(Icy(horizon=9)) for _ in range(3)]) for cls in (DummyVecEnv, MujocoVecEnv)]
    for vec_env in (expected, env):
        vec_env.seed(0)
    np.testing.assert_array_equal(env.reset(), expected.reset())
    assert len({meta_env.model.geom_friction[0, 0] for meta_env in env.get_attr("meta_env")}) == 3
    for step in range(30):
        actions = random_actions(env, step)
        assert_steps_equal(expected.step(actions), env.step(actions))


# ---- blow-ups ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gravity", [np.nan, -1e12, -1e13, -1e300])
@pytest.mark.parametrize("env_id", FAMILIES)
def test_a_blow_up_ends_one_episode_with_one_warning(env_id: str, gravity: float, tmp_path: Any, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)  # MuJoCo writes its own warning into a log file of the working folder
    monkeypatch.setattr(mujoco_vec_env, "share_models", lambda slots: None)  # so that one can be broken
    # Slot 1 shares its thread's scratch space with the slots before and after it
    expected, env, healthy = [make(env_id, 3, n_threads) for n_threads in (None, 1, 1)]
    for vec_env in (expected, env, healthy):
        vec_env.reset()
    for step in range(4):
        actions = random_actions(env, step)
        assert_steps_equal(expected.step(actions), env.step(actions))
        healthy.step(actions)
    for vec_env in (expected, env):
        vec_env.get_attr("meta_env")[1].model.opt.gravity[2] = gravity
    before = healthy.env_method("get_task")
    unstable = 0
    for step in range(6):
        actions = random_actions(env, step)
        good = healthy.step(actions)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = env.step(actions)
        said = [str(one.message) for one in caught if "blew up" in str(one.message)]
        assert len(said) == (1 if step == 0 else 0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert_steps_equal(expected.step(actions), found)
        assert np.isfinite(found[0]).all()
        for slot in (0, 2):
            np.testing.assert_array_equal(found[0][slot], good[0][slot])
            assert found[1][slot] == good[1][slot]
        if "unstable" in found[3][1]:
            unstable += 1
            assert found[1][1] == 0.0
            assert found[3][1]["inner_episode"]["l"] == (5 if step == 0 else 1)
    assert unstable == 6
    assert env.env_method("get_task")[0] == before[0]


@pytest.mark.parametrize("env_id", FAMILIES)
def test_a_blow_up_by_its_state_leaves_the_others_alone(env_id: str, tmp_path: Any, monkeypatch: Any) -> None:
    """With the model that slots have in common, where they do."""
    monkeypatch.chdir(tmp_path)
    expected, env, healthy = [make(env_id, 3, n_threads) for n_threads in (None, 1, 1)]
    for vec_env in (expected, env, healthy):
        vec_env.reset()
    model = env.get_attr("meta_env")[0].model
    expected.get_attr("meta_env")[1].data.qvel[0] = 1e11
    env._physics.state[1, 1 + model.nq] = 1e11
    for step in range(20):
        actions = random_actions(env, step)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = env.step(actions)
        assert len(caught) == ("unstable" in found[3][1]) == (step == 0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert_steps_equal(expected.step(actions), found)
        good = healthy.step(actions)
        for slot in (0, 2):
            np.testing.assert_array_equal(found[0][slot], good[0][slot])
            assert found[1][slot] == good[1][slot]


class Feeling(HumanoidDir):
    """Observes its sensors, too."""

    def observe(self, state: Any) -> np.ndarray:
        return np.concatenate([super().observe(state), state.sensordata], axis=-1)


@pytest.mark.parametrize(("family", "gravity"), [(HalfCheetahVel, -1e10), (Feeling, -1e12)])
def test_a_blow_up_in_a_middle_physics_step_and_one_with_sensors(
    family: Any, gravity: float, tmp_path: Any, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    expected, env = [cls([lambda: TrialWrapper(family(), 1)]) for cls in (DummyVecEnv, MujocoVecEnv)]
    for vec_env in (expected, env):
        vec_env.seed(0)
        vec_env.reset()
        vec_env.step(random_actions(vec_env))
        vec_env.get_attr("meta_env")[0].model.opt.gravity[2] = gravity
    for step in range(4):
        actions = random_actions(env, step)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            wanted = expected.step(actions)
            assert "unstable" in wanted[3][0]
            assert_steps_equal(wanted, env.step(actions))


# ---- Monitor ------------------------------------------------------------------------------------------------------------


def test_monitor_files(tmp_path: Any) -> None:
    frames = []
    for name, n_threads in (("dummy", None), ("native", 2)):
        env = make(
            n_envs=3, n_threads=n_threads, monitor_dir=str(tmp_path / name), monitor_kwargs={"info_keywords": ("trial",)}
        )
        env.reset()
        returns = []
        for step in range(52):
            _, _, dones, infos = env.step(random_actions(env, step))
            returns += [info["episode"]["r"] for info, done in zip(infos, dones, strict=True) if done]
        assert env.env_method("get_total_steps") == [52] * 3
        assert env.env_method("get_episode_lengths") == [[24, 24]] * 3
        env.reset()  # early
        assert env.env_method("get_total_steps") == [52] * 3
        env.step(random_actions(env))
        assert env.env_method("get_total_steps") == [53] * 3
        env.close()
        frame = load_results(str(tmp_path / name))
        assert sorted(frame["r"]) == sorted(returns)
        frames.append(sorted(zip(frame["r"], frame["l"], frame["trial"], strict=True)))
    assert frames[0] == frames[1]
    assert len(frames[0]) == 6


def test_without_monitor() -> None:
    env = MujocoVecEnv([lambda: gym.make(CHEETAH, horizon=2) for _ in range(2)])
    env.reset()
    infos = [env.step(random_actions(env, step))[3][0] for step in range(4)]
    assert "episode" not in infos[-1]
    assert infos[-1]["trial"]["lengths"] == [2, 2]
    assert env.env_is_wrapped(Monitor) == [False, False]


def test_early_resets_can_be_forbidden() -> None:
    env = make(monitor_kwargs={"allow_early_resets": False})
    env.reset()
    env.step(random_actions(env))
    with pytest.raises(RuntimeError, match="before done"):
        env.reset()


# ---- SB3's interface ------------------------------------------------------------------------------------------------------


def test_attributes_and_methods() -> None:
    env = make(n_envs=3, n_threads=2)
    env.reset()
    assert env.get_attr("episodes_per_trial") == [2, 2, 2]
    assert env.get_attr("split", indices=[0, 2]) == ["train", "train"]
    assert env.has_attr("set_tasks") and not env.has_attr("sett_tasks")
    env.set_attr("note", 7, indices=1)
    assert env.get_attr("note", indices=1) == [7]
    assert not env.has_attr("note")
    assert env.env_is_wrapped(Monitor) == [True] * 3
    assert env.env_is_wrapped(TimeLimit, indices=0) == [False]
    assert env.seed(5) == [5, 6, 7]
    env.env_method("set_tasks", [{"velocity": 1.0}], indices=[1])
    for step in range(24):
        env.step(random_actions(env, step))
    assert env.env_method("get_task", indices=1) == [{"velocity": 1.0}]


def test_simulations_can_be_looked_at() -> None:
    expected, env = [make("HumanoidDir-v0", n_threads=n_threads) for n_threads in (None, 2)]
    expected.reset()
    env.reset()
    for step in range(5):
        expected.step(random_actions(env, step))
        env.step(random_actions(env, step))
    for wanted, found in zip(expected.get_attr("meta_env"), env.get_attr("meta_env"), strict=True):
        for name in ("time", "qpos", "qvel", "sensordata"):
            np.testing.assert_array_equal(getattr(found.data, name), getattr(wanted.data, name))
    # and looking changes nothing
    assert_steps_equal(expected.step(random_actions(env)), env.step(random_actions(env)))


def test_a_slot_can_be_reset_and_stepped_by_itself() -> None:
    expected, env = [make(n_envs=2, n_threads=n_threads) for n_threads in (None, 1)]
    for vec_env in (expected, env):
        vec_env.reset()
        vec_env.step(random_actions(env))
        vec_env.env_method("reset", seed=9, indices=1)
        vec_env.env_method("step", random_actions(env)[0], indices=1)
    for step in range(30):
        actions = random_actions(env, step)
        assert_steps_equal(expected.step(actions), env.step(actions))


def test_images() -> None:
    env = make(n_envs=2)
    env.reset()
    before = None
    try:
        before = env.get_images()
    except RuntimeError as error:
        pytest.skip(f"no OpenGL here: {error}")
    for step in range(10):
        env.step(random_actions(env, step))
    after = env.get_images()
    assert after[0].shape == (480, 480, 3)
    assert (after[0] != before[0]).any() and (after[0] != after[1]).any()
    assert env.render().shape == (960, 480, 3)  # SB3 puts two images above each other
    blind = make(env_kwargs={"render_mode": None})
    with pytest.warns(UserWarning, match="render_mode='rgb_array'"):
        assert blind.get_images() == [None, None]


def test_training_is_deterministic_and_equals_that_on_dummy_vec_env() -> None:
    weights = []
    for n_threads in (None, 2, 2, 1):
        env = make(n_envs=4, n_threads=n_threads, seed=0)
        model = TrMRLPPO("TrMRLPolicy", env, n_steps=32, batch_size=32, n_epochs=1, seed=0, device="cpu")
        model.learn(256)
        weights.append(th.cat([parameter.flatten() for parameter in model.policy.parameters()]))
        assert model.ep_info_buffer is not None and len(model.ep_info_buffer) == 8
        env.close()
    for other in weights[1:]:
        assert th.equal(weights[0], other)


# ---- which environments ----------------------------------------------------------------------------------------------------


class OwnStep(HalfCheetahVel):
    """A family that steps in its own way."""

    def _step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        return super()._step(0.5 * action)


class WithConstant(HalfCheetahVel):
    """A family with a constructor argument."""

    def __init__(self, weight: float = 1.0, horizon: int = 5):
        super().__init__(horizon)
        self.weight = weight


SAME = TrialWrapper(HalfCheetahVel())


@pytest.mark.parametrize(
    "env_fns, message",
    [
        ([], "at least one"),
        ([lambda: SAME, lambda: SAME], "new environment at each call"),
        ([lambda: gym.make("PointRobot-v0")], "MujocoMetaEnv.*slot 0.*PointRobot.*DummyVecEnv"),
        ([lambda: gym.make("CartPole-v1")], "TrialWrapper.*slot 0.*DummyVecEnv"),
        ([lambda: gym.make(CHEETAH), lambda: TimeLimit(gym.make(CHEETAH), 5)], "slot 1.*TimeLimit.*DummyVecEnv"),
        ([lambda: TrialWrapper(TimeLimit(HalfCheetahVel(), 5))], "without wrappers.*slot 0.*TimeLimit.*DummyVecEnv"),
        ([lambda: Monitor(Monitor(gym.make(CHEETAH)))], "Monitor twice.*DummyVecEnv"),
        ([lambda: TrialWrapper(OwnStep())], r"OwnStep._step\(\) of slot 0.*DummyVecEnv"),
        ([lambda: gym.make(CHEETAH), lambda: gym.make("AntDir-v0")], "one family.*HalfCheetahVel.*slot 1 AntDir.*DummyVecEnv"),
        (
            [lambda: gym.make(CHEETAH), lambda: gym.make(CHEETAH, horizon=9)],
            "same horizon, slot 0 has 200, slot 1 9.*DummyVecEnv",
        ),
        (
            [lambda: gym.make(CHEETAH), lambda: gym.make(CHEETAH, episodes_per_trial=3)],
            "same episodes_per_trial, slot 0 has 2, slot 1 3.*DummyVecEnv",
        ),
        (
            [lambda: TrialWrapper(WithConstant()), lambda: TrialWrapper(WithConstant(2.0))],
            "same weight.*1.0.*2.0.*DummyVecEnv",
        ),
    ],
)
def test_what_it_cannot_step(env_fns: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MujocoVecEnv(env_fns)


@pytest.mark.parametrize("n_threads", [0, -1, 1.5, True])
def test_bad_number_of_threads(n_threads: Any) -> None:
    with pytest.raises(ValueError, match="n_threads must be an integer >= 1"):
        MujocoVecEnv([lambda: gym.make(CHEETAH)], n_threads=n_threads)


def test_the_default_of_make_meta_vec_env() -> None:
    for env_id in FAMILIES:
        assert type(make_meta_vec_env(env_id, n_envs=2)) is MujocoVecEnv
    for env_id in ("PointRobot-v0", "MetaBandit-v0", "CartPole-v1"):
        assert type(make_meta_vec_env(env_id, n_envs=2)) is DummyVecEnv
    assert type(make_meta_vec_env(lambda: TrialWrapper(OwnStep()), n_envs=2)) is DummyVecEnv
    assert type(make_meta_vec_env(lambda: TrialWrapper(PointRobot()), n_envs=1)) is DummyVecEnv
    assert type(make_meta_vec_env(CHEETAH, vec_env_cls=MujocoVecEnv)) is MujocoVecEnv
    assert type(make_meta_vec_env(CHEETAH, vec_env_cls=DummyVecEnv)) is DummyVecEnv


@pytest.mark.parametrize("vec_env_cls", [DummyVecEnv, MujocoVecEnv])
def test_a_trial_that_was_ended_by_hand_needs_a_reset(vec_env_cls: Any) -> None:
    env: Any = make_meta_vec_env(CHEETAH, 2, 0, env_kwargs=dict(episodes_per_trial=1, horizon=3), vec_env_cls=vec_env_cls)
    env.reset()
    env.step(random_actions(env))
    assert [env.env_method("step", np.zeros(6), indices=1)[0][3] for _ in range(2)] == [False, True]
    # SB3's Monitor has an error of its own
    with pytest.raises((gym.error.ResetNeeded, RuntimeError), match=r"needs (a )?reset"):
        env.step(random_actions(env))
    env.reset()
    env.step(random_actions(env))


def test_trials_may_become_longer() -> None:
    returns = []
    for n_threads in (None, 2):
        env = make(n_envs=2, n_threads=n_threads, env_kwargs=dict(episodes_per_trial=1, horizon=5))
        env.reset()
        for step in range(8):  # in the middle of a trial
            env.step(random_actions(env, step))
        env.env_method("set_wrapper_attr", "episodes_per_trial", 3)
        returns.append(
            [
                info["episode"]["r"]
                for step in range(40)
                for info in env.step(random_actions(env, step))[3]
                if "episode" in info
            ]
        )
    assert len(returns[0]) >= 4
    np.testing.assert_allclose(returns[1], returns[0], atol=1e-6)


def test_bad_actions() -> None:
    env = make(n_envs=2)
    with pytest.raises(gym.error.ResetNeeded, match="reset"):
        env.step(random_actions(env))
    env.reset()
    actions = random_actions(env)
    actions[1, 0] = np.nan
    with pytest.raises(ValueError, match=r"(?s)action for HalfCheetah\w+ \(task .*\) must be finite.*NaN in its weights"):
        env.step(actions)
    with pytest.raises(ValueError, match=r"actions must be.*shape \(2, 6\)"):
        env.step(actions[:1])
    env.step(random_actions(env))


# ---- threads ---------------------------------------------------------------------------------------------------------------


def n_native_threads() -> int:
    return len(os.listdir("/proc/self/task"))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_thousand_times_made_and_closed_leaves_nothing() -> None:
    envs = [gym.make(CHEETAH, horizon=3) for _ in range(2)]

    def cycle(close: bool) -> None:
        vec_env = MujocoVecEnv([partial(envs.__getitem__, index) for index in range(2)], n_threads=2)
        vec_env.reset()
        vec_env.step(np.zeros((2, 6), np.float32))
        if close:
            vec_env.close()
            vec_env.close()

    def resident() -> int:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    for _ in range(50):
        cycle(True)
    gc.collect()
    threads, files, memory = n_native_threads(), len(os.listdir("/proc/self/fd")), resident()
    for index in range(1000):
        cycle(close=index % 10 != 0)  # forgetting to close leaves nothing either
    gc.collect()
    until = time.monotonic() + 5  # threading.Thread.join() returns a moment before the thread is gone
    while n_native_threads() > threads and time.monotonic() < until:
        time.sleep(0.01)
    assert n_native_threads() <= threads
    assert len(os.listdir("/proc/self/fd")) == files
    assert resident() - memory < 20e6  # one simulation each that stays would be 25 MB and more


def test_close_ends_the_threads() -> None:
    gc.collect()  # threads of what other tests dropped
    before = threading.active_count()
    env = make(n_envs=4, n_threads=3)
    env.reset()
    env.step(random_actions(env))
    assert threading.active_count() == before + 2
    env.close()
    assert threading.active_count() == before
    with pytest.raises(ValueError, match="is closed"):
        env.step(random_actions(env))
    with pytest.raises(ValueError, match="is closed"):
        env.reset()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*:DeprecationWarning")
def test_parent_and_child_go_on_after_a_fork() -> None:
    program = """
import os, sys
import numpy as np
from sb3_trmrl.common.env_util import make_meta_vec_env
env = make_meta_vec_env("HalfCheetahVel-v0", n_envs=4, seed=0, vec_env_kwargs={"n_threads": 2})
twin = make_meta_vec_env("HalfCheetahVel-v0", n_envs=4, seed=0, vec_env_kwargs={"n_threads": 1})
actions = np.full((4, 6), 0.3, np.float32)
for vec_env in (env, twin):
    vec_env.reset()
    vec_env.step(actions)
child = os.fork()
assert np.array_equal(env.step(actions)[0], twin.step(actions)[0])
if child == 0:
    env.close()
    sys.exit(0)  # with everything that happens at exit
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
print("both went on", flush=True)
"""  # and the parent does not close
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "both went on\n"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_forks_of_one_thread_leave_the_steps_of_another_alone() -> None:
    program = """
import os, sys, threading, time, warnings
import numpy as np
from sb3_trmrl.common.env_util import make_meta_vec_env
warnings.filterwarnings("ignore", ".*multi-threaded, use of fork.*")
def steps(n_threads):
    env = make_meta_vec_env("HumanoidDir-v0", n_envs=8, seed=0, vec_env_kwargs={"n_threads": n_threads})
    rng = np.random.default_rng(0)
    env.reset()
    while True:
        yield env.step(rng.uniform(-1, 1, (8, 17)).astype(np.float32))[0]
def run():
    for token in steps(n_threads=2):
        tokens.append(token)
        if n_forks == 50:
            return
tokens, n_forks = [], 0
thread = threading.Thread(target=run, daemon=True)
thread.start()
while n_forks < 50:
    n_steps = len(tokens)
    while len(tokens) == n_steps:
        assert thread.is_alive()
        time.sleep(0.001)
    child = os.fork()
    if child == 0:
        if n_forks == 0:
            sys.exit(0)  # with everything that happens at exit
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    n_forks += 1
thread.join()
assert len(tokens) >= 50
for token, expected in zip(tokens, steps(n_threads=1)):
    assert np.array_equal(token, expected)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_copies_are_refused_with_the_remedy() -> None:
    env = make_meta_vec_env("HalfCheetahVel-v0", n_envs=2)
    for make_copy in (copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match=r"can't be copied or pickled.*use DummyVecEnv"):
            make_copy(env)
    env.close()


def test_next_to_a_subproc_vec_env() -> None:
    # In a process of its own: Linux refuses to fork one whose address space, with the environments of many tests, is larger
    # than the memory
    program = """
import gymnasium as gym
import numpy as np
from stable_baselines3.common.vec_env import SubprocVecEnv
from sb3_trmrl.common.env_util import make_meta_vec_env
env = make_meta_vec_env("HalfCheetahVel-v0", n_envs=2, seed=3, vec_env_kwargs={"n_threads": 2})
actions = np.full((2, 6), 0.3, np.float32)
env.reset()
first = env.step(actions)
subprocesses = SubprocVecEnv([lambda: gym.make("HalfCheetahVel-v0", horizon=3)] * 2, start_method="fork")
subprocesses.reset()
subprocesses.close()
again = env.step(actions)
assert np.isfinite(again[0]).all() and (again[0] != first[0]).any()
env.close()
print("went on")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "went on\n"


@pytest.mark.parametrize("values", [([1.0], [10.0]), (None, -1.0), (-1.0, None)])
def test_slots_with_other_lists_or_none_are_refused(values: Any) -> None:
    class Weighted(HalfCheetahVel):
        def __init__(self, weights: Any):
            super().__init__()
            self.weights = weights

    with pytest.raises(ValueError, match="all slots must have the same weights"):
        MujocoVecEnv([partial(lambda value: TrialWrapper(Weighted(value)), value) for value in values])

"""MuJoCo families against plain formulas, computed here from the raw simulation."""

import copy
import math
import os
import pickle
import subprocess
import sys
import warnings
from typing import Any

import gymnasium as gym
import mujoco
import numpy as np
import pytest

from sb3_trmrl.envs import META_ENVS, MujocoMetaEnv, TrialWrapper
from sb3_trmrl.envs.mujoco import PhysicsState, is_unstable
from sb3_trmrl.envs.mujoco.base import MAX_STATE

FAMILIES: dict[str, Any] = {env_id: family for env_id, family in META_ENVS.items() if issubclass(family, MujocoMetaEnv)}
RAND_PARAMS = ["Walker2DRandParams-v0", "HopperRandParams-v0"]


def make(env_id: Any, task_seed: Any = 0, split: Any = "train", **kwargs: Any) -> Any:
    env = FAMILIES[env_id](**kwargs)
    env.np_random, _ = gym.utils.seeding.np_random(task_seed)
    env.set_task(env.sample_tasks(1, split)[0])
    return env


def actions(env: Any, n: Any, seed: Any = 0) -> Any:
    return np.random.default_rng(seed).uniform(-1, 1, (n, env.model.nu)).astype(np.float32)


# ---- copies --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("env_id", FAMILIES)
def test_a_copy_goes_on_as_the_original(env_id: str) -> None:
    env = gym.make(env_id)
    env.reset(seed=0)
    for action in actions(env.get_wrapper_attr("meta_env"), 3):
        env.step(action)
    copies = copy.deepcopy(env), pickle.loads(pickle.dumps(env))
    for action in actions(env.get_wrapper_attr("meta_env"), 5, seed=1):
        observation, reward, *_ = env.step(action)
        for copied in copies:
            theirs, their_reward, *_ = copied.step(action)
            np.testing.assert_array_equal(theirs, observation)
            assert their_reward == reward
    starts = [one.reset(seed=1)[0] for one in (env, *copies)]
    np.testing.assert_array_equal(starts[0], starts[1])
    np.testing.assert_array_equal(starts[0], starts[2])


# ---- constants -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "env_id, dt, n_obs, n_act",
    [
        ("HalfCheetahVel-v0", 0.05, 20, 6),
        ("HalfCheetahDir-v0", 0.05, 20, 6),
        ("AntDir-v0", 0.05, 27, 8),
        ("AntFwdBack-v0", 0.05, 27, 8),
        ("AntGoal-v0", 0.05, 29, 8),
        ("HumanoidDir-v0", 0.015, 45, 17),
        ("Walker2DRandParams-v0", 0.01, 17, 6),
        ("HopperRandParams-v0", 0.008, 11, 3),
    ],
)
def test_sizes_and_time(env_id: Any, dt: Any, n_obs: Any, n_act: Any) -> None:
    env = make(env_id)
    assert env.horizon == 200
    assert env.dt == pytest.approx(dt)
    assert env.observation_space.shape == (n_obs,)
    np.testing.assert_array_equal(env.action_space.low, [-1] * n_act)
    np.testing.assert_array_equal(env.action_space.high, [1] * n_act)
    env.reset(seed=0)
    env.step(np.zeros(n_act, np.float32))
    assert env.data.time == pytest.approx(dt)


def test_token_of_half_cheetah_has_28_entries() -> None:
    assert gym.make("HalfCheetahVel-v0").observation_space.shape == (28,)


# ---- rewards and observations, independently ---------------------------------------------------------------------------
# Each takes qpos, qvel, centre of mass before and after (xipos, weighted by hand), action, task; returns the reward.


def half_cheetah_vel(qpos: Any, qvel: Any, new_qpos: Any, com: Any, new_com: Any, action: Any, task: Any) -> Any:
    return -abs((new_qpos[0] - qpos[0]) / 0.05 - task["velocity"]) - 0.05 * sum(a * a for a in action)


def half_cheetah_dir(qpos: Any, qvel: Any, new_qpos: Any, com: Any, new_com: Any, action: Any, task: Any) -> Any:
    return task["direction"] * (new_qpos[0] - qpos[0]) / 0.05 - 0.05 * sum(a * a for a in action)


def ant_dir(qpos: Any, qvel: Any, new_qpos: Any, com: Any, new_com: Any, action: Any, task: Any) -> Any:
    vx, vy = (new_qpos[0] - qpos[0]) / 0.05, (new_qpos[1] - qpos[1]) / 0.05
    g = task["direction"]
    return vx * math.cos(g) + vy * math.sin(g) - 0.5 * sum(a * a for a in action) + 1


def ant_goal(qpos: Any, qvel: Any, new_qpos: Any, com: Any, new_com: Any, action: Any, task: Any) -> Any:
    gx, gy = task["goal"]
    return -(abs(new_qpos[0] - gx) + abs(new_qpos[1] - gy)) - 0.1 * sum(a * a for a in action)


def humanoid_dir(qpos: Any, qvel: Any, new_qpos: Any, com: Any, new_com: Any, action: Any, task: Any) -> Any:
    g = task["direction"]
    along = (new_com[0] - com[0]) * math.cos(g) + (new_com[1] - com[1]) * math.sin(g)
    return 0.25 * along / 0.003 - 0.1 * sum((0.4 * a) ** 2 for a in action) + 5


def rand_params(dt: Any) -> Any:
    return lambda qpos, qvel, new_qpos, com, new_com, action, task: (
        (new_qpos[0] - qpos[0]) / dt + 1 - 1e-3 * sum(a * a for a in action)
    )


REWARDS = {
    "HalfCheetahVel-v0": half_cheetah_vel,
    "HalfCheetahDir-v0": half_cheetah_dir,
    "AntDir-v0": ant_dir,
    "AntFwdBack-v0": ant_dir,
    "AntGoal-v0": ant_goal,
    "HumanoidDir-v0": humanoid_dir,
    "Walker2DRandParams-v0": rand_params(0.01),
    "HopperRandParams-v0": rand_params(0.008),
}

OBSERVATIONS = {
    "HalfCheetahVel-v0": lambda q, v: [*q[1:], *v, q[0], 0.0, 0.7 + q[1]],
    "HalfCheetahDir-v0": lambda q, v: [*q[1:], *v, q[0], 0.0, 0.7 + q[1]],
    "AntDir-v0": lambda q, v: [*q[2:], *v],
    "AntFwdBack-v0": lambda q, v: [*q[2:], *v],
    "AntGoal-v0": lambda q, v: [*q, *v],
    "HumanoidDir-v0": lambda q, v: [*q[2:], *v],
    "Walker2DRandParams-v0": lambda q, v: [*q[1:], *(min(max(x, -10.0), 10.0) for x in v)],
    "HopperRandParams-v0": lambda q, v: [*q[1:], *(min(max(x, -10.0), 10.0) for x in v)],
}


def centre_of_mass_after(env: Any, action: Any, n_substeps: Any) -> Any:
    """The centre of mass ``n_substeps`` from now, in a simulation of our own, from the bodies' positions."""
    data = mujoco.MjData(env.model)
    data.qpos[:], data.qvel[:], data.qacc_warmstart[:] = env.data.qpos, env.data.qvel, env.data.qacc_warmstart
    data.ctrl[:] = env.controls(np.asarray(action, np.float64)[None])[0]
    for _ in range(n_substeps):
        mujoco.mj_step(env.model, data)
    mujoco.mj_kinematics(env.model, data)
    return (env.model.body_mass[:, None] * data.xipos).sum(axis=0) / env.model.body_mass.sum()


@pytest.mark.parametrize("env_id, split", [(env_id, split) for env_id in FAMILIES for split in FAMILIES[env_id].splits])
def test_rewards_and_observations(env_id: Any, split: Any) -> None:
    for task_seed in range(3):
        env = make(env_id, task_seed, split)
        task = env.get_task()
        observation, _ = env.reset(seed=task_seed)
        np.testing.assert_allclose(observation, OBSERVATIONS[env_id](env.data.qpos, env.data.qvel), atol=1e-15)
        com = centre_of_mass_after(env, np.zeros(env.model.nu), 0)
        for action in actions(env, 10):
            qpos, qvel = env.data.qpos.copy(), env.data.qvel.copy()
            new_com = centre_of_mass_after(env, action, env.frame_skip - 1)  # what a sensor reports after the step
            observation, reward, terminated, truncated, info = env.step(action)
            expected = REWARDS[env_id](qpos, qvel, env.data.qpos, com, new_com, action.astype(float), task)
            com = new_com
            assert reward == pytest.approx(expected, rel=1e-9, abs=1e-9)
            assert sum(value for key, value in info.items() if key.startswith("reward_")) == pytest.approx(reward)
            np.testing.assert_allclose(observation, OBSERVATIONS[env_id](env.data.qpos, env.data.qvel), atol=1e-15)
            if terminated or truncated:
                break


def test_observed_torso_is_the_bodys_position() -> None:
    env = make("HalfCheetahVel-v0")
    env.reset(seed=0)
    for action in actions(env, 20):
        observation = env.step(action)[0]
    mujoco.mj_kinematics(env.model, env.data)  # brings xpos, one sub-step old after mj_step, up to date
    np.testing.assert_allclose(observation[17:], env.data.body("torso").xpos, atol=1e-12)


def test_standing_still_in_half_cheetah_vel_earns_what_the_paper_says() -> None:
    # -v* per step: -300 per episode over U[0, 3]
    env = make("HalfCheetahVel-v0")
    still = PhysicsState(np.zeros((1, 9)), np.zeros((1, 9)), np.zeros((1, 0)))
    for velocity, expected in ((1.5, -300), (3.5, -700)):
        reward, _ = env.rewards(still, still, np.zeros((1, 6)), {"velocity": np.array([velocity])})
        assert reward[0] * env.horizon == pytest.approx(expected)


def test_physics_is_mujocos() -> None:
    """The same actions in a plain MuJoCo loop, its solver started cold at each environment step, give the same states."""
    env = make("AntGoal-v0")
    env.reset(seed=0)
    model = mujoco.MjModel.from_xml_path(os.path.join(os.path.dirname(gym.__file__), "envs", "mujoco", "assets", "ant.xml"))
    data = mujoco.MjData(model)
    data.qpos[:], data.qvel[:] = env.data.qpos, env.data.qvel
    for action in actions(env, 20):
        env.step(action)
        data.qacc_warmstart[:] = 0.0
        for _ in range(5):
            data.ctrl[:] = action
            mujoco.mj_step(model, data)
        np.testing.assert_array_equal(env.data.qpos, data.qpos)
        np.testing.assert_array_equal(env.data.qvel, data.qvel)


def test_half_cheetah_has_the_masses_of_the_model_file(tmp_path: Any, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)  # MuJoCo 4 logs a deprecation there for this file, which our way of loading avoids
    env = make("HalfCheetahVel-v0")
    assert not list(tmp_path.iterdir())
    model = mujoco.MjModel.from_xml_path(
        os.path.join(os.path.dirname(gym.__file__), "envs", "mujoco", "assets", "half_cheetah.xml")
    )
    assert env.model.body_mass.sum() == pytest.approx(14.0)
    np.testing.assert_allclose(env.model.body_mass, model.body_mass, rtol=1e-12)
    np.testing.assert_allclose(env.model.body_inertia, model.body_inertia, rtol=1e-12)
    np.testing.assert_allclose(env.model.body_invweight0, model.body_invweight0, rtol=1e-9)
    np.testing.assert_allclose(env.model.dof_invweight0, model.dof_invweight0, rtol=1e-9)


def test_humanoid_actions_are_rescaled() -> None:
    env = make("HumanoidDir-v0")
    env.reset(seed=0)
    env.step(np.full(17, -1.0, np.float32))
    np.testing.assert_allclose(env.data.ctrl, -0.4)


# ---- array methods -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("env_id", FAMILIES)
def test_a_batch_gives_what_single_calls_give(env_id: Any) -> None:
    env = make(env_id)
    rng = np.random.default_rng(0)
    n, nq, nv, nu, ns = 7, env.model.nq, env.model.nv, env.model.nu, env.model.nsensordata

    def states() -> Any:
        return PhysicsState(rng.normal(1.0, 0.5, (n, nq)), rng.normal(0, 8.0, (n, nv)), rng.normal(size=(n, ns)))

    before, after, action = states(), states(), rng.uniform(-1, 1, (n, nu))
    tasks = env.sample_tasks(n)
    arrays = {key: np.array([task[key] for task in tasks]) for key in tasks[0]}
    copies = [array.copy() for array in (*before, *after, action)]

    observations, terminations, controls = env.observe(after), env.terminations(after), env.controls(action)
    rewards, terms = env.rewards(before, after, action, arrays)
    assert observations.shape == (n, *env.observation_space.shape)
    assert rewards.shape == terminations.shape == (n,)
    assert terminations.dtype == bool
    assert controls.shape == (n, nu)
    for i in range(n):
        one = slice(i, i + 1)
        before_one, after_one = PhysicsState(*(x[one] for x in before)), PhysicsState(*(x[one] for x in after))
        reward, terms_one = env.rewards(before_one, after_one, action[one], {k: v[one] for k, v in arrays.items()})
        np.testing.assert_array_equal(reward, rewards[one])
        for key, value in terms.items():
            np.testing.assert_array_equal(terms_one[key], value[one])
        np.testing.assert_array_equal(env.observe(after_one), observations[one])
        np.testing.assert_array_equal(env.terminations(after_one), terminations[one])
        np.testing.assert_array_equal(env.controls(action[one]), controls[one])
    for array, copied in zip((*before, *after, action), copies, strict=True):  # inputs are left alone
        np.testing.assert_array_equal(array, copied)


def test_array_methods_do_not_read_the_simulation() -> None:
    for env_id in FAMILIES:
        env, fresh = make(env_id), make(env_id)
        env.reset(seed=1)
        for action in actions(env, 3):
            env.step(action)
        state = PhysicsState(env.data.qpos[None].copy(), env.data.qvel[None].copy(), env.data.sensordata[None].copy())
        np.testing.assert_array_equal(env.observe(state), fresh.observe(state))
        np.testing.assert_array_equal(env.terminations(state), fresh.terminations(state))


# ---- terminations ------------------------------------------------------------------------------------------------------

NEVER = ["HalfCheetahVel-v0", "HalfCheetahDir-v0", "AntGoal-v0"]
# coordinate of qpos, value, whether the episode ends; the limits themselves are below
LIMITS = {
    "AntDir-v0": [(2, 0.19, True), (2, 0.2, False), (2, 1.0, False), (2, 1.01, True)],
    "AntFwdBack-v0": [(2, 0.19, True), (2, 0.2, False), (2, 1.0, False), (2, 1.01, True)],
    "HumanoidDir-v0": [(2, 0.99, True), (2, 1.0, False), (2, 2.0, False), (2, 2.01, True)],
    "Walker2DRandParams-v0": [
        (1, 0.8, True),
        (1, 0.81, False),
        (1, 1.99, False),
        (1, 2.0, True),
        (2, 1.0, True),
        (2, -1.0, True),
        (2, 0.99, False),
    ],
    "HopperRandParams-v0": [
        (1, 0.7, True),
        (1, 0.71, False),
        (1, 5.0, False),
        (2, 0.2, True),
        (2, -0.2, True),
        (2, -0.19, False),
    ],
}


def test_every_family_is_in_one_of_the_two() -> None:
    assert set(NEVER) | set(LIMITS) == set(FAMILIES)


@pytest.mark.parametrize("env_id", LIMITS)
def test_limits(env_id: Any) -> None:
    env = make(env_id)
    for coordinate, value, ends in LIMITS[env_id]:
        qpos = env.model.qpos0[None].copy()
        qpos[0, coordinate] = value
        state = PhysicsState(qpos, np.zeros((1, env.model.nv)), np.zeros((1, env.model.nsensordata)))
        assert env.terminations(state)[0] == ends, (coordinate, value)


@pytest.mark.parametrize("env_id", LIMITS)
def test_a_fall_terminates_the_episode(env_id: Any) -> None:
    env = make(env_id)
    env.reset(seed=0)
    env.data.qpos[2] = 3.0  # far up in the air, or lying on the back
    assert env.step(np.zeros(env.model.nu, np.float32))[2:4] == (True, False)


@pytest.mark.parametrize("env_id", NEVER)
def test_families_that_run_to_the_horizon(env_id: Any) -> None:
    env = make(env_id, horizon=30)
    env.reset(seed=0)
    env.data.qpos[2 if env.model.nq > 9 else 1] = -0.3
    ends = [env.step(action)[2:4] for action in actions(env, 30)]
    assert ends == [(False, False)] * 29 + [(False, True)]


# ---- blow-ups ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e200, 2 * MAX_STATE])
@pytest.mark.parametrize("part", ["qpos", "qvel"])
def test_unstable_states_are_seen(part: Any, value: Any) -> None:
    state = PhysicsState(np.zeros((3, 2)), np.zeros((3, 2)), np.zeros((3, 0)))
    getattr(state, part)[1, 1] = value
    np.testing.assert_array_equal(is_unstable(state), [False, True, False])


@pytest.mark.parametrize("env_id", FAMILIES)
def test_a_blow_up_ends_the_episode_and_poisons_nothing(env_id: Any, tmp_path: Any, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)  # MuJoCo writes its own warning into a log file of the working folder
    trial = TrialWrapper(make(env_id))
    env: Any = trial.meta_env
    trial.reset(seed=0)
    trial.step(np.zeros(env.model.nu, np.float32))
    good = env.observe(PhysicsState(env.data.qpos[None], env.data.qvel[None], env.data.sensordata[None]))[0]
    env.data.qvel[0] = 1e12
    with pytest.warns(UserWarning, match=f"{type(env).__name__} blew up"):
        token, reward, terminated, truncated, info = trial.step(np.zeros(env.model.nu, np.float32))
    assert reward == 0.0
    assert info["unstable"] is True
    assert info["inner_episode"]["l"] == 2
    assert np.isfinite(token).all()
    env.reset(seed=1)
    env.data.qpos[0], env.data.qvel[0] = 0.0, -1e12
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # said once
        observation, _, terminated, truncated, _ = env.step(np.zeros(env.model.nu, np.float32))
    assert terminated == (env_id not in NEVER)
    assert truncated == (env_id in NEVER)
    assert np.isfinite(observation).all()
    # and the next episode is as if nothing had happened
    fresh = make(env_id)
    fresh.set_task(env.get_task())
    np.testing.assert_array_equal(env.reset(seed=2)[0], fresh.reset(seed=2)[0])
    action = actions(env, 1)[0]
    np.testing.assert_array_equal(env.step(action)[0], fresh.step(action)[0])
    assert good.shape == observation.shape


# ---- resets ------------------------------------------------------------------------------------------------------------

RESETS = {
    "HalfCheetahVel-v0": (("uniform", 0.1), ("normal", 0.1)),
    "HalfCheetahDir-v0": (("uniform", 0.1), ("normal", 0.1)),
    "AntDir-v0": (("uniform", 0.1), ("normal", 0.1)),
    "AntFwdBack-v0": (("uniform", 0.1), ("normal", 0.1)),
    "AntGoal-v0": (("uniform", 0.1), ("normal", 0.1)),
    "HumanoidDir-v0": (("uniform", 0.01), ("uniform", 0.01)),
    "Walker2DRandParams-v0": (("uniform", 0.005), ("uniform", 0.005)),
    "HopperRandParams-v0": (("uniform", 0.005), ("uniform", 0.005)),
}


@pytest.mark.parametrize("env_id", FAMILIES)
def test_reset_noise(env_id: Any) -> None:
    env = make(env_id)
    env.reset(seed=0)
    samples = [env.sample_initial_state() for _ in range(200)]
    for index, (kind, scale) in enumerate(RESETS[env_id]):
        noise = np.array([sample[index] for sample in samples])
        if index == 0:
            noise = noise - env.model.qpos0
        noise = noise.ravel() / scale
        assert abs(noise.mean()) < 4 / np.sqrt(noise.size)
        if kind == "uniform":
            assert np.abs(noise).max() <= 1 + 1e-9
            assert np.abs(noise).max() > 0.98
        else:
            assert abs(noise.std() - 1) < 4 / np.sqrt(2 * noise.size)
            assert np.abs(noise).max() > 2


@pytest.mark.parametrize("env_id", FAMILIES)
def test_an_episode_depends_on_seed_task_and_actions_only(env_id: Any) -> None:
    env, fresh = make(env_id, task_seed=1), make(env_id, task_seed=1)
    other_task = env.sample_tasks(1)[0]
    env.set_task(other_task)
    env.reset(seed=9)
    for action in actions(env, 8, seed=9):  # a history that must not show
        if any(env.step(action)[2:4]):
            break
    env.set_task(fresh.get_task())
    observations = [env.reset(seed=3)[0], fresh.reset(seed=3)[0]]
    np.testing.assert_array_equal(*observations)
    for action in actions(env, 8):
        step, fresh_step = env.step(action), fresh.step(action)
        np.testing.assert_array_equal(step[0], fresh_step[0])
        assert step[1:] == fresh_step[1:]
        if step[2]:
            break


# ---- task ranges -------------------------------------------------------------------------------------------------------


def sample(env_id: Any, key: Any, n: Any = 400, split: Any = "train") -> Any:
    env = make(env_id)
    return np.array([task[key] for task in env.sample_tasks(n, split)])


@pytest.mark.parametrize(
    "env_id, key, split, low, high",
    [
        ("HalfCheetahVel-v0", "velocity", "train", 0, 3),
        ("HalfCheetahVel-v0", "velocity", "test", 0, 3),
        ("HalfCheetahVel-v0", "velocity", "ood", 3, 4),
        ("HumanoidDir-v0", "direction", "train", 0, 2 * np.pi),
        ("HumanoidDir-v0", "direction", "test", 0, 2 * np.pi),
    ],
)
def test_uniform_ranges(env_id: Any, key: Any, split: Any, low: Any, high: Any) -> None:
    values = (sample(env_id, key, split=split) - low) / (high - low)
    assert 0 <= values.min() < 0.02
    assert 0.98 < values.max() <= 1
    assert abs(values.mean() - 0.5) < 0.06  # four standard errors


@pytest.mark.parametrize(
    "env_id, values", [("HalfCheetahDir-v0", [-1, 1]), ("AntDir-v0", [-1, 1]), ("AntFwdBack-v0", [0, np.pi])]
)
def test_two_directions(env_id: Any, values: Any) -> None:
    for split in ("train", "test"):
        directions = sample(env_id, "direction", split=split)
        np.testing.assert_array_equal(np.unique(directions), values)
        assert abs((directions == values[0]).mean() - 0.5) < 0.1  # four standard errors


def test_ant_dir_ood() -> None:
    directions = sample("AntDir-v0", "direction", split="ood")
    assert 2 <= np.abs(directions).min() < 2.02
    assert np.pi - 0.02 < np.abs(directions).max() <= np.pi
    assert abs((directions > 0).mean() - 0.5) < 0.1


@pytest.mark.parametrize("split, inner, outer", [("train", 0, 3), ("test", 0, 3), ("ood", 3, 4)])
def test_ant_goals_are_uniform_in_area(split: Any, inner: Any, outer: Any) -> None:
    goals = sample("AntGoal-v0", "goal", split=split)
    radius = np.linalg.norm(goals, axis=1)
    assert inner - 1e-9 <= radius.min() and outer - 0.05 < radius.max() <= outer + 1e-9
    area = (radius**2 - inner**2) / (outer**2 - inner**2)
    assert abs(area.mean() - 0.5) < 0.06  # four standard errors
    assert np.abs((goals > 0).mean(axis=0) - 0.5).max() < 0.1


def test_half_cheetah_dir_takes_two_directions_only() -> None:
    with pytest.raises(ValueError, match=r"'direction'.*-1 or 1, got 0.5"):
        FAMILIES["HalfCheetahDir-v0"]().set_task({"direction": 0.5})


# ---- random dynamics -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("env_id", RAND_PARAMS)
def test_multiplier_ranges(env_id: Any) -> None:
    env = make(env_id)
    for split, low, high in (("train", 0, 3), ("test", 0, 3), ("ood", 3, 3.5)):
        tasks = env.sample_tasks(30, split)
        for key, base in (("body_mass", 1.5), ("body_inertia", 1.5), ("geom_friction", 1.5), ("dof_damping", 1.3)):
            exponents = np.log(np.array([task[key] for task in tasks])) / np.log(base)
            assert exponents.shape == (30, *getattr(env.model, key).shape)
            size = np.abs(exponents)
            assert low - 1e-9 <= size.min() < low + 0.1
            assert high - 0.1 < size.max() <= high + 1e-9
            assert abs((exponents > 0).mean() - 0.5) < 2 / np.sqrt(exponents.size)
            assert len(np.unique(exponents)) == exponents.size  # every entry has its own u


@pytest.mark.parametrize("env_id", RAND_PARAMS)
def test_multipliers_reach_the_model_and_leave_it(env_id: Any) -> None:
    pristine = FAMILIES[env_id]().model
    env = make(env_id)
    for task in env.sample_tasks(3):
        env.set_task(task)
        for key in ("body_mass", "body_inertia", "geom_friction", "dof_damping"):
            np.testing.assert_array_equal(getattr(env.model, key), getattr(pristine, key) * np.array(task[key]))
    ones = {key: np.ones(shape) for key, shape in env.task_shapes.items()}
    env.set_task(ones)
    for key in ("body_mass", "body_inertia", "geom_friction", "dof_damping", "body_subtreemass"):
        np.testing.assert_array_equal(getattr(env.model, key), getattr(pristine, key))
    for key in ("body_invweight0", "dof_invweight0", "dof_M0"):
        np.testing.assert_allclose(getattr(env.model, key), getattr(pristine, key), rtol=1e-9)


@pytest.mark.parametrize("env_id", RAND_PARAMS)
def test_dynamics_differ_between_tasks(env_id: Any) -> None:
    env = make(env_id)
    tasks = env.sample_tasks(2)
    ends = []
    for task in (*tasks, tasks[0]):
        env.set_task(task)
        env.reset(seed=0)
        for action in actions(env, 5):
            observation = env.step(action)[0]
        ends.append(observation)
    assert np.abs(ends[0] - ends[1]).max() > 1e-3
    np.testing.assert_array_equal(ends[0], ends[2])


@pytest.mark.parametrize("env_id", RAND_PARAMS)
def test_derived_constants_follow_the_task(env_id: Any) -> None:
    env = make(env_id)
    ones = {key: np.ones(shape) for key, shape in env.task_shapes.items()}
    env.set_task(ones)
    inverse_weight = env.model.body_invweight0.copy()
    env.set_task({**ones, "body_mass": 2 * ones["body_mass"], "body_inertia": 2 * ones["body_inertia"]})
    np.testing.assert_allclose(env.model.body_subtreemass[0], 2 * FAMILIES[env_id]().model.body_subtreemass[0])
    assert (env.model.body_invweight0[1:] < inverse_weight[1:]).all()


@pytest.mark.parametrize("env_id", RAND_PARAMS)
def test_multipliers_must_be_positive(env_id: Any) -> None:
    env = make(env_id)
    task = env.get_task()
    task["body_mass"][1] = 0.0
    with pytest.raises(ValueError, match=r"'body_mass'.*positive.*0.0"):
        env.set_task(task)


def test_clipped_velocities() -> None:
    env = make("HopperRandParams-v0")
    state = PhysicsState(np.zeros((1, 6)), np.array([[-99.0, 99, 10, -10, 3, 0]]), np.zeros((1, 0)))
    np.testing.assert_array_equal(env.observe(state)[0, 5:], [-10, 10, 10, -10, 3, 0])


# ---- rendering -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("env_id", ["HalfCheetahVel-v0", "HumanoidDir-v0"])
def test_images(env_id: Any) -> None:
    env: Any = gym.make(env_id, render_mode="rgb_array")
    env.reset(seed=0)
    environment = dict(os.environ)
    try:
        first = env.render()
    except RuntimeError as error:
        assert "apt-get install" in str(error)
        pytest.skip(f"no OpenGL here: {error}")
    assert os.environ.get("MUJOCO_GL") == environment.get("MUJOCO_GL")
    for _ in range(10):
        env.step(env.action_space.sample())
    image = env.render()
    assert image.shape == (480, 480, 3)
    assert image.dtype == np.uint8
    assert image.std() > 10  # no empty picture
    assert (image != first).mean() > 0.01
    env.close()
    env.close()  # twice is fine


def test_an_optimizer_made_after_an_image() -> None:
    """With torch's CUDA build and Mesa's software driver the process crashed: two LLVMs, see ``rendering.py``."""
    script = """
import gymnasium as gym, sb3_trmrl
env = gym.make("HalfCheetahVel-v0", render_mode="rgb_array")
env.reset(seed=0)
try:
    env.render()
except RuntimeError as error:
    raise SystemExit("no renderer: " + str(error))
sb3_trmrl.TrMRLPPO("TrMRLPolicy", "CartPole-v1", device="cpu")
print("made")
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    if "no renderer" in result.stderr:
        pytest.skip(result.stderr)
    assert result.stdout.strip() == "made", f"exit status {result.returncode}: {result.stderr}"


def test_no_image_without_a_render_mode() -> None:
    env = gym.make("HalfCheetahVel-v0").unwrapped
    env.reset(seed=0)
    assert env.render() is None


def test_rendering_error_names_the_packages(monkeypatch: Any) -> None:
    from sb3_trmrl.envs.mujoco import rendering

    def broken(*args: Any, **kwargs: Any) -> Any:
        raise ImportError("libEGL.so.1 not found")

    monkeypatch.setattr(rendering.MujocoRenderer, "render", broken)
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.delenv("DISPLAY", raising=False)
    env = make("HalfCheetahVel-v0", render_mode="rgb_array")
    env.reset(seed=0)
    with pytest.raises(RuntimeError, match=r"libEGL.so.1 not found.*apt-get install libegl1 libgl1-mesa-dri.*libosmesa6"):
        env.render()
    assert "MUJOCO_GL" not in os.environ

"""Our simulation of Meta-World against Meta-World itself: trajectories bit for bit, scripted experts."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from sb3_trmrl.envs import METAWORLD_ENVS, TrialWrapper
from sb3_trmrl.envs.metaworld import ENVIRONMENTS, benchmark_goals
from tests.raw_metaworld import expert, family_of, needs_metaworld, raw_environment, wild

pytestmark = pytest.mark.filterwarnings("ignore:Constant.s. may be too high")  # of Meta-World's experts


def play(env: Any, environment: str, n_steps: int) -> list[tuple[float, ...]]:
    """:return: Observation, reward and info of each step of an episode; the expert sees the goal, and trembles."""
    policy, generator = expert(environment), np.random.default_rng(0)
    observation, _ = env.reset()
    rows: list[tuple[float, ...]] = [tuple(observation)]
    for _ in range(n_steps):
        action = wild(policy.get_action(np.hstack([observation[:36], env._target_pos])), generator)
        observation, reward, terminated, truncated, info = env.step(action)
        rows.append((*observation, float(reward), terminated, *map(float, info.values())))
    return rows


@needs_metaworld
@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_trajectories_are_metaworlds(environment: str) -> None:
    """Two slots in one process, which share the model, take turns; the other one plays another goal."""
    from sb3_trmrl.envs.metaworld_sim import simulation_class

    vectors = benchmark_goals(f"ML1-{environment}", "test", 0)[environment]
    raw = raw_environment(environment, vectors[1])
    env, other = (simulation_class(environment)(reward_function_version="v2") for _ in range(2))
    assert env.model is other.model
    for goal in (0, 1):  # what was played before leaves no trace
        env.fix_task(vectors[goal].copy())
        other.fix_task(vectors[goal + 2].copy())
        other.reset()
        play(env, environment, 5)
    for _ in range(2):
        expected, found = play(raw, environment, 50), play(env, environment, 50)
        assert np.array(expected[0]).tolist() == np.array(found[0]).tolist()
        assert expected == found
        other.step(np.ones(4, np.float32))


@needs_metaworld
@pytest.mark.parametrize("environment", ["push-v3", "door-close-v3", "hammer-v3"])
def test_slots_that_share_a_model_do_not_meet(environment: str) -> None:
    """As above, but both are in the middle of an episode, step by step."""
    from sb3_trmrl.envs.metaworld_sim import simulation_class

    vectors = benchmark_goals(f"ML1-{environment}", "train", 0)[environment]
    actions = np.random.default_rng(0).uniform(-1, 1, (60, 4)).astype(np.float32)
    raws = [raw_environment(environment, vectors[goal], reward_version="v1") for goal in (3, 4)]
    envs = [simulation_class(environment)(reward_function_version="v1") for _ in range(2)]
    for env, goal in zip(envs, (3, 4), strict=True):
        env.fix_task(vectors[goal].copy())
    for env in (*raws, *envs):
        env.reset()
    for action in actions:
        for raw, env in zip(raws, envs, strict=True):
            expected, found = raw.step(action), env.step(action)
            np.testing.assert_array_equal(expected[0], found[0])
            assert expected[1:] == found[1:]


class Recording(gym.Wrapper[Any, Any, Any, Any]):
    """Keeps the observation before it becomes a token in float32."""

    def reset(self, **kwargs: Any) -> Any:
        self.observation, info = self.env.reset(**kwargs)
        return self.observation, info

    def step(self, action: Any) -> Any:
        self.observation, *rest = self.env.step(action)
        return self.observation, *rest


@needs_metaworld
@pytest.mark.parametrize("environment", ["reach-v3", "push-v3", "pick-place-v3", "drawer-open-v3", "button-press-wall-v3"])
def test_experts_succeed_as_on_the_raw_environment(environment: str) -> None:
    n_steps, env_id = 150, f"ML1-{environment}"
    recording = Recording(METAWORLD_ENVS[env_id](horizon=n_steps))
    tasks = [{"environment": environment, "split": "test", "goal": goal} for goal in range(3)]
    trial = TrialWrapper(recording, episodes_per_trial=1, tasks=tasks)
    outcomes = []
    for goal in range(3):
        raw = raw_environment(environment, benchmark_goals(env_id, "test", 0)[environment][goal], hidden=False)
        seen, policy, raw_total, raw_success = raw.reset()[0], expert(environment), 0.0, []
        for _ in range(n_steps):
            seen, reward, _, _, info = raw.step(np.clip(policy.get_action(seen), -1, 1))
            raw_total += float(reward)
            raw_success.append(bool(info["success"]))

        trial.reset()
        policy, success = expert(environment), []
        for _ in range(n_steps):
            sight = np.hstack([recording.observation[:36], family_of(trial).simulation._get_pos_goal()])
            assert not recording.observation[36:].any(), "the goal is hidden"
            *_, info = trial.step(np.clip(policy.get_action(sight), -1, 1))
            success.append(info["success"])
        assert success == raw_success
        assert info["trial"]["returns"] == [raw_total]
        assert info["trial"]["success"] == [any(raw_success)] == [info["is_success"]]
        outcomes.append(any(raw_success))
    assert all(outcomes), "the experts are experts"

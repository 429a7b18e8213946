"""Meta-World's families against Meta-World itself: goals, trajectories bit for bit, scripted experts, evaluation."""

import importlib.util
import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env as gym_check_env
from stable_baselines3.common.env_checker import check_env as sb3_check_env
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_trmrl import AdaptationResult, TrMRLPPO, evaluate_metaworld, load
from sb3_trmrl.cli import evaluation_data, evaluation_text
from sb3_trmrl.common.env_util import make_meta_vec_env
from sb3_trmrl.common.evaluation import evaluate_adaptation
from sb3_trmrl.common.metaworld_evaluation import EnvironmentScore, MemoryAgent, MetaWorldResult, TokenObservation
from sb3_trmrl.common.references import file_name, task_vector
from sb3_trmrl.common.vec_env import ProcessVecEnv
from sb3_trmrl.envs import META_ENVS, METAWORLD_ENVS, TASK_FAMILIES, MetaWorldEnv, TokenSpace, TrialWrapper
from sb3_trmrl.envs.metaworld import ENVIRONMENTS, benchmark_goals
from sb3_trmrl.plots.ood import task_parameter
from tests.test_resume import through_files

needs_metaworld = pytest.mark.skipif(importlib.util.find_spec("metaworld") is None, reason="without the extra metaworld")
pytestmark = pytest.mark.filterwarnings("ignore:Constant.s. may be too high")  # of Meta-World's experts


def trials(env_id: str, **kwargs: Any) -> TrialWrapper:
    trial = gym.make(env_id, disable_env_checker=True, **kwargs).unwrapped
    assert isinstance(trial, TrialWrapper)
    return trial


def family_of(trial: TrialWrapper) -> MetaWorldEnv:
    assert isinstance(trial.meta_env, MetaWorldEnv)
    return trial.meta_env


def raw_environment(environment: str, vector: np.ndarray, hidden: bool = True, reward_version: str = "v2") -> Any:
    """:return: Meta-World's own environment with a task of its own making."""
    import metaworld

    cls = metaworld.ALL_V3_ENVIRONMENTS[environment]
    raw = cls(reward_function_version=reward_version)
    raw.set_task(metaworld._encode_task(environment, dict(rand_vec=vector, env_cls=cls, partially_observable=hidden)))
    return raw


def expert(environment: str) -> Any:
    from metaworld.policies import ENV_POLICY_MAP

    return ENV_POLICY_MAP[environment]()


def wild(action: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """:return: The expert's action with noise, so that things are touched, and missed."""
    return np.clip(action + 0.2 * generator.normal(size=4), -1, 1).astype(np.float32)


# ---- ids and the extra -----------------------------------------------------------------------------------------------


def test_ids_are_there_without_metaworld() -> None:
    assert len(ENVIRONMENTS) == len(set(ENVIRONMENTS)) == 50
    assert set(METAWORLD_ENVS) == {f"ML1-{name}" for name in ENVIRONMENTS} | {"ML10-v3", "ML45-v3"}
    assert set(TASK_FAMILIES) == set(META_ENVS) | set(METAWORLD_ENVS)
    for env_id in METAWORLD_ENVS:
        assert gym.spec(env_id).kwargs == {"env_id": env_id}
    script = "import sys, sb3_trmrl; assert not [name for name in sys.modules if name.startswith('metaworld')]"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_a_missing_extra_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "metaworld", None)
    for make in (lambda: gym.make("ML10-v3"), lambda: make_meta_vec_env("ML1-reach-v3", n_envs=1)):
        with pytest.raises(ImportError, match=r"pip install 'sb3_trmrl\[metaworld\]'.*mujoco 3\.3\.0"):
            make()


def test_a_wrong_id_gets_the_nearest() -> None:
    from sb3_trmrl.envs import make_trial_env

    with pytest.raises(ValueError, match="Did you mean 'ML1-pick-place-v3'"):
        make_trial_env("ML1-pickplace-v3")
    with pytest.raises(ValueError, match=r"benchmark='ML10'.*Did you mean 'ML10-v3'"):
        MetaWorldEnv("ML10")


def test_names_of_references_leave_defaults_out() -> None:
    assert file_name("ML1-reach-v3", dict(horizon=500, reward_version="v2")) == "ML1-reach-v3.json"
    assert file_name("ML1-reach-v3", dict(horizon=200)) != file_name("ML1-reach-v3", dict(horizon=100))


@needs_metaworld
def test_names_are_metaworlds() -> None:
    import metaworld

    assert list(ENVIRONMENTS) == metaworld.ML1.ENV_NAMES


# ---- goals -----------------------------------------------------------------------------------------------------------


def goals_of(tasks: list[Any]) -> dict[str, list[np.ndarray]]:
    goals: dict[str, list[np.ndarray]] = {}
    for task in tasks:
        goals.setdefault(task.env_name, []).append(pickle.loads(task.data)["rand_vec"])
    return goals


@needs_metaworld
@pytest.mark.parametrize(
    "env_id, seed",
    [
        ("ML1-reach-v3", 0),
        ("ML1-pick-place-v3", 5),  # draws again what is too near
        ("ML1-lever-pull-v3", 0),
        ("ML10-v3", 0),
        pytest.param("ML45-v3", 3, marks=pytest.mark.slow),
    ],
)
def test_goals_are_those_of_the_benchmark_object(env_id: str, seed: int) -> None:
    import metaworld

    ml1 = env_id.startswith("ML1-")
    benchmark = metaworld.ML1(env_id[4:], seed) if ml1 else getattr(metaworld, env_id[:-3])(seed)
    global_generator = np.random.mtrand._rand
    state = str(global_generator.get_state())
    family = METAWORLD_ENVS[env_id](benchmark_seed=seed)
    for split, tasks in (("train", benchmark.train_tasks), ("test", benchmark.test_tasks)):
        expected, goals = goals_of(tasks), family.goals(split)
        assert list(goals) == list(expected)
        for environment, vectors in expected.items():
            np.testing.assert_array_equal(goals[environment], vectors)
    assert str(global_generator.get_state()) == state, "numpy's global generator is the user's"


@needs_metaworld
def test_train_and_test_are_disjoint() -> None:
    for env_id, n_train, n_test in (("ML10-v3", 10, 5), ("ML45-v3", 45, 5)):
        train, test = (set(benchmark_goals(env_id, split, 0)) for split in ("train", "test"))
        assert (len(train), len(test), train & test) == (n_train, n_test, set())
    for environment in ("reach-v3", "push-v3", "door-open-v3"):
        splits = [benchmark_goals(f"ML1-{environment}", split, 0)[environment] for split in ("train", "test")]
        assert [vectors.shape for vectors in splits] == 2 * [(50, splits[0].shape[1])]
        assert len(np.unique(np.concatenate(splits), axis=0)) == 100
    one, other = (benchmark_goals("ML10-v3", "test", seed)["lever-pull-v3"] for seed in (0, 1))
    assert not np.isin(one[:, :2], other[:, :2]).any()


@needs_metaworld
def test_the_simulation_plays_the_goal_of_the_task() -> None:
    trial = trials("ML1-reach-v3", split="test")
    for goal in (0, 49):
        trial.reset(options={"task": {"environment": "reach-v3", "split": "test", "goal": goal}})
        vector = benchmark_goals("ML1-reach-v3", "test", 0)["reach-v3"][goal]
        simulation = family_of(trial).simulation
        np.testing.assert_array_equal(simulation._target_pos, vector[3:])
        np.testing.assert_array_equal(simulation.data.body("obj").xpos[:2], vector[:2])


# ---- sampling ----------------------------------------------------------------------------------------------------------


@needs_metaworld
@pytest.mark.parametrize("env_id, split, n", [("ML10-v3", "train", 10), ("ML10-v3", "test", 5), ("ML45-v3", "train", 45)])
def test_balance_over_environments(env_id: str, split: str, n: int) -> None:
    trial = trials(env_id, split=split)
    trial.reset(seed=3)
    drawn = [trial.get_task(), *(trial.sample_tasks(1)[0] for _ in range(3 * n - 1))]
    for start in range(0, 3 * n, n):  # each round of single draws has each environment once
        assert {task["environment"] for task in drawn[start : start + n]} == set(family_of(trial).goals(split))
    assert [task["environment"] for task in drawn[:n]] != [task["environment"] for task in drawn[n : 2 * n]]

    many = trial.sample_tasks(4 * n + 2)
    counts = np.unique([task["environment"] for task in many], return_counts=True)[1]
    assert sorted(counts) == [4] * (n - 2) + [5] * 2
    assert len({json.dumps(task) for task in many}) == len(many)
    trial.reset(seed=3)
    assert trial.sample_tasks(4 * n + 2)[: n + 1] == (trial.reset(seed=3), trial.sample_tasks(n + 1))[1]


@needs_metaworld
def test_all_test_goals_and_no_more() -> None:
    trial = trials("ML1-reach-v3", split="test")
    trial.reset(seed=0)
    assert sorted(task["goal"] for task in trial.sample_tasks(50)) == list(range(50))
    assert np.bincount([task["goal"] for task in trial.sample_tasks(100)]).tolist() == [2] * 50


@needs_metaworld
@pytest.mark.parametrize("vec_env_cls, kwargs", [(DummyVecEnv, {}), (ProcessVecEnv, {"n_workers": 2})])
def test_same_seed_same_tasks_other_slot_other_tasks(vec_env_cls: Any, kwargs: dict[str, Any]) -> None:
    def tasks(seed: int) -> list[list[str]]:
        env = make_meta_vec_env("ML10-v3", n_envs=4, seed=seed, vec_env_cls=vec_env_cls, vec_env_kwargs=kwargs)
        drawn = []
        for _ in range(3):
            env.reset()
            drawn.append([json.dumps(task) for task in env.env_method("get_task")])
        env.close()
        return [list(slot) for slot in zip(*drawn, strict=True)]

    first = tasks(0)
    assert tasks(0) == first
    assert len({tuple(slot) for slot in first}) == 4
    assert tasks(1)[:3] == first[1:], "slot i has seed + i"
    family = METAWORLD_ENVS["ML10-v3"]()  # without trials
    family.set_task({"environment": "reach-v3", "split": "train", "goal": 0})
    drawn = []
    for _ in range(2):
        family.reset(seed=6)
        drawn.append([family.sample_tasks(1) for _ in range(4)])
    assert drawn[0] == drawn[1]


@needs_metaworld
@pytest.mark.parametrize(
    "task, message",
    [
        ({"environment": "reach-v3", "split": "train"}, "keys.*'environment', 'goal', 'split'"),
        ({"environment": "reech-v3", "split": "train", "goal": 0}, "'reech-v3'. Did you mean 'reach-v3'"),
        ({"environment": "lever-pull-v3", "split": "train", "goal": 0}, "one of .'reach-v3'.*split 'train' of ML10-v3"),
        ({"environment": "reach-v3", "split": "ood", "goal": 0}, "split='ood' does not exist"),
        ({"environment": "reach-v3", "split": "train", "goal": 50}, "integer from 0 to 49.*got 50"),
        ({"environment": "reach-v3", "split": "train", "goal": 1.0}, "integer from 0 to 49.*got 1.0"),
    ],
)
def test_bad_tasks(task: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        METAWORLD_ENVS["ML10-v3"]().set_task(task)


@needs_metaworld
@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"reward_version": "v3"}, r"reward_version must be one of \['v1', 'v2'\], got 'v3'"),
        ({"reward_scale": 0}, "reward_scale must be a number > 0, got 0"),
        ({"benchmark_seed": -1}, "benchmark_seed must be an integer from 0.*got -1"),
        ({"end_on_success_after": 1.5}, "end_on_success_after must be an integer >= 0.*got 1.5"),
        ({"horizon": 0}, "horizon must be an integer >= 1"),
        ({"render_mode": "human"}, r"render_mode='human'.*\['rgb_array'\]"),
    ],
)
def test_bad_keywords(kwargs: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        METAWORLD_ENVS["ML1-reach-v3"](**kwargs)


# ---- the same numbers as Meta-World, bit for bit ------------------------------------------------------------------------


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


# ---- trials ------------------------------------------------------------------------------------------------------------


@needs_metaworld
@pytest.mark.parametrize("env_id", ["ML1-reach-v3", "ML10-v3"])
def test_checkers_have_nothing_to_say(env_id: str, recwarn: pytest.WarningsRecorder) -> None:
    env = trials(env_id, horizon=20)
    gym_check_env(env, skip_render_check=True)
    sb3_check_env(env, warn=True)
    own = [str(warning.message) for warning in recwarn if "value is -infinity" not in str(warning.message)]
    assert [text for text in own if "value is infinity" not in text] == []
    env.close()


@needs_metaworld
def test_tokens_hide_the_goal_and_know_their_parts() -> None:
    trial = trials("ML1-reach-v3", horizon=5)
    assert isinstance(trial.observation_space, TokenSpace)
    assert (trial.observation_space.observation_size, trial.observation_space.shape) == (39, (45,))
    token, _ = trial.reset(seed=0)
    for _ in range(10):
        assert token in trial.observation_space
        assert not token[36:39].any()
        token, *_ = trial.step(trial.action_space.sample())


def run_trial(trial: TrialWrapper, task: Any, n_steps: int = 24) -> list[Any]:
    generator = np.random.default_rng(7)
    rows = [trial.reset(options={"task": task})[0].tolist()]
    for _ in range(n_steps):
        token, reward, terminated, truncated, info = trial.step(generator.uniform(-1, 1, 4).astype(np.float32))
        rows.append([token.tolist(), reward, terminated, truncated, json.dumps(info)])
    return rows


@needs_metaworld
@pytest.mark.parametrize("environment", ["reach-v3", "push-v3", "drawer-open-v3"])
def test_hidden_objects(environment: str) -> None:
    seen, hidden = (trials(f"ML1-{environment}", horizon=20, hide_objects=hide) for hide in (False, True))
    tokens = [trial.reset(seed=3)[0] for trial in (seen, hidden)]
    generator = np.random.default_rng(0)
    for _ in range(45):  # into the second episode, and the next trial
        assert np.any(tokens[0][4:18]) and not np.any(tokens[1][4:18]) and not np.any(tokens[1][22:36])
        shown = np.r_[:4, 18:22, 36:45]  # hand and gripper now and before, goal, action, reward, done
        np.testing.assert_array_equal(tokens[0][shown], tokens[1][shown])
        action = generator.uniform(-1, 1, 4).astype(np.float32)
        results = [trial.step(action) for trial in (seen, hidden)]
        assert results[0][1:4] == results[1][1:4]
        tokens = [trial.reset()[0] if result[3] else result[0] for trial, result in zip((seen, hidden), results, strict=True)]


@needs_metaworld
def test_random_frames() -> None:
    plain, turned = (trials("ML1-reach-v3", horizon=30, random_frames=random) for random in (False, True))
    angles = []
    for seed in range(5):
        tokens = [trial.reset(seed=seed)[0].astype(np.float64) for trial in (plain, turned)]
        assert plain.get_task() == turned.get_task()
        start = tokens[0][:3]
        np.testing.assert_array_equal(tokens[1][:3], tokens[0][:3])  # the hand stands at the frame's origin
        # The frame shows in where the object stands: its direction from the hand, and its distance
        (x, y, z), (a, b, c) = (token[4:7] - start for token in tokens)
        stretch, angle = c / z, np.angle((a + 1j * b) / (x + 1j * y))
        assert (
            1 / 1.2 <= stretch <= 1.2
            and abs(angle) <= np.pi / 4
            and abs((a + 1j * b) / (x + 1j * y)) == pytest.approx(stretch, rel=1e-5)
        )
        angles.append(round(float(angle), 4))
        turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
        generator = np.random.default_rng(seed)
        for _ in range(45):  # into the second episode: the frame is the trial's
            action = np.append(0.5 * generator.uniform(-1, 1, 3), generator.uniform(-1, 1)).astype(np.float32)
            # What moves the hand in its own frame by `action` moves it in the other by the turned and stretched one
            shown = np.append(stretch * turn @ action[:3], action[3]).astype(np.float32)
            results = [trial.step(action) for trial, action in ((plain, action), (turned, shown))]
            assert results[0][1] == pytest.approx(results[1][1], rel=1e-3, abs=1e-6)
            for place in (0, 4, 18, 22):
                moved = stretch * turn @ (results[0][0][place : place + 3] - start) + start
                np.testing.assert_allclose(results[1][0][place : place + 3], moved, atol=2e-4)
            np.testing.assert_array_equal(results[1][0][11:18], results[0][0][11:18])  # no second object
    assert len(set(angles)) == 5


@needs_metaworld
def test_a_task_rebuilds_the_same_task_elsewhere() -> None:
    """In an object with another history, across environments that share a model file, and in another process."""
    first, second = (trials("ML10-v3", horizon=12) for _ in range(2))
    second.reset(seed=0)
    tasks = first.sample_tasks(10)
    assert json.loads(json.dumps(tasks)) == tasks
    expected = [run_trial(first, task) for task in tasks]
    for task, rows in reversed(list(zip(tasks, expected, strict=True))):
        assert run_trial(second, json.loads(json.dumps(task))) == rows
    script = f"""
import json
from tests.test_metaworld import run_trial, trials
print(json.dumps(run_trial(trials("ML10-v3", horizon=12), json.loads({json.dumps(tasks[3])!r}))))
"""
    output = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120).stdout
    assert json.loads(output) == json.loads(json.dumps(expected[3]))


@needs_metaworld
def test_seeded_trials_repeat() -> None:
    def tokens(trial: TrialWrapper) -> list[Any]:
        rows = [trial.reset(seed=4)[0].tolist()]
        for _ in range(2):
            for step in range(20):
                rows.append(trial.step(np.full(4, (-1.0) ** step, np.float32))[0].tolist())
            rows.append(trial.reset()[0].tolist())
        return rows

    trial = trials("ML10-v3", horizon=10)
    first = tokens(trial)
    assert tokens(trial) == first == tokens(trials("ML10-v3", horizon=10))


@needs_metaworld
@pytest.mark.parametrize("horizon", [7, 600])
def test_horizon(horizon: int) -> None:
    """Meta-World's own environment raises after step 500."""
    trial = trials("ML1-reach-v3", horizon=horizon, episodes_per_trial=2)
    trial.reset(seed=0)
    for _ in range(2 * horizon):
        *_, terminated, truncated, info = trial.step(np.zeros(4, np.float32))
    assert (terminated, truncated) == (False, True)
    assert info["trial"]["lengths"] == [horizon, horizon]
    assert trials("ML1-reach-v3").meta_env.horizon == 500


@needs_metaworld
def test_reward_versions_and_scale() -> None:
    task = {"environment": "reach-v3", "split": "test", "goal": 2}
    action = np.array([0.3, 1.0, 0.1, 0.0], np.float32)
    rewards: dict[Any, list[float]] = {}
    for version in ("v1", "v2"):
        raw = raw_environment("reach-v3", benchmark_goals("ML1-reach-v3", "test", 0)["reach-v3"][2], reward_version=version)
        raw.reset()
        rewards[version] = [float(raw.step(action)[1]) for _ in range(5)]
        for scale in (1.0, 0.1):
            trial = trials("ML1-reach-v3", reward_version=version, reward_scale=scale, horizon=5, episodes_per_trial=1)
            trial.reset(options={"task": task})
            steps = [trial.step(action) for _ in range(5)]
            assert [step[1] for step in steps] == [scale * reward for reward in rewards[version]]
            np.testing.assert_array_equal([step[0][43] for step in steps], np.array([step[1] for step in steps], np.float32))
            assert steps[-1][4]["trial"]["returns"] == [pytest.approx(scale * sum(rewards[version]), rel=1e-12)]
    assert rewards["v1"] != rewards["v2"]
    assert max(rewards["v2"]) <= 10


def reach_then_leave(trial: TrialWrapper, n_there: int, n_away: int) -> list[dict[str, Any]]:
    """:return: Infos of an episode of reach that goes to the goal, then away from it."""
    infos: list[dict[str, Any]] = []
    for step in range(n_there + n_away):
        simulation = family_of(trial).simulation
        way = simulation._target_pos - simulation.tcp_center
        direction = 10 * way if step < n_there else np.array([0.0, -1.0, 0.0])
        infos.append(trial.step(np.append(np.clip(direction, -1, 1), 0.0).astype(np.float32))[4])
        if "inner_episode" in infos[-1]:
            break
    return infos


@needs_metaworld
def test_any_successful_step_makes_the_episode_a_success() -> None:
    trial = trials("ML1-reach-v3", horizon=120, episodes_per_trial=3)
    trial.reset(seed=0)
    infos = reach_then_leave(trial, 0, 120)
    assert infos[-1]["inner_episode"]["success"] is False
    infos = reach_then_leave(trial, 60, 60)
    assert any(info["success"] for info in infos) and infos[-1]["success"] is False
    assert infos[-1]["inner_episode"]["success"] is True
    infos = reach_then_leave(trial, 0, 120)
    assert infos[-1]["trial"]["success"] == [False, True, False]
    assert infos[-1]["is_success"] is False


@needs_metaworld
def test_episodes_that_end_on_success() -> None:
    trial = trials("ML1-reach-v3", horizon=120, episodes_per_trial=3, end_on_success_after=1)
    trial.reset(seed=0)
    lengths = [len(reach_then_leave(trial, 120, 0)) for _ in range(3)]
    assert lengths[0] == 120
    assert lengths[1] == lengths[2] < 60
    with pytest.raises(gym.error.ResetNeeded):
        trial.step(np.zeros(4, np.float32))
    trial.reset()
    assert len(reach_then_leave(trial, 120, 0)) == 120, "a new task, a new count"


@needs_metaworld
@pytest.mark.parametrize(
    "env_id, kwargs",
    [
        ("ML10-v3", {}),
        ("ML1-bin-picking-v3", {}),
        ("ML1-hammer-v3", {"reward_version": "v1"}),
        ("ML1-reach-v3", {"end_on_success_after": 1}),
        ("ML1-push-v3", {"random_frames": True, "hide_objects": True}),
    ],
)
@pytest.mark.parametrize("n_before", [0, 17, 53])
def test_trials_go_on_from_their_state(env_id: str, kwargs: Any, n_before: int) -> None:
    def step(env: TrialWrapper) -> list[Any]:
        token, reward, terminated, truncated, info = env.step(env.action_space.sample())
        if terminated or truncated:
            token = env.reset()[0]
        return [token.tolist(), reward, terminated, truncated, json.dumps(info)]

    env, other = (trials(env_id, horizon=20, **kwargs) for _ in range(2))
    env.reset(seed=1)
    env.action_space.seed(2)
    for _ in range(n_before):
        step(env)
    other.reset(seed=99)
    state = through_files(env.get_trial_state())
    other.set_trial_state(state)
    env.action_space.seed(3)
    other.action_space.seed(3)
    for _ in range(130):  # several trials: in ML10 other environments, in an order that has begun before
        assert step(env) == step(other)
    assert env.sample_tasks(1) == other.sample_tasks(1)
    assert env.sample_tasks(7, "test") == other.sample_tasks(7, "test")


@needs_metaworld
def test_images() -> None:
    env: Any = trials("ML10-v3", render_mode="rgb_array", horizon=5, episodes_per_trial=1)
    assert trials("ML10-v3").render() is None
    images = []
    for seed in range(2):
        env.reset(seed=seed)
        env.step(env.action_space.sample())
        try:
            images.append(env.render())
        except RuntimeError as error:
            assert "apt-get install" in str(error)
            pytest.skip(f"no OpenGL here: {error}")
    assert images[0].shape == (480, 480, 3) and images[0].dtype == np.uint8
    assert images[0].std() > 10 and (images[0] != images[1]).mean() > 0.01
    env.close()
    env.close()


# ---- results -----------------------------------------------------------------------------------------------------------


def adaptation_result(env_kwargs: Any = None) -> AdaptationResult:
    """Two goals of a, one of b; 2 episodes of adaptation and 2 that count."""
    tasks = [{"environment": name, "split": "test", "goal": goal} for name, goal in (("a-v3", 0), ("b-v3", 0), ("a-v3", 1))]
    return AdaptationResult(
        tasks=tasks,
        returns=np.array([[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0], [9.0, 10.0, 11.0, 12.0]]),
        lengths=np.full((3, 4), 500),
        success=np.array([[True, False, True, False], [False, False, True, True], [True, True, False, False]]),
        settings={"env_id": "ML10-v3", "env_kwargs": env_kwargs or {}, "split": "test", "seed": 0, "deterministic": True},
    )


def test_results_by_environment() -> None:
    parts = adaptation_result().by_environment()
    assert list(parts) == ["a-v3", "b-v3"]
    assert [task["goal"] for task in parts["a-v3"].tasks] == [0, 1]
    np.testing.assert_array_equal(parts["a-v3"].curve, [5, 6, 7, 8])
    np.testing.assert_array_equal(parts["b-v3"].returns, [[5, 6, 7, 8]])
    np.testing.assert_array_equal(parts["a-v3"].success, [[True, False, True, False], [True, True, False, False]])
    plain = AdaptationResult(tasks=[{"goal": [1.0, 2.0]}], returns=np.ones((1, 2)), lengths=np.ones((1, 2)), success=None)
    assert plain.by_environment() == {}


def test_environments_in_the_command_line() -> None:
    lines = evaluation_text(adaptation_result(), None).splitlines()
    start = next(index for index, line in enumerate(lines) if line.startswith("environment"))
    assert lines[start + 1].split() == ["a-v3", "2", "5.00", "8.00", "100%", "0%"]
    assert lines[start + 2].split() == ["b-v3", "1", "5.00", "8.00", "0%", "100%"]
    data = evaluation_data(adaptation_result(), None)["environments"]
    assert data["a-v3"]["n_tasks"] == 2
    np.testing.assert_array_equal(data["b-v3"]["success"], [0, 0, 1, 1])


def test_metaworld_result_by_hand() -> None:
    result = MetaWorldResult(adaptation_result({"reward_scale": 0.5}), adaptation_episodes=2)
    np.testing.assert_array_equal(result.success, [[True, False], [True, True], [False, False]])
    assert result.environments == {"a-v3": EnvironmentScore(2, 0.25, 15.0), "b-v3": EnvironmentScore(1, 1.0, 15.0)}
    assert result.success_rate == 0.625  # the mean of environments, not of tasks
    assert result.mean_return == 15.0
    lower, upper = result.interval()
    assert 0.0 == lower < result.success.mean() < upper == 1.0
    assert [line.split() for line in result.table().splitlines()[1:4]] == [
        ["a-v3", "2", "25.0%", "15"],
        ["b-v3", "1", "100.0%", "15"],
        ["all", "3", "62.5%", "15"],
    ]


def test_tasks_with_words_where_numbers_are_asked_for() -> None:
    assert task_parameter(adaptation_result())[0] == "goal"
    with pytest.raises(ValueError, match=r"\['environment', 'split'\].*words"):
        task_vector(adaptation_result().tasks[0])


# ---- the protocol ------------------------------------------------------------------------------------------------------


class Climber:
    """
    Goes on while the reward rises and turns when it falls; its state is all that it knows of the trial, and it is told the
    reward by the token. It finds goals of reach, sooner or later.
    """

    directions = np.array([[1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1], [0, 0, -1]], np.float32)

    def predict(self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False) -> Any:
        n_envs = len(observation)
        turns, last = (np.zeros(n_envs), np.zeros(n_envs)) if state is None else state
        turns, last = np.where(episode_start, 0, turns), np.where(episode_start, 0, last)
        reward = observation[:, 43].astype(np.float64)
        turns = turns + (reward < last)
        actions = np.zeros((n_envs, 4), np.float32)
        actions[:, :3] = self.directions[(turns % 6).astype(int)]
        return actions, (turns, reward)


def metaworld_environments(tasks: list[Any], horizon: int) -> Any:
    """:return: What Meta-World's ``make_ml_envs`` makes, with one environment per task, and tokens."""
    import metaworld

    def maker(task: Any) -> Any:
        vector = benchmark_goals("ML10-v3", task["split"], 0)[task["environment"]][task["goal"]]
        cls = metaworld.ALL_V3_ENVIRONMENTS[task["environment"]]
        own = metaworld._encode_task(task["environment"], dict(rand_vec=vector, env_cls=cls, partially_observable=True))
        return lambda: TokenObservation(
            metaworld._init_each_env(cls, [own], seed=0, max_episode_steps=horizon, task_select="pseudorandom")
        )

    return gym.vector.SyncVectorEnv([maker(task) for task in tasks], autoreset_mode=gym.vector.AutoresetMode.SAME_STEP)


@needs_metaworld
@pytest.mark.parametrize("kind", ["climber", "network"])
def test_metaworlds_own_evaluation_says_the_same(kind: str) -> None:
    from metaworld.evaluation import metalearning_evaluation

    horizon, n_adapting = (60 if kind == "climber" else 15), 4
    names = list(benchmark_goals("ML10-v3", "train", 0))
    model: Any = Climber()
    if kind == "network":
        policy_kwargs = dict(memory_encoder_kwargs=dict(embed_dim=16, n_heads=2, n_layers=1))
        env = trials("ML10-v3", horizon=horizon)
        model = TrMRLPPO(
            "TrMRLPolicy", env, n_steps=2 * horizon, batch_size=2 * horizon, device="cpu", seed=0, policy_kwargs=policy_kwargs
        )
    ours = evaluate_metaworld(
        model,
        "ML10-v3",
        n_goals=1,
        split="train",
        adaptation_episodes=n_adapting,
        env_kwargs=dict(horizon=horizon),
        n_envs=1,
    )
    tasks = [{"environment": name, "split": "train", "goal": 0} for name in names]
    assert ours.trials.tasks == tasks
    theirs = metaworld_environments(tasks, horizon)
    success_rate, mean_return, success_rates = metalearning_evaluation(
        MemoryAgent(model), theirs, num_evals=1, adaptation_episodes=n_adapting, evaluation_episodes=3
    )
    theirs.close()
    assert success_rate == pytest.approx(ours.success_rate, abs=1e-12)
    assert mean_return == pytest.approx(ours.mean_return, rel=1e-6)
    for name, rate in success_rates.items():
        assert rate == pytest.approx(ours.environments[name].success_rate, abs=1e-12)
    if kind == "climber":
        assert 0 < success_rate < 1, "or else it says nothing"
        assert ours.trials.lengths[:, n_adapting:].min() < horizon, "ends on success"
        assert (ours.trials.lengths[:, :n_adapting] == horizon).all()


@needs_metaworld
def test_the_protocols_numbers() -> None:
    """10 + 3 episodes of every goal; the memory goes through all of them."""

    class Counts:
        def __init__(self) -> None:
            self.steps: list[np.ndarray] = []

        def predict(self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False) -> Any:
            assert deterministic
            steps = np.zeros(len(observation)) if state is None else state[0]
            steps = np.where(episode_start, 0, steps)
            self.steps.append(steps)
            return np.zeros((len(observation), 4), np.float32), (steps + 1,)

    model = Counts()
    result = evaluate_metaworld(model, "ML1-reach-v3", n_goals=2, env_kwargs=dict(horizon=3), n_envs=1)
    assert result.trials.tasks == [{"environment": "reach-v3", "split": "test", "goal": goal} for goal in range(2)]
    assert result.trials.returns.shape == (2, 13) and result.success.shape == (2, 3)
    assert [int(steps[0]) for steps in model.steps] == 2 * list(range(39))
    assert result.trials.settings["env_kwargs"] == {"horizon": 3, "end_on_success_after": 10}


@needs_metaworld
@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"env_id": "PointRobot-v0"}, "env_id must be one of Meta-World's.*'PointRobot-v0'"),
        ({"env_id": "ML10-v3", "n_goals": 51}, "n_goals must be an integer from 1 to 50.*51"),
        ({"env_id": "ML10-v3", "evaluation_episodes": 0}, "evaluation_episodes must be an integer >= 1, got 0"),
        ({"env_id": "ML10-v3", "env_kwargs": {"split": "train"}}, "split"),
    ],
)
def test_bad_arguments_of_the_protocol(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate_metaworld(lambda tokens: np.zeros((len(tokens), 4)), **arguments)


@needs_metaworld
def test_adaptation_is_evaluated_on_distinct_balanced_tasks() -> None:
    result = evaluate_adaptation(
        lambda tokens: np.zeros((len(tokens), 4), np.float32),
        "ML10-v3",
        n_tasks=10,
        n_episodes=1,
        env_kwargs=dict(horizon=2),
        n_envs=1,
    )
    assert {name: part.n_tasks for name, part in result.by_environment().items()} == dict.fromkeys(
        sorted(benchmark_goals("ML10-v3", "test", 0)), 2
    )
    assert len({json.dumps(task) for task in result.tasks}) == 10


@needs_metaworld
def test_the_trained_agent_reaches_unseen_goals() -> None:
    folder = Path(__file__).resolve().parent.parent / "examples" / "pretrained" / "ML1-reach-v3"
    env_kwargs = dict(reward_version="v1", hide_objects=True, horizon=300)
    result = evaluate_metaworld(
        load(folder, device="cpu"),
        "ML1-reach-v3",
        n_goals=10,
        adaptation_episodes=1,
        evaluation_episodes=1,
        env_kwargs=env_kwargs,
    )
    assert result.success_rate >= 0.8  # 97 % of all 50, in the whole protocol (docs/guide/metaworld.md)

"""Meta-World's families: ids, goals, sampling, trials. Trajectories: test_metaworld_sim.py."""

import json
import pickle
import subprocess
import sys
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env as gym_check_env
from stable_baselines3.common.env_checker import check_env as sb3_check_env
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_trmrl.common.env_util import make_meta_vec_env
from sb3_trmrl.common.references import file_name
from sb3_trmrl.common.vec_env import ProcessVecEnv
from sb3_trmrl.envs import META_ENVS, METAWORLD_ENVS, TASK_FAMILIES, MetaWorldEnv, TokenSpace, TrialWrapper
from sb3_trmrl.envs.metaworld import ENVIRONMENTS, benchmark_goals
from tests.raw_metaworld import family_of, needs_metaworld, raw_environment, trials
from tests.test_resume import through_files

pytestmark = pytest.mark.filterwarnings("ignore:Constant.s. may be too high")  # of Meta-World's experts


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
        with pytest.raises(ImportError, match=r"pip install -e '\.\[metaworld\]' in a clone.*mujoco 3\.3\.0"):
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
        ({"hide_objects": "no"}, "hide_objects must be True or False, got 'no'"),
        ({"random_frames": 1}, "random_frames must be True or False, got 1"),
        ({"benchmark_seed": -1}, "benchmark_seed must be an integer from 0.*got -1"),
        ({"end_on_success_after": 1.5}, "end_on_success_after must be an integer >= 0.*got 1.5"),
        ({"horizon": 0}, "horizon must be an integer >= 1"),
        ({"render_mode": "human"}, r"render_mode='human'.*\['rgb_array'\]"),
    ],
)
def test_bad_keywords(kwargs: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        METAWORLD_ENVS["ML1-reach-v3"](**kwargs)


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

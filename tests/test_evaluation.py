"""Meta-evaluation and its pictures: scripted agents whose adaptation curve is known."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from sb3_contrib import RecurrentPPO
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize
from tqdm import tqdm

from sb3_trmrl import RL2PPO, AdaptationResult, TrMRLPPO, evaluate_adaptation
from sb3_trmrl.common.callbacks import MetaEvalCallback
from sb3_trmrl.common.env_util import make_meta_vec_env
from sb3_trmrl.common.evaluation import adaptation_table, check_spaces, stack_runs
from sb3_trmrl.common.meta_learning_agent import PROTOCOL, AdaptingAgent, Timestep
from sb3_trmrl.common.references import RandomAgent
from sb3_trmrl.envs.meta_env import MetaEnv, Task
from sb3_trmrl.envs.trial import TrialWrapper
from sb3_trmrl.plots import plot_adaptation_curve
from tests.families import Counter, cue_trials


def counter_trials(render_mode: str | None = None, **trial_kwargs: Any) -> TrialWrapper:
    return TrialWrapper(Counter(horizon=4), **trial_kwargs)


class PullArm:
    """Pulls arm 0 in the first episode of a trial, arm 1 from then on; its state counts the steps of the trial."""

    def predict(self, observation, state=None, episode_start=None, deterministic=False):
        steps = np.zeros(len(observation)) if state is None else state[0]
        steps = np.where(episode_start, 0, steps)
        return (steps >= 10).astype(np.int64), (steps + 1,)


def test_scripted_agent_gives_exactly_its_adaptation_curve():
    tasks = [{"probabilities": [0.0, 1.0, 0.0, 0.0, 0.0]}, {"probabilities": [1.0, 0.0, 0.0, 0.0, 0.0]}]
    result = evaluate_adaptation(PullArm(), "MetaBandit-v0", n_episodes=3, tasks=tasks)
    assert result.tasks == tasks
    np.testing.assert_array_equal(result.returns, [[0, 10, 10], [10, 0, 0]])
    np.testing.assert_array_equal(result.lengths, np.full((2, 3), 10))
    np.testing.assert_array_equal(result.curve, [5, 5, 5])
    assert result.success is None


class DoNothing:
    def predict(self, observation, state=None, episode_start=None, deterministic=False):
        return np.zeros((len(observation), 2), dtype=np.float32), state


def test_early_ends_and_unequal_lengths():
    # Episodes of 2, of 4 and (cut by the horizon) of 4 steps: the first slot plays on after its trial, that does not count
    tasks = [{"reward": 1.0, "length": 2.0}, {"reward": 2.0, "length": 4.0}, {"reward": -1.0, "length": 9.0}]
    result = evaluate_adaptation(DoNothing(), counter_trials, n_episodes=3, tasks=tasks)
    np.testing.assert_array_equal(result.returns, [[2] * 3, [8] * 3, [-4] * 3])
    np.testing.assert_array_equal(result.lengths, [[2] * 3, [4] * 3, [4] * 3])


def test_progress_bar_counts_every_episode_once(monkeypatch):
    bars = []

    class Bar(tqdm):
        def __init__(self, **kwargs: Any):
            super().__init__(**{**kwargs, "disable": False})
            bars.append(self)

    monkeypatch.setattr("sb3_trmrl.common.evaluation.tqdm", Bar)
    # The first slot ends its trial after 6 of 12 steps and plays on, a whole further trial
    tasks = [{"reward": 1.0, "length": 2.0}, {"reward": 1.0, "length": 4.0}]

    def make(**trial_kwargs: Any) -> TrialWrapper:
        return counter_trials(tasks=[tasks[0]], **trial_kwargs)

    evaluate_adaptation(DoNothing(), make, n_episodes=3, tasks=tasks, progress_bar=True)
    assert [(bar.n, bar.total) for bar in bars] == [(6, 6)]


def test_one_task_one_episode_and_success():
    task = {"goal": [0.5, 0.5]}
    result = evaluate_adaptation(DoNothing(), "PointRobot-v0", n_episodes=1, tasks=[task], env_kwargs=dict(horizon=3))
    assert result.returns.shape == result.lengths.shape == (1, 1)
    assert result.success is not None and result.success.dtype == bool and result.lengths[0, 0] == 3


@pytest.mark.parametrize("split", ["train", "test", "ood"])
def test_same_seed_same_tasks_and_returns(split):
    runs = [
        evaluate_adaptation(DoNothing(), "PointRobot-v0", n_tasks=5, n_episodes=2, split=split, seed=seed)
        for seed in (0, 0, 1)
    ]
    assert runs[0].tasks == runs[1].tasks != runs[2].tasks
    np.testing.assert_array_equal(runs[0].returns, runs[1].returns)
    largest = max(abs(coordinate) for task in runs[0].tasks for coordinate in task["goal"])
    assert (largest > 1.0) == (split == "ood")


def test_test_tasks_are_not_those_of_training_with_the_same_seed():
    trained = make_meta_vec_env("PointRobot-v0", n_envs=4, seed=0, env_kwargs=dict(horizon=1, episodes_per_trial=1))
    trained.reset()
    met = set()
    for _ in range(100):
        met |= {tuple(task["goal"]) for task in trained.env_method("get_task")}
        trained.step(np.zeros((4, 2), dtype=np.float32))
    assert len(met) == 400
    unseen = evaluate_adaptation(DoNothing(), "PointRobot-v0", n_tasks=50, n_episodes=1, seed=0, env_kwargs=dict(horizon=1))
    assert not met & {tuple(task["goal"]) for task in unseen.tasks}


def test_an_id_that_a_user_registered():
    gym.register("UsersCounter-v0", entry_point=counter_trials)
    try:
        result = evaluate_adaptation(DoNothing(), "UsersCounter-v0", n_tasks=3, n_episodes=2)
    finally:
        del gym.registry["UsersCounter-v0"]
    np.testing.assert_allclose(result.returns, [[task["reward"] * min(task["length"], 4)] * 2 for task in result.tasks])


def test_errors_of_the_evaluation_name_the_argument():
    with pytest.raises(ValueError, match=r"split='tset'.*Did you mean 'test'"):
        evaluate_adaptation(DoNothing(), "PointRobot-v0", split="tset")
    with pytest.raises(ValueError, match="n_tasks must be an integer of at least 1, got 0"):
        evaluate_adaptation(DoNothing(), "PointRobot-v0", n_tasks=0)
    with pytest.raises(ValueError, match="n_episodes must be an integer of at least 1, got 0"):
        evaluate_adaptation(DoNothing(), "PointRobot-v0", n_episodes=0)
    with pytest.raises(ValueError, match=r"env_kwargs must not hold \['episodes_per_trial'\]: use n_episodes"):
        evaluate_adaptation(DoNothing(), "PointRobot-v0", env_kwargs=dict(episodes_per_trial=2))
    with pytest.raises(ValueError, match="env_id must make a trial environment"):
        evaluate_adaptation(DoNothing(), lambda **kwargs: gym.make("CartPole-v1"))
    bad_tasks: tuple[Any, ...] = ([], {}, 5)
    for tasks in bad_tasks:
        with pytest.raises(ValueError, match=r"tasks must hold at least one task .*pass \[task\]"):
            evaluate_adaptation(DoNothing(), "PointRobot-v0", tasks=tasks)
    with pytest.raises(ValueError, match=r"env_kwargs must be a dict .*got \[1\]"):
        evaluate_adaptation(DoNothing(), "PointRobot-v0", env_kwargs=[1])  # type: ignore[arg-type]


def result_of(returns: np.ndarray) -> AdaptationResult:
    return AdaptationResult(tasks=[{}] * len(returns), returns=returns, lengths=np.ones_like(returns), success=None)


@pytest.mark.parametrize("algorithm", [TrMRLPPO, RL2PPO, PPO])
def test_noise_is_that_of_the_seed_and_nothing_else_notices(algorithm):
    policy = {TrMRLPPO: "TrMRLPolicy", RL2PPO: "RL2Policy", PPO: "MlpPolicy"}[algorithm]
    model = algorithm(policy, "PointRobot-v0", seed=0, device="cpu")
    before = th.get_rng_state()
    one, again, other = (
        evaluate_adaptation(model, "PointRobot-v0", n_tasks=2, n_episodes=1, deterministic=False, seed=seed).returns
        for seed in (3, 3, 4)
    )
    np.testing.assert_array_equal(one, again)
    assert not np.allclose(one, other)
    assert th.equal(before, th.get_rng_state())


def test_interval_is_that_of_the_mean():
    rng = np.random.default_rng(0)
    returns = rng.normal(loc=[0.0, 5.0], scale=[1.0, 3.0], size=(400, 2))
    lower, upper = result_of(returns).interval(0.95)
    # For 400 tasks the bootstrap interval is the normal one: mean +- 1.96 s / sqrt(n)
    half = 1.96 * returns.std(axis=0) / np.sqrt(400)
    np.testing.assert_allclose(lower, returns.mean(axis=0) - half, atol=0.08 * half.max())
    np.testing.assert_allclose(upper, returns.mean(axis=0) + half, atol=0.08 * half.max())
    constant_lower, constant_upper = result_of(np.full((7, 3), 2.0)).interval()
    assert (constant_lower == 2.0).all() and (constant_upper == 2.0).all()


def test_table_holds_the_numbers_row_by_row():
    table = adaptation_table({"blind": result_of(np.full((3, 2), 1.0)), "TrMRL": result_of(np.array([[1.0, 4.0]] * 3))})
    assert [line.split() for line in table.splitlines()] == [
        ["episode", "blind", "TrMRL"],
        ["1", "1.00", "[1.00,", "1.00]", "1.00", "[1.00,", "1.00]"],
        ["2", "1.00", "[1.00,", "1.00]", "4.00", "[4.00,", "4.00]"],
    ]


def test_a_table_of_nothing_or_of_unequal_results():
    results = {"a": result_of(np.ones((3, 2))), "b": result_of(np.ones((3, 1)))}
    for bad in ({}, results):
        with pytest.raises(ValueError, match="results must be of at least one agent, all with the same number of episodes"):
            adaptation_table(bad)


@pytest.mark.parametrize("ending", ["png", "svg"])
def test_picture_is_written_and_shows_the_curve(tmp_path: Path, ending):
    path = tmp_path / f"curve.{ending}"
    result = result_of(np.array([[0.0, 1.0, 2.0], [0.0, 2.0, 4.0]]))
    plot_adaptation_curve({"TrMRL": result}, path, references={"blind": 0.0, "oracle": 4.0}, title="Title")
    if ending == "png":
        from matplotlib.image import imread

        image = imread(path)
        blue = (np.abs(image[..., :3] - np.array([0x00, 0x72, 0xB2]) / 255) < 0.02).all(axis=-1)
        # The line rises: among its pixels those further right are higher up
        rows, columns = np.nonzero(blue)
        assert blue.sum() > 500 and np.corrcoef(rows, columns)[0, 1] < -0.8
    else:
        assert path.read_text().lstrip().startswith("<?xml")


@pytest.mark.parametrize("split", ["test", "train"])
def test_an_environment_with_a_list_of_tasks_meets_the_tasks_of_the_seed(split):
    expected = evaluate_adaptation(DoNothing(), "PointRobot-v0", 3, 2, "test", seed=5)
    env = gym.make("PointRobot-v0", episodes_per_trial=2, split=split, tasks=[{"goal": [0.0, 0.0]}])
    result = evaluate_adaptation(DoNothing(), env, 3, 2, "test", seed=5)
    assert result.tasks == expected.tasks
    np.testing.assert_array_equal(result.returns, expected.returns)


# ---- every kind of agent -----------------------------------------------------------------------------------------------


def by_hand(model: Any, env_id: str, tasks: list[Task], n_episodes: int, seed: int, **env_kwargs: Any) -> np.ndarray:
    """Each task alone, in a plain gymnasium loop, started as the evaluation starts it."""
    slot_seed = int(np.random.SeedSequence(seed).generate_state(1)[0] % 2**31)
    returns = []
    for index, task in enumerate(tasks):
        env = gym.make(env_id, episodes_per_trial=n_episodes, **env_kwargs)
        token, _ = env.reset(seed=slot_seed + index, options={"task": task})
        state, start, over = None, np.ones(1, dtype=bool), False
        while not over:
            action, state = model.predict(token[None], state=state, episode_start=start, deterministic=True)
            token, _, terminated, truncated, info = env.step(action[0])
            start, over = np.zeros(1, dtype=bool), terminated or truncated
        returns.append(info["trial"]["returns"])
    return np.array(returns)


def make_model(kind: str, env_id: str) -> Any:
    small = dict(embed_dim=8, n_heads=2, n_layers=1)
    if kind == "trmrl":
        model: Any = TrMRLPPO("TrMRLPolicy", env_id, seed=1, device="cpu", policy_kwargs=dict(memory_encoder_kwargs=small))
    elif kind == "rl2":
        model = RL2PPO(
            "RL2Policy", env_id, seed=1, device="cpu", policy_kwargs=dict(memory_encoder_kwargs=dict(hidden_size=8))
        )
    elif kind == "ppo":
        model = PPO("MlpPolicy", env_id, seed=1, device="cpu")
    else:
        model = RecurrentPPO("MlpLstmPolicy", env_id, seed=1, device="cpu", policy_kwargs=dict(lstm_hidden_size=8))
    with th.no_grad():  # an untrained policy does nearly the same whatever it sees
        model.policy.action_net.weight.mul_(200.0)
    return model


@pytest.mark.parametrize("kind", ["trmrl", "rl2", "ppo", "ppo_lstm"])
def test_side_by_side_is_one_after_the_other(kind):
    # The model was made for trials of 2 episodes, the evaluation has 3
    model = make_model(kind, "PointRobot-v0")
    result = evaluate_adaptation(model, "PointRobot-v0", n_tasks=4, n_episodes=3, seed=5, env_kwargs=dict(horizon=6))
    expected = by_hand(model, "PointRobot-v0", result.tasks, 3, seed=5, horizon=6)
    np.testing.assert_allclose(result.returns, expected, atol=1e-3)
    # The comparison can fail: the tasks differ
    assert np.abs(result.returns - expected[::-1]).max() > 0.1


@pytest.mark.parametrize("n_envs", [1, 2, 3])
def test_number_of_slots_changes_nothing(n_envs):
    all_at_once, fewer = (
        evaluate_adaptation(DoNothing(), "PointRobot-v0", n_tasks=5, n_episodes=2, seed=3, n_envs=n) for n in (None, n_envs)
    )
    assert all_at_once.tasks == fewer.tasks
    np.testing.assert_array_equal(all_at_once.returns, fewer.returns)


def test_environments_that_are_made_already():
    def make() -> TrialWrapper:
        return gym.make("PointRobot-v0", episodes_per_trial=2).unwrapped  # type: ignore[return-value]

    expected = evaluate_adaptation(DoNothing(), "PointRobot-v0", n_tasks=5, n_episodes=2, split="ood", seed=3)
    single, vec_env = make(), DummyVecEnv([make] * 2)
    for env in (single, vec_env):
        result = evaluate_adaptation(DoNothing(), env, n_tasks=5, n_episodes=2, split="ood", seed=3)
        assert result.tasks == expected.tasks
        np.testing.assert_array_equal(result.returns, expected.returns)
    # Nothing of the evaluation stays: the next trials have tasks of the environment's own split
    vec_env.reset()
    single.reset(seed=0)
    for task in (single.get_task(), *vec_env.env_method("get_task")):
        assert max(map(abs, task["goal"])) < 1.0
    with pytest.raises(ValueError, match=r"env_id plays trials of 2 episodes, n_episodes is 6: pass n_episodes=2"):
        evaluate_adaptation(DoNothing(), single)
    with pytest.raises(ValueError, match=r"env_kwargs=.*env_id is one already"):
        evaluate_adaptation(DoNothing(), single, n_episodes=2, env_kwargs=dict(horizon=3))
    with pytest.raises(ValueError, match=r"must be a trial environment .*<Counter.*put TrialWrapper\(env, 6\) around"):
        evaluate_adaptation(DoNothing(), Counter(horizon=4))


def test_normalised_environment_is_what_the_agent_sees():
    # Behind VecNormalize an agent is evaluated as it was trained
    vec_env = VecNormalize(
        DummyVecEnv([lambda: gym.make("PointRobot-v0", episodes_per_trial=1)]),
        norm_obs=False,
        norm_reward=True,
        training=False,
    )
    result = evaluate_adaptation(DoNothing(), vec_env, n_tasks=2, n_episodes=1)
    expected = evaluate_adaptation(DoNothing(), "PointRobot-v0", n_tasks=2, n_episodes=1)
    np.testing.assert_array_equal(result.returns, expected.returns)  # rewards as they are
    assert not vec_env.training, "frozen it stays"


def test_a_function_is_an_agent():
    tasks = [{"goal": [0.5, 0.5]}, {"goal": [-1.0, 0.0]}]
    result = evaluate_adaptation(lambda tokens: np.zeros((len(tokens), 2)), "PointRobot-v0", n_episodes=2, tasks=tasks)
    expected = evaluate_adaptation(DoNothing(), "PointRobot-v0", n_episodes=2, tasks=tasks)
    np.testing.assert_array_equal(result.returns, expected.returns)


# ---- Meta-World's protocol -----------------------------------------------------------------------------------------------


class BestArm:
    """Tries arm 0, 1, 2, ... in the episodes of adaptation, then pulls the best; tells what was asked of it."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.paid = np.zeros((0, 5))
        self.masks: list[np.ndarray] = []

    def init(self) -> None:
        self.calls.append("init")
        self.steps = 0

    def adapt_action(self, observations: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        if len(self.paid) == 0:
            self.paid = np.zeros((len(observations), 5))
        return np.full(len(observations), self.steps // 10), {"step": np.array(self.steps)}

    def step(self, timestep: Any) -> None:
        assert timestep.aux_policy_outputs["step"] == self.steps
        assert timestep.observation.shape == (len(self.paid), 8) and not timestep.terminated.any()
        assert timestep.truncated.all() == (self.steps % 10 == 9)
        self.paid[np.arange(len(self.paid)), timestep.action] += timestep.reward
        self.steps += 1

    def adapt(self) -> None:
        self.calls.append("adapt")
        self.best = self.paid.argmax(axis=1)

    def eval_action(self, observations: np.ndarray) -> np.ndarray:
        return self.best

    def reset(self, env_mask: np.ndarray) -> None:
        self.masks.append(env_mask)


def test_meta_learning_agent_explores_adapts_and_is_evaluated():
    tasks = [{"probabilities": np.eye(5)[arm].tolist()} for arm in (0, 2)]
    agent = BestArm()
    result = evaluate_adaptation(agent, "MetaBandit-v0", n_episodes=4, tasks=tasks)
    np.testing.assert_array_equal(result.returns, [[10, 0, 0, 10], [0, 0, 10, 10]])
    np.testing.assert_array_equal(result.lengths, np.full((2, 4), 10))
    assert agent.calls == ["init", "adapt"]
    # At the start of evaluation and at the end of its episode
    assert [mask.tolist() for mask in agent.masks] == [[True, True], [True, True]]


def test_numbers_of_adaptations_and_their_episodes():
    agent = BestArm()
    tasks = [{"probabilities": np.eye(5)[1].tolist()}]
    result = evaluate_adaptation(AdaptingAgent(agent, 2, 1), "MetaBandit-v0", n_episodes=5, tasks=tasks)
    np.testing.assert_array_equal(result.returns, [[0, 10, 10, 10, 10]])
    assert agent.calls == ["init", "adapt", "adapt"] and len(agent.masks) == 4
    with pytest.raises(ValueError, match=r"more than the 6 episodes of adaptation \(2 x 3\).*got 6"):
        evaluate_adaptation(AdaptingAgent(agent, 2, 3), "MetaBandit-v0", n_episodes=6)
    with pytest.raises(ValueError, match="adaptation_steps must be an integer >= 1, got 0"):
        AdaptingAgent(agent, 0)
    with pytest.raises(ValueError, match="n_envs=3, but a MetaLearningAgent plays all tasks side by side"):
        evaluate_adaptation(agent, "MetaBandit-v0", n_envs=3)
    with pytest.raises(ValueError, match="MetaLearningAgent needs the id"):
        evaluate_adaptation(agent, gym.make("MetaBandit-v0", episodes_per_trial=6), n_tasks=2)


def test_protocol_is_that_of_metaworld():
    evaluation = pytest.importorskip("metaworld.evaluation")
    assert Timestep._fields == evaluation.Timestep._fields
    theirs = {name for protocol in (evaluation.Agent, evaluation.MetaLearningAgent) for name in vars(protocol)}
    assert set(PROTOCOL) == {name for name in theirs if not name.startswith("_")}


class CountSteps(BestArm):
    """Acts in :class:`Counter`, whose episodes have unequal lengths."""

    def adapt_action(self, observations: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        return np.zeros((len(observations), 2), np.float32), {}

    def step(self, timestep: Any) -> None:
        self.steps += 1

    def adapt(self) -> None:
        self.calls.append(f"adapt after {self.steps}")

    def eval_action(self, observations: np.ndarray) -> np.ndarray:
        return np.zeros((len(observations), 2), np.float32)


def test_meta_learning_agent_with_unequal_lengths():
    tasks = [{"reward": 1.0, "length": 2.0}, {"reward": 2.0, "length": 4.0}]
    agent = CountSteps()
    result = evaluate_adaptation(agent, counter_trials, n_episodes=3, tasks=tasks)
    np.testing.assert_array_equal(result.returns, [[2] * 3, [8] * 3])
    np.testing.assert_array_equal(result.lengths, [[2] * 3, [4] * 3])
    # The phase lasts as long as the slower task needs for its two episodes
    assert agent.calls == ["init", "adapt after 8"]


# ---- tasks ---------------------------------------------------------------------------------------------------------------


def test_tasks_are_distinct_and_evenly_repeated_where_a_family_has_few():
    result = evaluate_adaptation(lambda tokens: np.zeros(len(tokens), np.int64), cue_trials, n_tasks=10, n_episodes=2)
    counts = np.bincount([int(task["cue"]) for task in result.tasks], minlength=4)
    assert sorted(counts) == [2, 2, 3, 3]
    many = evaluate_adaptation(DoNothing(), "PointRobot-v0", n_tasks=50, n_episodes=1, env_kwargs=dict(horizon=1))
    assert len({tuple(task["goal"]) for task in many.tasks}) == 50


def test_fewer_tasks_are_the_first_of_more():
    # So that references on many tasks stand beside an evaluation on few
    few, many = (evaluate_adaptation(DoNothing(), "PointRobot-v0", n_tasks=n, n_episodes=2) for n in (3, 8))
    assert few.tasks == many.tasks[:3]
    np.testing.assert_array_equal(few.returns, many.returns[:3])


# ---- files ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["npz", "json"])
@pytest.mark.parametrize("env_id", ["PointRobot-v0", "MetaBandit-v0"])
def test_saved_and_loaded(tmp_path, ending, env_id):
    model = RandomAgent(gym.make(env_id).action_space, seed=0)
    result = evaluate_adaptation(model, env_id, n_tasks=3, n_episodes=2, env_kwargs=dict(horizon=3))
    path = tmp_path / "folder" / f"result.{ending}"
    result.save(path)
    loaded = AdaptationResult.load(path)
    assert loaded.tasks == result.tasks and loaded.settings == result.settings and loaded.wall_time == result.wall_time
    assert loaded.settings["env_id"] == env_id and loaded.settings["env_kwargs"] == {"horizon": 3}
    np.testing.assert_array_equal(loaded.returns, result.returns)
    np.testing.assert_array_equal(loaded.lengths, result.lengths)
    assert (loaded.success is None) == (result.success is None) == (env_id == "MetaBandit-v0")
    if result.success is not None:
        np.testing.assert_array_equal(loaded.success, result.success)


def test_broken_files(tmp_path):
    path = tmp_path / "result.npz"
    result_of(np.ones((3, 2))).save(path)
    whole = path.read_bytes()
    for content in (b"", b"no zip", whole[: len(whole) // 2], whole[:-40]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"result\.npz is no saved AdaptationResult, or it is broken: ") as told:
            AdaptationResult.load(path)
        assert "pickle" not in str(told.value)
    np.savez(path, returns=np.ones((3, 2)))
    with pytest.raises(ValueError, match="it has no 'tasks'"):
        AdaptationResult.load(path)
    np.savez(path, timesteps=np.ones(3), returns=np.ones((3, 2, 2)))
    with pytest.raises(ValueError, match=r"log of a training.*plot learning"):
        AdaptationResult.load(path)
    for text in (
        '{"tasks": [{}], "returns": [[]], "lengths": [[]], "wall_time": 0, "settings": {}}',
        '{"tasks": [], "returns": [], "lengths": [], "wall_time": 0, "settings": {}}',
    ):
        (tmp_path / "result.json").write_text(text)
        with pytest.raises(ValueError, match="it holds no episodes"):
            AdaptationResult.load(tmp_path / "result.json")
    for text in ("", "[]", "{}", '{"tasks": [{}], "returns": [[1], [2]], "lengths": [[1]], "wall_time": 0, "settings": {}}'):
        (tmp_path / "result.json").write_text(text)
        with pytest.raises(ValueError, match="no saved AdaptationResult"):
            AdaptationResult.load(tmp_path / "result.json")
    with pytest.raises(ValueError, match=r"must end in \.npz or \.json, got .*result\.txt"):
        AdaptationResult.load(tmp_path / "result.txt")
    with pytest.raises(ValueError, match=r"must end in \.npz or \.json"):
        result_of(np.ones((3, 2))).save(tmp_path / "result.txt")
    with pytest.raises(FileNotFoundError):
        AdaptationResult.load(tmp_path / "nowhere.npz")


@pytest.mark.parametrize("ending", ["npz", "json"])
def test_files_with_broken_bytes(tmp_path, ending):
    path = tmp_path / f"result.{ending}"
    result_of(np.ones((3, 2))).save(path)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    n_refused = 0
    for _ in range(400):
        content = bytearray(whole)
        content[rng.integers(len(content))] ^= 1 << rng.integers(8)
        path.write_bytes(bytes(content))
        try:
            AdaptationResult.load(path)
        except ValueError as error:
            assert "no saved AdaptationResult, or it is broken" in str(error)
            n_refused += 1
    assert n_refused > 100


def test_numbers_without_end_and_lists_without_bottom(tmp_path):
    path = tmp_path / "result.json"
    result_of(np.ones((1, 1))).save(path)
    text = path.read_text()
    for replaced in (text.replace('"lengths": [[', '"lengths": [[1e30, '), text.replace('"lengths": [[', "[" * 10**6)):
        assert replaced != text
        path.write_text(replaced)
        with pytest.raises(ValueError, match="no saved AdaptationResult, or it is broken"):
            AdaptationResult.load(path)


def test_saved_where_it_was_told_with_numbers_of_numpy(tmp_path):
    result = dataclasses.replace(
        result_of(np.ones((3, 2))), settings={"horizon": np.int64(30), "deterministic": np.bool_(True)}
    )
    for name in ("R.NPZ", "r.json"):
        result.save(tmp_path / name)
        assert AdaptationResult.load(tmp_path / name).settings == {"horizon": 30, "deterministic": True}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["R.NPZ", "r.json"]


def test_runs_on_other_tasks_are_not_compared():
    ones = result_of(np.ones((3, 2)))
    assert stack_runs([ones, ones]).shape == (2, 3, 2) and stack_runs(ones).shape == (1, 3, 2)
    with pytest.raises(ValueError, match="3 tasks x 2 episodes and 3 tasks x 4 episodes"):
        stack_runs([ones, result_of(np.ones((3, 4)))])
    other = AdaptationResult(tasks=[{"a": 1.0}] * 3, returns=np.ones((3, 2)), lengths=np.ones((3, 2)), success=None)
    with pytest.raises(ValueError, match="got other tasks: evaluate them with the same seed"):
        stack_runs([ones, other])


# ---- mistakes ------------------------------------------------------------------------------------------------------------


def test_model_of_other_spaces():
    model = make_model("ppo", "PointRobot-v0")
    with pytest.raises(ValueError, match=r"model's observation_space is Box\(6,\), the environment's is Box\(8,\).*family"):
        evaluate_adaptation(model, "MetaBandit-v0")
    with pytest.raises(ValueError, match=r"model's observation_space is Box\(6,\), the environment's is Box\(28,\)"):
        evaluate_adaptation(model, "HalfCheetahVel-v0", n_tasks=1)
    three_arms = make_model("ppo", "MetaBandit-v0")
    with pytest.raises(ValueError, match="do not fit"):
        evaluate_adaptation(three_arms, "MetaBandit-v0", env_kwargs=dict(n_arms=3))
    # Families that share their spaces may be exchanged
    evaluate_adaptation(model, "SparsePointRobot-v0", n_tasks=1, n_episodes=1)


def test_dicts_with_the_same_keys_and_other_shapes():
    def seeing(size: int) -> Any:
        return SimpleNamespace(observation_space=spaces.Dict(a=spaces.Box(-1, 1, (size,))), action_space=spaces.Discrete(2))

    check_spaces(seeing(2), seeing(2))
    with pytest.raises(ValueError, match=r"do not fit.*Box\(2,\).*Box\(3,\)"):
        check_spaces(seeing(2), seeing(3))


def test_more_mistakes():
    with pytest.raises(ValueError, match="model must have SB3's predict"):
        evaluate_adaptation(object(), "PointRobot-v0")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"n_envs must be an integer >= 1.*got 0"):
        evaluate_adaptation(DoNothing(), "PointRobot-v0", n_envs=0)
    with pytest.raises(ValueError, match=r"n_envs=3 is for environments that are to be made"):
        evaluate_adaptation(DoNothing(), vec_point_robot(episodes_per_trial=6), n_envs=3)
    with pytest.raises(ValueError, match=r"got \{'goal': \[0, 0\]\}: pass \[task\]"):
        evaluate_adaptation(DoNothing(), "PointRobot-v0", tasks={"goal": [0, 0]})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"does not make a trial environment with .*horizn"):
        evaluate_adaptation(DoNothing(), "PointRobot-v0", env_kwargs=dict(horizn=3))
    with pytest.raises(ValueError, match=r"split='ood' does not exist in HalfCheetahDir, it has \['train', 'test'\]"):
        evaluate_adaptation(DoNothing(), "HalfCheetahDir-v0", split="ood")
    with pytest.raises(ValueError, match=r"action for .* must be finite"):
        evaluate_adaptation(lambda tokens: np.full((len(tokens), 2), np.nan), "PointRobot-v0", n_tasks=2)


def test_runs_of_other_environments_are_not_compared():
    def played(env_id: str | None, **env_kwargs: Any) -> AdaptationResult:
        settings = dict(env_id=env_id, env_kwargs=env_kwargs)
        ones = np.ones((1, 2))
        return AdaptationResult([{"direction": 1.0}], returns=ones, lengths=ones, success=None, settings=settings)

    cheetah = played("HalfCheetahDir-v0")
    with pytest.raises(ValueError, match="same environment, got env_id 'HalfCheetahDir-v0' and 'AntDir-v0'"):
        stack_runs([cheetah, played("AntDir-v0")])
    with pytest.raises(ValueError, match=r"same environment, got env_kwargs \{\} and \{'horizon': 100\}"):
        stack_runs([cheetah, played("HalfCheetahDir-v0", horizon=100)])
    # The family's own horizon, the length of a trial and pictures change no return; of some results nobody knows the id
    same = [played("HalfCheetahDir-v0", horizon=200, render_mode="rgb_array"), played(None), played(None, horizon=3)]
    for other in same:
        assert stack_runs([cheetah, other]).shape == (2, 1, 2)


class Film(MetaEnv):
    """Channel-last pictures as bright as the last action, which is the reward."""

    task_shapes = {"number": ()}
    observation_space = spaces.Box(0, 255, (36, 36, 3), np.uint8)
    action_space = spaces.Discrete(2)

    def _sample_task(self, split: str) -> Task:
        return {"number": float(self.np_random.integers(100))}

    def _reset(self) -> np.ndarray:
        return np.zeros((36, 36, 3), np.uint8)

    def _step(self, action: Any) -> Any:
        return np.full((36, 36, 3), int(action) * 100, np.uint8), float(action), False, False, {}


def film_trials(**trial_kwargs: Any) -> TrialWrapper:
    return TrialWrapper(Film(3), **trial_kwargs)


@pytest.mark.parametrize("algorithm", ["trmrl", "ppo"])
def test_pictures_with_channels_last(algorithm):
    # SB3 turns the pictures of the training environment round, and its predict those of any other
    env = DummyVecEnv([film_trials])
    kwargs: dict[str, Any] = dict(n_steps=12, batch_size=12, n_epochs=1, seed=0, device="cpu")
    model = TrMRLPPO("TrMRLPolicy", env, **kwargs) if algorithm == "trmrl" else PPO("MultiInputPolicy", env, **kwargs)
    model.learn(12, callback=MetaEvalCallback(6, n_tasks=2, n_episodes=2, env_id=film_trials))
    found = evaluate_adaptation(model, film_trials, n_tasks=2, n_episodes=2)
    training_env = model.get_env()
    assert training_env is not None
    again = evaluate_adaptation(model, training_env, n_tasks=2, n_episodes=2, split="train")
    np.testing.assert_array_equal(found.returns, again.returns)


def test_a_callback_of_another_family_is_told_before_training():
    model = TrMRLPPO("TrMRLPolicy", "PointRobot-v0", n_steps=12, batch_size=12, device="cpu")
    with pytest.raises(ValueError, match="model and environment do not fit"):
        model.learn(12, callback=MetaEvalCallback(12, env_id="MetaBandit-v0"))
    assert model.num_timesteps == 0


class SometimesSuccess(Counter):
    """Tells success only where there is some: in episodes that end before the horizon."""

    def _step(self, action: Any) -> Any:
        observation, reward, terminated, truncated, _ = super()._step(action)
        return observation, reward, terminated, truncated, {"success": True} if terminated else {}


def test_success_that_is_told_only_where_there_is_some():
    def make(**trial_kwargs: Any) -> TrialWrapper:
        return TrialWrapper(SometimesSuccess(horizon=4), **trial_kwargs)

    tasks = [{"reward": 1.0, "length": 9.0}, {"reward": 1.0, "length": 2.0}]
    result = evaluate_adaptation(DoNothing(), make, n_episodes=2, tasks=tasks)
    assert result.success is not None
    np.testing.assert_array_equal(result.success, [[False, False], [True, True]])


class SuccessByAction(Counter):
    """Tells success where the action is positive, else nothing."""

    def _step(self, action: Any) -> Any:
        observation, reward, terminated, truncated, _ = super()._step(action)
        return observation, reward, terminated, truncated, {"success": True} if action[0] > 0 else {}


class AdaptsToSuccess(CountSteps):
    def eval_action(self, observations: np.ndarray) -> np.ndarray:
        return np.ones((len(observations), 2), np.float32)


def test_success_that_the_first_episode_of_a_meta_learning_agent_does_not_tell():
    def make(**trial_kwargs: Any) -> TrialWrapper:
        return TrialWrapper(SuccessByAction(horizon=4), **trial_kwargs)

    tasks = [{"reward": 1.0, "length": 9.0}, {"reward": 1.0, "length": 2.0}]
    result = evaluate_adaptation(AdaptsToSuccess(), make, n_episodes=2, tasks=tasks)
    assert result.success is not None
    np.testing.assert_array_equal(result.success, [[False, True], [False, True]])


def vec_point_robot(**env_kwargs: Any) -> VecEnv:
    return make_meta_vec_env("PointRobot-v0", 1, seed=0, env_kwargs=env_kwargs)


def gym_point_robot(**env_kwargs: Any) -> "gym.Env[Any, Any]":
    # The model and the evaluation make a VecEnv of it each
    return gym.make("PointRobot-v0", **env_kwargs)


@pytest.mark.parametrize("make", [vec_point_robot, gym_point_robot])
def test_evaluating_in_the_training_environment_breaks_its_trials_off(make):
    env = make(episodes_per_trial=3)
    model = TrMRLPPO("TrMRLPolicy", env, n_steps=30, batch_size=30, n_epochs=1, seed=0, device="cpu")
    model.learn(30)
    assert model.rollout_buffer.memory_lengths[-1] == 30, "in mid-trial"
    evaluate_adaptation(model, env, n_tasks=1, n_episodes=3, split="train")
    model.learn(30, reset_num_timesteps=False)
    first = model.rollout_buffer.context_length
    assert model.rollout_buffer.memory_lengths[first] == 1, "a new trial, an empty memory"


@pytest.mark.parametrize("make", [vec_point_robot, gym_point_robot])
@pytest.mark.parametrize("counts_anew", [False, True])
def test_after_evaluations_in_it_the_training_environment_goes_on_with_new_tasks(counts_anew, make):
    env = make(episodes_per_trial=2, horizon=5)

    def train(seed: int) -> set[tuple[float, ...]]:
        model = TrMRLPPO("TrMRLPolicy", env, n_steps=30, batch_size=30, n_epochs=1, seed=seed, device="cpu")
        met = []
        for _ in range(3):
            evaluate_adaptation(model, env, n_tasks=1, n_episodes=2, split="train")
            model.learn(30, reset_num_timesteps=counts_anew)
            met.append(tuple(model.get_env().env_method("get_task")[0]["goal"]))  # type: ignore[union-attr]
        return set(met)

    tasks = train(seed=0)
    assert len(tasks) == 3
    assert train(seed=0) == tasks and not train(seed=1) & tasks, "the seed decides"


def test_an_evaluation_that_breaks_off_leaves_no_memory_either(monkeypatch):
    env = vec_point_robot(episodes_per_trial=3)
    model = TrMRLPPO("TrMRLPolicy", env, n_steps=30, batch_size=30, n_epochs=1, seed=0, device="cpu")
    model.learn(30)

    def interrupt(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(model.policy, "predict", interrupt)
        with pytest.raises(KeyboardInterrupt):
            evaluate_adaptation(model, env, n_tasks=1, n_episodes=3, split="train")
    model.learn(30, reset_num_timesteps=False)
    assert model.rollout_buffer.memory_lengths[model.rollout_buffer.context_length] == 1


@pytest.mark.parametrize("make", [vec_point_robot, gym_point_robot])
def test_sb3s_own_algorithms_go_on_after_evaluations_in_their_environment(make):
    env = make(episodes_per_trial=3)
    model = PPO("MlpPolicy", env, n_steps=30, batch_size=30, n_epochs=1, seed=0, device="cpu")
    starts: list[bool] = []

    class Evaluate(BaseCallback):
        def _on_step(self) -> bool:
            return True

        def _on_rollout_end(self) -> None:
            starts.append(bool(self.model.rollout_buffer.episode_starts[0, 0]))  # type: ignore[attr-defined]
            evaluate_adaptation(self.model, env, n_tasks=1, n_episodes=3, split="train")

    model.learn(60, callback=Evaluate())
    assert starts == [True, True] and model.num_timesteps == 60


class EvaluatesInTraining(BaseCallback):
    """Evaluates once in the training environment, in one of the callback's methods."""

    def __init__(self, hook: str):
        super().__init__()
        self.hook = hook

    def evaluate(self, hook: str) -> None:
        if hook == self.hook and self.model.num_timesteps <= 30:
            evaluate_adaptation(self.model, self.training_env, n_tasks=1, n_episodes=3, split="train")

    def _on_training_start(self) -> None:
        self.evaluate("on_training_start")

    def _on_rollout_start(self) -> None:
        self.evaluate("on_rollout_start")

    def _on_step(self) -> bool:
        self.evaluate("on_step")
        return True

    def _on_rollout_end(self) -> None:
        self.evaluate("on_rollout_end")


@pytest.mark.parametrize("hook", ["on_training_start", "on_rollout_start", "on_rollout_end", "on_step"])
def test_evaluating_in_the_training_environment_while_it_trains(hook):
    env = vec_point_robot(episodes_per_trial=3)
    model = TrMRLPPO("TrMRLPolicy", env, n_steps=30, batch_size=30, n_epochs=1, seed=0, device="cpu")
    if hook == "on_step":  # where the running trial can't be left
        with pytest.raises(ValueError, match="in the middle of a step"):
            model.learn(60, callback=EvaluatesInTraining(hook))
        evaluate_adaptation(model, env, n_tasks=1, n_episodes=3, split="train")  # but afterwards
        return
    model.learn(30 if hook == "on_training_start" else 60, callback=EvaluatesInTraining(hook))
    first = model.rollout_buffer.context_length
    assert model.rollout_buffer.memory_lengths[first] == 1, "a new trial in the rollout that follows, an empty memory"


def test_evaluating_behind_vec_normalize_leaves_its_statistics():
    env = VecNormalize(make_meta_vec_env("PointRobot-v0", 3, env_kwargs=dict(episodes_per_trial=2, split="test")))
    first, second = (evaluate_adaptation(RandomAgent(env.action_space, seed=0), env, 3, 2).returns for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert env.training and isinstance(env.obs_rms, RunningMeanStd) and env.obs_rms.count < 1


def test_a_trial_that_something_else_cuts_is_told():
    with pytest.raises(ValueError, match=r"max_episode_steps.*horizon"):
        evaluate_adaptation(DoNothing(), "PointRobot-v0", 2, 2, env_kwargs=dict(max_episode_steps=10))

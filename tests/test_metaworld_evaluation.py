"""Results by environment, and Meta-World's official evaluation against Meta-World's own code."""

import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from sb3_trmrl import AdaptationResult, TrMRLPPO, evaluate_metaworld, load
from sb3_trmrl.cli.text import evaluation_data, evaluation_text
from sb3_trmrl.common.evaluation import evaluate_adaptation
from sb3_trmrl.common.meta_learning_agent import PROTOCOL
from sb3_trmrl.common.metaworld_evaluation import EnvironmentScore, MemoryAgent, MetaWorldResult, TokenObservation
from sb3_trmrl.common.references import task_vector
from sb3_trmrl.envs.metaworld import benchmark_goals
from sb3_trmrl.plots.ood import task_parameter
from tests.raw_metaworld import needs_metaworld, trials


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


def test_agents_with_metaworlds_protocol_are_for_its_own_evaluation() -> None:
    agent = type("Agent", (), dict.fromkeys(PROTOCOL, lambda self: None))()
    with pytest.raises(ValueError, match="one with Meta-World's own protocol"):
        evaluate_metaworld(agent, "ML1-reach-v3")


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
        ({"env_id": "ML10-v3", "env_kwargs": {"episodes_per_trial": 2}}, r"\['episodes_per_trial'\]: use adaptation_episodes"),
        ({"env_id": "ML10-v3", "env_kwargs": {"split": "train", "tasks": []}}, r"must not hold \['split', 'tasks'\]"),
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

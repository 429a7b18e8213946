"""Meta-evaluation and its pictures: scripted agents whose adaptation curve is known."""

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from sb3_trmrl import AdaptationResult, evaluate_adaptation
from sb3_trmrl.common.env_util import make_meta_vec_env
from sb3_trmrl.common.evaluation import adaptation_table
from sb3_trmrl.envs.trial import TrialWrapper
from sb3_trmrl.plots import plot_adaptation_curve
from tests.families import Counter


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
    with pytest.raises(ValueError, match=r"n must be an integer >= 1.*got 0"):
        evaluate_adaptation(DoNothing(), "PointRobot-v0", n_tasks=0)
    with pytest.raises(ValueError, match="episodes_per_trial must be an integer >= 1, got 0"):
        evaluate_adaptation(DoNothing(), "PointRobot-v0", n_episodes=0)
    with pytest.raises(ValueError, match=r"env_kwargs must not hold \['episodes_per_trial'\]: use n_episodes"):
        evaluate_adaptation(DoNothing(), "PointRobot-v0", env_kwargs=dict(episodes_per_trial=2))
    with pytest.raises(ValueError, match="env_id must make a trial environment"):
        evaluate_adaptation(DoNothing(), lambda **kwargs: gym.make("CartPole-v1"))
    with pytest.raises(ValueError, match=r"tasks must .*\[\]"):
        evaluate_adaptation(DoNothing(), "PointRobot-v0", tasks=[])


def result_of(returns: np.ndarray) -> AdaptationResult:
    return AdaptationResult(tasks=[{}] * len(returns), returns=returns, lengths=np.ones_like(returns), success=None)


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


@pytest.mark.parametrize("ending", ["png", "svg"])
def test_picture_is_written_and_shows_the_curve(tmp_path: Path, ending):
    path = tmp_path / f"curve.{ending}"
    result = result_of(np.array([[0.0, 1.0, 2.0], [0.0, 2.0, 4.0]]))
    plot_adaptation_curve({"TrMRL": result}, path, references={"blind": 0.0, "oracle": 4.0}, title="Title")
    if ending == "png":
        from matplotlib.image import imread

        image = imread(path)
        blue = (np.abs(image[..., :3] - np.array([0x1F, 0x77, 0xB4]) / 255) < 0.02).all(axis=-1)
        # The line rises: among its pixels those further right are higher up
        rows, columns = np.nonzero(blue)
        assert blue.sum() > 500 and np.corrcoef(rows, columns)[0, 1] < -0.8
    else:
        assert path.read_text().lstrip().startswith("<?xml")

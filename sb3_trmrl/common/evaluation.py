"""Meta-evaluation: how the return grows over the episodes of a trial, on tasks that training has not seen."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import gymnasium as gym
import numpy as np

from sb3_trmrl.common.env_util import make_meta_vec_env
from sb3_trmrl.envs.meta_env import Task
from sb3_trmrl.envs.trial import TrialWrapper


class PredictsActions(Protocol):
    """A model or a policy: SB3's ``predict``."""

    def predict(
        self,
        observation: Any,
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """See ``stable_baselines3.common.base_class.BaseAlgorithm.predict``."""


@dataclass(frozen=True)
class AdaptationResult:
    """
    What an agent did in one trial of each task.

    :param tasks: The tasks
    :param returns: Return of each episode, shape (n_tasks, n_episodes)
    :param lengths: Steps of each episode, shape (n_tasks, n_episodes)
    :param success: Whether each episode succeeded, shape (n_tasks, n_episodes); None where the family has no success
    """

    tasks: list[Task]
    returns: np.ndarray
    lengths: np.ndarray
    success: np.ndarray | None

    @property
    def curve(self) -> np.ndarray:
        """The adaptation curve: mean return against episode index, shape (n_episodes,)."""
        return self.returns.mean(axis=0)

    def interval(self, confidence: float = 0.95, n_bootstrap: int = 10_000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """
        Percentile bootstrap interval of :attr:`curve` over tasks.

        :param confidence: Probability mass of the interval, in (0, 1)
        :param n_bootstrap: Number of resamples of the tasks
        :param seed: Seed of the resampling
        :return: Lower and upper bound for each episode, shape (n_episodes,) each
        """
        n_tasks = len(self.returns)
        resampled = np.random.default_rng(seed).integers(0, n_tasks, size=(n_bootstrap, n_tasks))
        # (n_bootstrap, n_tasks, n_episodes) -> (n_bootstrap, n_episodes)
        curves = self.returns[resampled].mean(axis=1)
        tail = (1.0 - confidence) / 2.0
        lower, upper = np.quantile(curves, [tail, 1.0 - tail], axis=0)
        return lower, upper


def evaluate_adaptation(
    model: PredictsActions,
    env_id: str | Callable[..., gym.Env[Any, Any]],
    n_tasks: int = 20,
    n_episodes: int = 6,
    split: str = "test",
    deterministic: bool = True,
    seed: int = 0,
    env_kwargs: dict[str, Any] | None = None,
    tasks: list[Task] | None = None,
) -> AdaptationResult:
    """
    Play one trial of ``n_episodes`` episodes on each of ``n_tasks`` tasks, all tasks at once, with frozen weights.

    The memory is carried as in training: emptied at the start of the trial, handed on from step to step. The trial may be
    longer than those of training.

    :param model: Anything with SB3's ``predict``
    :param env_id: Registered id of a trial environment, or a callable that makes its trial environment and takes the keyword
        arguments ``episodes_per_trial`` and ``split``
    :param n_tasks: Number of tasks
    :param n_episodes: Episodes per trial
    :param split: Where tasks are drawn from: ``"train"``, ``"test"`` or ``"ood"``
    :param deterministic: Whether actions are the mode of the policy
    :param seed: Seed of tasks and episodes
    :param env_kwargs: Further keyword arguments of the environment, for example ``dict(horizon=100)``
    :param tasks: Play these tasks instead of drawing ``n_tasks`` of them
    :return: Returns, lengths and successes by task and episode
    :raises ValueError: for an unknown split, a bad number, a task that does not fit, an environment without trials
    """
    taken = {"episodes_per_trial", "split", "tasks"} & set(env_kwargs or {})
    if taken:
        raise ValueError(f"env_kwargs must not hold {sorted(taken)}: use n_episodes, split and tasks of evaluate_adaptation.")
    env_kwargs = {**(env_kwargs or {}), "episodes_per_trial": n_episodes, "split": split}
    if tasks is None:
        family = (gym.make(env_id, **env_kwargs) if isinstance(env_id, str) else env_id(**env_kwargs)).unwrapped
        if not isinstance(family, TrialWrapper):
            raise ValueError(f"env_id must make a trial environment (a TrialWrapper), {env_id!r} makes {family}.")
        family.reset(seed=seed)
        tasks = family.sample_tasks(n_tasks)
        family.close()
    if len(tasks) == 0:
        raise ValueError("tasks must hold at least one task (or be None to draw n_tasks of them), got [].")
    n_tasks = len(tasks)
    # Episodes that training with the same seed has not started from: SB3 seeds slot i with seed + i
    slot_seed = int(np.random.SeedSequence(seed).generate_state(1)[0] % 2**31)
    vec_env = make_meta_vec_env(env_id, n_envs=n_tasks, seed=slot_seed, env_kwargs=env_kwargs, tasks=tasks)
    trials: dict[int, dict[str, Any]] = {}
    observations, state, starts = vec_env.reset(), None, np.ones(n_tasks, dtype=bool)
    while len(trials) < n_tasks:
        actions, state = model.predict(observations, state=state, episode_start=starts, deterministic=deterministic)
        observations, _, starts, infos = vec_env.step(actions)
        for slot in np.flatnonzero(starts):
            # A slot whose trial ended early plays on; only its first trial counts
            trials.setdefault(int(slot), infos[slot]["trial"])
    vec_env.close()
    ordered = [trials[slot] for slot in range(n_tasks)]
    return AdaptationResult(
        tasks=[trial["task"] for trial in ordered],
        returns=np.array([trial["returns"] for trial in ordered], dtype=np.float64),
        lengths=np.array([trial["lengths"] for trial in ordered], dtype=np.int64),
        success=np.array([trial["success"] for trial in ordered]) if "success" in ordered[0] else None,
    )


def adaptation_table(results: dict[str, AdaptationResult]) -> str:
    """
    The adaptation curves as text: a row per episode, a column per agent with the mean return and its 95 % interval over tasks.

    :param results: Result of each agent by its name; all with the same number of episodes
    :return: Lines joined by newlines
    """
    cells = {}
    for name, result in results.items():
        lower, upper = result.interval()
        cells[name] = [f"{m:.2f} [{lo:.2f}, {up:.2f}]" for m, lo, up in zip(result.curve, lower, upper, strict=True)]
    widths = {name: max(len(name), *map(len, column)) for name, column in cells.items()}
    n_episodes = len(next(iter(cells.values())))
    lines = ["episode  " + "  ".join(f"{name:>{widths[name]}}" for name in cells)]
    for episode in range(n_episodes):
        lines.append(f"{episode + 1:>7}  " + "  ".join(f"{cells[name][episode]:>{widths[name]}}" for name in cells))
    return "\n".join(lines)

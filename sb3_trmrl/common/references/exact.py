"""References that need no training: closed forms, scripts, uniform actions."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from gymnasium import spaces

from sb3_trmrl.envs.meta_env import Task
from sb3_trmrl.envs.point_robot import STEP_LENGTH


class GoTo:
    """
    Walks straight to a target as fast as it can: each axis by itself, so that the distance is the smallest possible at every
    step.

    :param targets: One for each slot, ``(n_envs, 2)`` in metres.
    """

    def __init__(self, targets: np.ndarray):
        self.targets = targets

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[np.ndarray, Any]:
        """See ``PredictsActions``; the first two entries of the token are the position."""
        return np.clip((self.targets - observation[:, :2]) / STEP_LENGTH, -1.0, 1.0).astype(np.float32), state


class RandomAgent:
    """
    Uniform actions.

    :param action_space: Where they are drawn from.
    :param seed: Seed of the drawing.
    """

    def __init__(self, action_space: spaces.Space[Any], seed: int):
        self.action_space = action_space
        self.action_space.seed(seed)

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[np.ndarray, Any]:
        """See ``PredictsActions``."""
        n_envs = len(next(iter(observation.values())) if isinstance(observation, dict) else observation)
        return np.stack([self.action_space.sample() for _ in range(n_envs)]), state


def _zero_actions(observation: np.ndarray) -> np.ndarray:
    return np.zeros((len(observation), 6), dtype=np.float32)


def _goals(tasks: Sequence[Task]) -> np.ndarray:
    return np.array([task["goal"] for task in tasks])


def _arm_probabilities(tasks: Sequence[Task]) -> np.ndarray:
    return np.array([task["probabilities"] for task in tasks])


CLOSED_FORMS: dict[str, dict[str, tuple[str, Callable[[Sequence[Task]], np.ndarray]]]] = {
    "MetaBandit-v0": {
        "oracle": ("expected return of the best arm", lambda tasks: _arm_probabilities(tasks).max(axis=1)),
        "blind": (
            "expected return of any arm, which are alike a priori",
            lambda tasks: _arm_probabilities(tasks).mean(axis=1),
        ),
        "random": ("expected return", lambda tasks: _arm_probabilities(tasks).mean(axis=1)),
    }
}
"""Expected reward of a step, ``(n_tasks,)``, by family and agent."""

SCRIPTS: dict[str, dict[str, tuple[str, Callable[[Sequence[Task]], Any]]]] = {
    "PointRobot-v0": {
        "oracle": ("scripted, exact: straight to the goal", lambda tasks: GoTo(_goals(tasks))),
        "blind": ("scripted, exact for the training range: to its middle", lambda tasks: GoTo(0.0 * _goals(tasks))),
    },
    "SparsePointRobot-v0": {"oracle": ("scripted, exact: straight to the goal", lambda tasks: GoTo(_goals(tasks)))},
    "HalfCheetahDir-v0": {
        "blind": ("scripted, exact: stands still, as both directions are equally likely", lambda tasks: _zero_actions)
    },
}
"""Agents for given tasks (slot ``i`` plays task ``i``), by family and agent."""

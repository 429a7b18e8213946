"""Environment ids: every one is complete, i.e. makes a trial environment with token observations."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium as gym

from sb3_trmrl.common.arguments import did_you_mean
from sb3_trmrl.envs.bandit import MetaBandit
from sb3_trmrl.envs.meta_env import MetaEnv, Task
from sb3_trmrl.envs.metaworld import METAWORLD_ENVS
from sb3_trmrl.envs.mujoco import (
    AntDir,
    AntFwdBack,
    AntGoal,
    HalfCheetahDir,
    HalfCheetahVel,
    HopperRandParams,
    HumanoidDir,
    Walker2DRandParams,
)
from sb3_trmrl.envs.point_robot import PointRobot, SparsePointRobot
from sb3_trmrl.envs.trial import TrialWrapper

META_ENVS: dict[str, type[MetaEnv]] = {
    "MetaBandit-v0": MetaBandit,
    "PointRobot-v0": PointRobot,
    "SparsePointRobot-v0": SparsePointRobot,
    "HalfCheetahVel-v0": HalfCheetahVel,
    "HalfCheetahDir-v0": HalfCheetahDir,
    "AntDir-v0": AntDir,
    "AntFwdBack-v0": AntFwdBack,
    "AntGoal-v0": AntGoal,
    "HumanoidDir-v0": HumanoidDir,
    "Walker2DRandParams-v0": Walker2DRandParams,
    "HopperRandParams-v0": HopperRandParams,
}
"""Task family of every registered id that needs no extra."""

TASK_FAMILIES: dict[str, Callable[..., MetaEnv]] = {**META_ENVS, **METAWORLD_ENVS}
"""What makes the task family of every registered id."""


TRIAL_KEYWORDS = ("env_id", "episodes_per_trial", "split", "tasks", "render_mode")
"""Keywords of :func:`make_trial_env` that say nothing about a family: which of its tasks are played, how long, how shown."""
TRAINING_KEYWORDS = ("random_frames",)
"""Keywords that augment training: agents are evaluated without them."""


def family_kwargs(env_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """
    :param env_kwargs: Keywords of an environment.
    :return: Those of its family.
    """
    return {name: value for name, value in env_kwargs.items() if name not in TRIAL_KEYWORDS}


def evaluation_kwargs(env_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """
    :param env_kwargs: Keywords of a training environment.
    :return: Those that an agent from it is evaluated with, beside trial length and split, which are the evaluation's own.
    """
    return {name: value for name, value in family_kwargs(env_kwargs).items() if name not in TRAINING_KEYWORDS}


def relevant_kwargs(env_id: str, env_kwargs: Mapping[str, Any] | None) -> dict[str, Any]:
    """
    :param env_id: A registered id.
    :param env_kwargs: Keywords of the environment.
    :return: Those that change what a return is worth, sorted: of the family, but for what are its defaults.
    """
    family = TASK_FAMILIES.get(env_id)
    defaults = inspect.signature(family).parameters if family is not None else {}
    return {
        name: value
        for name, value in sorted(family_kwargs(env_kwargs or {}).items())
        if not (name in defaults and defaults[name].default == value)
    }


def make_trial_env(
    env_id: str,
    episodes_per_trial: int = 2,
    split: str = "train",
    tasks: Sequence[Task] | None = None,
    **family_kwargs: Any,
) -> TrialWrapper:
    """
    Make a trial environment; the entry point behind ``gym.make(env_id, ...)``.

    :param env_id: One of ``TASK_FAMILIES``.
    :param episodes_per_trial: Episodes of one task in a trial.
    :param split: Split that tasks are drawn from.
    :param tasks: Play these tasks in turn instead.
    :param family_kwargs: Keywords of the family's constructor: ``horizon``, ``render_mode``, ...
    :return: The environment.
    :raises ValueError: On an unknown id or a bad value.
    :raises TypeError: On a keyword that the family does not have.
    :raises ImportError: If the family needs an extra that is not installed.
    """
    if env_id not in TASK_FAMILIES:
        hint = did_you_mean(env_id, TASK_FAMILIES)
        raise ValueError(f"env_id={env_id!r} is no task family, there are {list(TASK_FAMILIES)}.{hint}")
    return TrialWrapper(TASK_FAMILIES[env_id](**family_kwargs), episodes_per_trial, split, tasks)


# gym.make reads this from the entry point. It then shows render_mode="human" through its own HumanRendering wrapper.
make_trial_env.metadata = {"render_modes": ["rgb_array"], "render_fps": 20}  # type: ignore[attr-defined]


def register_envs() -> None:
    """Register all ids with Gymnasium; doing it again changes nothing."""
    for env_id in TASK_FAMILIES:
        if env_id not in gym.registry:
            gym.register(id=env_id, entry_point="sb3_trmrl.envs.registration:make_trial_env", kwargs={"env_id": env_id})

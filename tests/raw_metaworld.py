"""What the tests of Meta-World share: trials, and Meta-World's own environments and experts."""

import importlib.util
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from sb3_trmrl.envs import MetaWorldEnv, TrialWrapper

needs_metaworld = pytest.mark.skipif(importlib.util.find_spec("metaworld") is None, reason="without the extra metaworld")


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

"""Task families, trials and their registration."""

from sb3_trmrl.envs.bandit import MetaBandit
from sb3_trmrl.envs.meta_env import MetaEnv, Task
from sb3_trmrl.envs.metaworld import METAWORLD_ENVS, MetaWorldEnv
from sb3_trmrl.envs.mujoco import (
    AntDir,
    AntFwdBack,
    AntGoal,
    HalfCheetahDir,
    HalfCheetahVel,
    HopperRandParams,
    HumanoidDir,
    MujocoMetaEnv,
    Walker2DRandParams,
)
from sb3_trmrl.envs.point_robot import PointRobot, SparsePointRobot
from sb3_trmrl.envs.registration import META_ENVS, TASK_FAMILIES, make_trial_env, register_envs
from sb3_trmrl.envs.trial import TokenSpace, TrialWrapper

__all__ = [
    "METAWORLD_ENVS",
    "META_ENVS",
    "TASK_FAMILIES",
    "AntDir",
    "AntFwdBack",
    "AntGoal",
    "HalfCheetahDir",
    "HalfCheetahVel",
    "HopperRandParams",
    "HumanoidDir",
    "MetaBandit",
    "MetaEnv",
    "MetaWorldEnv",
    "MujocoMetaEnv",
    "PointRobot",
    "SparsePointRobot",
    "Task",
    "TokenSpace",
    "TrialWrapper",
    "Walker2DRandParams",
    "make_trial_env",
    "register_envs",
]

"""Task families, trials and their registration."""

from sb3_trmrl.envs.bandit import MetaBandit
from sb3_trmrl.envs.meta_env import MetaEnv, Task
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
from sb3_trmrl.envs.registration import META_ENVS, make_trial_env, register_envs
from sb3_trmrl.envs.trial import TokenSpace, TrialWrapper

__all__ = [
    "META_ENVS",
    "AntDir",
    "AntFwdBack",
    "AntGoal",
    "HalfCheetahDir",
    "HalfCheetahVel",
    "HopperRandParams",
    "HumanoidDir",
    "MetaBandit",
    "MetaEnv",
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

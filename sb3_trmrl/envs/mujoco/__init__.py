"""MuJoCo task families, one module per robot."""

from sb3_trmrl.envs.mujoco.ant import AntDir, AntFwdBack, AntGoal
from sb3_trmrl.envs.mujoco.base import MujocoMetaEnv, PhysicsState, TaskArrays, is_unstable
from sb3_trmrl.envs.mujoco.half_cheetah import HalfCheetahDir, HalfCheetahVel
from sb3_trmrl.envs.mujoco.hopper import HopperRandParams
from sb3_trmrl.envs.mujoco.humanoid import HumanoidDir
from sb3_trmrl.envs.mujoco.walker2d import Walker2DRandParams

__all__ = [
    "AntDir",
    "AntFwdBack",
    "AntGoal",
    "HalfCheetahDir",
    "HalfCheetahVel",
    "HopperRandParams",
    "HumanoidDir",
    "MujocoMetaEnv",
    "PhysicsState",
    "TaskArrays",
    "Walker2DRandParams",
    "is_unstable",
]

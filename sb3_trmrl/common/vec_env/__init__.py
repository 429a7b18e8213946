"""Vectorised environments."""

from sb3_trmrl.common.vec_env.mujoco_vec_env import MujocoVecEnv
from sb3_trmrl.common.vec_env.process_vec_env import ProcessVecEnv

__all__ = ["MujocoVecEnv", "ProcessVecEnv"]

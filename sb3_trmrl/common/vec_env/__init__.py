"""Vectorised environments."""

from sb3_trmrl.common.vec_env.mujoco_vec_env import MujocoVecEnv

__all__ = ["MujocoVecEnv"]

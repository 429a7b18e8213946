"""Versions of what decides about numbers."""

import gymnasium
import mujoco
import numpy
import stable_baselines3
import torch

import sb3_trmrl


def versions() -> dict[str, str]:
    """:return: Version by name of the package."""
    packages = (sb3_trmrl, stable_baselines3, torch, gymnasium, mujoco, numpy)
    return {package.__name__: str(package.__version__) for package in packages}

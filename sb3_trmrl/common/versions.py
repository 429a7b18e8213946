"""Versions of what decides about numbers."""

import importlib.metadata


def versions() -> dict[str, str]:
    """:return: Version by name of the distribution."""
    names = ("sb3_trmrl", "stable_baselines3", "torch", "gymnasium", "mujoco", "numpy")
    return {name: importlib.metadata.version(name) for name in names}

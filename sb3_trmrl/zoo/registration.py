"""
What RL Zoo has to know about us. To add an algorithm, add a line to ``ALGORITHMS`` and a file to ``hyperparams/``; for
``sb3-trmrl`` also one to ``ALGORITHMS`` of ``runs.py``, for the Hub one to that of ``hub/registry.py``.
"""

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import optuna
from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, HYPERPARAMS_SAMPLER
from rl_zoo3.utils import ALGOS
from stable_baselines3.common.base_class import BaseAlgorithm

from sb3_trmrl.rl2_ppo import RL2PPO
from sb3_trmrl.trmrl_ppo import TrMRLPPO
from sb3_trmrl.zoo.exp_manager import MetaExperimentManager, ZooExperimentManager
from sb3_trmrl.zoo.hyperparams_opt import convert_rl2_params, convert_trmrl_params, sample_rl2_params, sample_trmrl_params


class ZooAlgorithm(NamedTuple):
    """An algorithm as the zoo knows it."""

    algorithm: type[BaseAlgorithm]
    """Its class."""
    sampler: Callable[[optuna.Trial, int, int, dict[str, Any]], dict[str, Any]]
    """Draws hyperparameters for ``-optimize``."""
    converter: Callable[[dict[str, Any]], dict[str, Any]]
    """Makes hyperparameters of what was drawn, for ``--trial-id``."""


ALGORITHMS: dict[str, ZooAlgorithm] = {
    "trmrl": ZooAlgorithm(TrMRLPPO, sample_trmrl_params, convert_trmrl_params),
    "rl2": ZooAlgorithm(RL2PPO, sample_rl2_params, convert_rl2_params),
}
"""Our algorithms by the name that ``--algo`` takes; the settings of each are in ``hyperparams/{name}.yml``."""


def register() -> None:
    """
    Add our algorithms to RL Zoo, and our experiment manager, which knows trial environments. Doing it again changes nothing.

    The zoo's dicts are changed in place, since its modules import them by name. A command of the zoo that was imported before
    gets the manager too, but argparse choices that it has made already stay as they are.
    """
    for name, entry in ALGORITHMS.items():
        ALGOS[name] = entry.algorithm
        HYPERPARAMS_SAMPLER[name] = entry.sampler  # type: ignore[assignment]
        HYPERPARAMS_CONVERTER[name] = entry.converter  # type: ignore[assignment]
    for name, module in list(sys.modules.items()):
        if name.startswith("rl_zoo3.") and vars(module).get("ExperimentManager") is ZooExperimentManager:
            module.ExperimentManager = MetaExperimentManager  # type: ignore[attr-defined]

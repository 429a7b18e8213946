"""RL Zoo: our algorithms, settings and vectorised environments behind the zoo's own commands (docs/guide/rl_zoo.md)."""

from sb3_trmrl.zoo.registration import ALGORITHMS, ZooAlgorithm, register

__all__ = ["ALGORITHMS", "ZooAlgorithm", "register"]

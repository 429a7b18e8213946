"""Which names a file may use for classes. A name in no registry is an error; no module is ever imported by its name."""

from collections.abc import Mapping
from typing import TypeVar

import torch as th
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, CombinedExtractor, FlattenExtractor, NatureCNN
from torch import nn

from sb3_trmrl.common.arguments import did_you_mean
from sb3_trmrl.common.buffers import MemoryRolloutBuffer, TrialSliceRolloutBuffer, WorkingMemoryRolloutBuffer
from sb3_trmrl.common.on_policy_algorithm import MemoryPPO
from sb3_trmrl.hub.errors import NotDescribableError, UnknownNameError
from sb3_trmrl.rl2_ppo import RL2PPO
from sb3_trmrl.trmrl_ppo import TrMRLPPO

T = TypeVar("T")

ALGORITHMS: dict[str, type[MemoryPPO]] = {"TrMRLPPO": TrMRLPPO, "RL2PPO": RL2PPO}
"""Algorithms; each names its policies in ``policy_aliases``."""
ACTIVATIONS: dict[str, type[nn.Module]] = {
    kind.__name__: kind
    for kind in (nn.Tanh, nn.ReLU, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Mish, nn.Sigmoid, nn.Softplus, nn.Identity)
}
"""Activation functions of the heads."""
OPTIMIZERS: dict[str, type[th.optim.Optimizer]] = {
    kind.__name__: kind for kind in (th.optim.Adam, th.optim.AdamW, th.optim.RMSprop, th.optim.SGD)
}
"""Optimizers."""
FEATURES_EXTRACTORS: dict[str, type[BaseFeaturesExtractor]] = {
    kind.__name__: kind for kind in (FlattenExtractor, NatureCNN, CombinedExtractor)
}
"""What makes a token from one observation."""
ROLLOUT_BUFFERS: dict[str, type[MemoryRolloutBuffer]] = {
    kind.__name__: kind for kind in (WorkingMemoryRolloutBuffer, TrialSliceRolloutBuffer)
}
"""Rollout buffers."""


def register_algorithm(algorithm: type[MemoryPPO]) -> None:
    """
    Make a subclass of our algorithms loadable by its class name (with its own policies in ``policy_aliases``). Whoever loads a
    model of it must have registered it first.

    :param algorithm: A subclass of :class:`~sb3_trmrl.common.on_policy_algorithm.MemoryPPO`
    :raises ValueError: if it is none, or another one has its name
    """
    if not (isinstance(algorithm, type) and issubclass(algorithm, MemoryPPO)):
        raise ValueError(f"algorithm must be a subclass of MemoryPPO, got {algorithm!r}.")
    if ALGORITHMS.get(algorithm.__name__, algorithm) is not algorithm:
        raise ValueError(f"the name {algorithm.__name__!r} is taken by another algorithm: rename the class.")
    ALGORITHMS[algorithm.__name__] = algorithm


def look_up(registry: Mapping[str, T], name: object, what: str, remedy: str = "") -> T:
    """
    :param registry: Things by name
    :param name: A name from a file
    :param what: What it names, for errors
    :param remedy: What a user can do about an unknown name
    :return: The thing
    :raises UnknownNameError: if there is none of that name
    """
    if not isinstance(name, str) or name not in registry:
        hint = did_you_mean(name, registry)
        raise UnknownNameError(f"{what} must be one of {sorted(registry)}, got {str(name)[:100]!r}.{hint}{remedy}")
    return registry[name]


def name_of(registry: Mapping[str, T], thing: T, what: str, remedy: str = "") -> str:
    """
    :param registry: Things by name
    :param thing: One of them
    :param what: What it is, for errors
    :param remedy: What a user can do about a thing without name
    :return: Its name
    :raises NotDescribableError: if it has none
    """
    for name, registered in registry.items():
        if registered is thing:
            return name
    raise NotDescribableError(
        f"{what}={thing!r} is code without a name that a file could use: only {sorted(registry)} can be saved.{remedy} "
        "(SB3's model.save() pickles it.)"
    )

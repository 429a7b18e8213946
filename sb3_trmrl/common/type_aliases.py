"""Common aliases for type hints."""

from typing import NamedTuple

import torch as th
from stable_baselines3.common.type_aliases import PyTorchObs


class MemoryWindows(NamedTuple):
    """
    Working memories of a minibatch, cut from the rollout buffer.

    :param observations: Tokens as the environment gave them, (batch, memory_length, ...); a dict of these for Dict spaces
    :param lengths: Number of filled slots; the current token is slot ``lengths - 1``. int64, (batch,)
    """

    observations: PyTorchObs
    lengths: th.Tensor


class MemoryRolloutBufferSamples(NamedTuple):
    """
    A minibatch for PPO's update, SB3's ``RolloutBufferSamples`` with working memories in place of observations.
    All but ``observations`` are (batch,) or (batch, action_dim).
    """

    observations: MemoryWindows
    actions: th.Tensor
    old_values: th.Tensor
    old_log_prob: th.Tensor
    advantages: th.Tensor
    returns: th.Tensor

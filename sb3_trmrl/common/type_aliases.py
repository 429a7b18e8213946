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


class TrialSlices(NamedTuple):
    """
    Slices of trials of a minibatch, one per row: the context from before the rollout, the steps trained on, and padding.

    :param observations: Tokens as the environment gave them, (n_slices, seq_len, ...); a dict of these for Dict spaces
    :param offsets: How many tokens each memory held before the first of its row, int64, (n_slices,)
    :param steps: The steps trained on, bool, (n_slices, seq_len). The other parts of the minibatch hold these in the order
        of ``observations[steps]``.
    """

    observations: PyTorchObs
    offsets: th.Tensor
    steps: th.Tensor

    def select(self, sequences: th.Tensor) -> th.Tensor:
        """
        :param sequences: Something of every token, (n_slices, seq_len, ...)
        :return: That of the steps trained on, (batch, ...)
        """
        # Without context and padding a view, where an index would copy, and scatter in the backward pass
        return sequences.flatten(0, 1) if self.steps.all() else sequences[self.steps]


class MemoryContext(NamedTuple):
    """
    What is remembered before a rollout.

    :param observations: The last tokens of each environment, newest last, (n_envs, context_length, ...); a dict of these
    :param lengths: How many tokens each memory holds, counted from the newest, int64, (n_envs,). More than
        ``context_length``, if older ones are out of reach.
    """

    observations: PyTorchObs
    lengths: th.Tensor


class MemoryRolloutBufferSamples(NamedTuple):
    """
    A minibatch for PPO's update, SB3's ``RolloutBufferSamples`` with memories in place of observations.
    All but ``observations`` are (batch,) or (batch, action_dim).
    """

    observations: MemoryWindows | TrialSlices
    actions: th.Tensor
    old_values: th.Tensor
    old_log_prob: th.Tensor
    advantages: th.Tensor
    returns: th.Tensor

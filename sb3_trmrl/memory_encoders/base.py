"""
The contract between a policy and its memory.

Shapes: ``n_envs`` environments act together, ``batch`` sequences or windows are trained on together, ``seq_len`` tokens
follow each other in time, ``token_dim`` is the width of a token, ``features_dim`` that of the memory's output.
"""

from abc import ABC, abstractmethod
from typing import ClassVar, Literal

import torch as th
from torch import nn

#: What an encoder remembers between two calls of ``step``: tensors whose first axis is the environment.
MemoryState = tuple[th.Tensor, ...]


def memory_lengths(memory_starts: th.Tensor, initial_lengths: th.Tensor) -> th.Tensor:
    """
    Number of tokens since the memory was last emptied, the current one included.

    ``length[t] = 1`` where ``memory_starts[t]``, else ``length[t - 1] + 1`` with ``length[-1] = initial_lengths``.

    :param memory_starts: Whether the memory is emptied before this token, bool, shape (batch, seq_len)
    :param initial_lengths: Number of tokens already in memory before the sequence, int64, shape (batch,)
    :return: int64, shape (batch, seq_len), at least 1
    """
    time = th.arange(memory_starts.shape[1], device=memory_starts.device).expand(memory_starts.shape)
    # Time of the last start at or before t; a memory that was already filled started before time 0
    last_start = th.where(memory_starts, time, -initial_lengths.unsqueeze(1)).cummax(dim=1).values
    return time - last_start + 1


def window_indices(rows: th.Tensor, lengths: th.Tensor, window: int) -> th.Tensor:
    """
    Where the tokens of working memories lie: slot ``i`` of a window holds the ``i``-th oldest remembered token, so the
    window fills from the left. The slots behind the current token repeat it; a causal encoder never sees them.

    :param rows: Time index of the current token of each window, int64, shape (batch,)
    :param lengths: Number of tokens in each window, int64, shape (batch,), in [1, window]
    :param window: Number of slots W
    :return: Time indices, int64, shape (batch, window)
    """
    slots = th.arange(window, device=rows.device)
    return (rows - lengths + 1).unsqueeze(1) + th.minimum(slots, (lengths - 1).unsqueeze(1))


class MemoryEncoder(nn.Module, ABC):
    """
    Turns the tokens of a trial into features that depend on everything remembered so far.

    An encoder is causal, keeps environments apart and is the same function in ``step`` (acting) and in training.

    :param token_dim: Width F of the tokens
    :param features_dim: Width D of the features
    :param context_length: How many tokens before the current one can influence its features
    """

    #: What the rollout buffer hands out for training: independent ``"window"`` s of W tokens or whole ``"sequence"`` s.
    training_unit: ClassVar[Literal["window", "sequence"]]

    def __init__(self, token_dim: int, features_dim: int, context_length: int):
        super().__init__()
        self.token_dim = token_dim
        self.features_dim = features_dim
        self.context_length = context_length

    @abstractmethod
    def initial_state(self, n_envs: int) -> MemoryState:
        """
        :param n_envs: Number of environments
        :return: The empty memory of ``n_envs`` environments
        """

    @abstractmethod
    def state_from_context(self, tokens: th.Tensor, lengths: th.Tensor) -> MemoryState:
        """
        Rebuild the memory from stored tokens under the current weights (at the start of a rollout in mid-trial).

        :param tokens: The last tokens of each environment, newest last, shape (n_envs, context, token_dim)
        :param lengths: How many of these (counted from the newest) are remembered, shape (n_envs,), in [0, context]
        :return: The memory after these tokens
        """

    @abstractmethod
    def step(self, tokens: th.Tensor, state: MemoryState, memory_starts: th.Tensor) -> tuple[th.Tensor, MemoryState]:
        """
        Remember one token per environment and read the memory.

        :param tokens: Shape (n_envs, token_dim)
        :param state: The memory before these tokens
        :param memory_starts: Whether the memory is emptied first, bool, shape (n_envs,)
        :return: Features of shape (n_envs, features_dim) and the memory that includes the tokens
        """

    @abstractmethod
    def forward(self, tokens: th.Tensor, memory_starts: th.Tensor, state: MemoryState | None = None) -> th.Tensor:
        """
        The features of whole sequences; equal to calling ``step`` token by token.

        :param tokens: Shape (batch, seq_len, token_dim)
        :param memory_starts: Whether the memory is emptied before a token, bool, shape (batch, seq_len)
        :param state: The memory before the first tokens; empty if None
        :return: Shape (batch, seq_len, features_dim)
        """


class WindowMemoryEncoder(MemoryEncoder):
    """
    A memory of the last ``memory_length`` tokens, each window encoded on its own (the paper's working memory).

    A subclass implements :meth:`encode_windows`; acting and whole sequences follow from it.
    State: the tokens, left-aligned, (n_envs, memory_length, token_dim) and their number, int64 (n_envs,).

    :param token_dim: Width F of the tokens
    :param features_dim: Width D of the features
    :param memory_length: Window W: number of tokens in working memory, the current one included
    :raises ValueError: if ``memory_length`` < 1
    """

    training_unit = "window"

    def __init__(self, token_dim: int, features_dim: int, memory_length: int):
        if memory_length < 1:
            raise ValueError(
                f"memory_length must be at least 1 (the current token is part of the working memory), got {memory_length}."
            )
        super().__init__(token_dim, features_dim, context_length=memory_length - 1)
        self.memory_length = memory_length
        # Knows device and dtype; not part of the weights
        self.register_buffer("_anchor", th.zeros(()), persistent=False)

    @abstractmethod
    def encode_windows(self, windows: th.Tensor, lengths: th.Tensor) -> th.Tensor:
        """
        Features of the current token of each window, that is of slot ``lengths - 1``. Slots behind it are empty and
        must not influence the result.

        :param windows: Shape (batch, memory_length, token_dim)
        :param lengths: Number of filled slots, int64, shape (batch,), in [1, memory_length]
        :return: Shape (batch, features_dim)
        """

    def initial_state(self, n_envs: int) -> MemoryState:
        anchor = self._anchor
        assert isinstance(anchor, th.Tensor)
        tokens = anchor.new_zeros(n_envs, self.memory_length, self.token_dim)
        return tokens, th.zeros(n_envs, dtype=th.int64, device=anchor.device)

    def state_from_context(self, tokens: th.Tensor, lengths: th.Tensor) -> MemoryState:
        n_envs, context, _ = tokens.shape
        memory, _ = self.initial_state(n_envs)
        lengths = lengths.clamp(max=min(context, self.memory_length))
        if context > 0:
            # Slot i <- the i-th oldest remembered token; what lies behind the last one is never read
            slots = (context - lengths).unsqueeze(1) + th.arange(self.memory_length, device=tokens.device)
            memory = tokens.gather(1, slots.clamp(max=context - 1).unsqueeze(-1).expand(-1, -1, self.token_dim))
        return memory, lengths

    def step(self, tokens: th.Tensor, state: MemoryState, memory_starts: th.Tensor) -> tuple[th.Tensor, MemoryState]:
        memory, lengths = state
        lengths = lengths.masked_fill(memory_starts, 0)
        # A full window drops its oldest token
        full = lengths == self.memory_length
        memory = th.where(full[:, None, None], memory.roll(-1, dims=1), memory)
        position = lengths.clamp(max=self.memory_length - 1)
        memory[th.arange(len(tokens), device=tokens.device), position] = tokens
        lengths = position + 1
        return self.encode_windows(memory, lengths), (memory, lengths)

    def forward(self, tokens: th.Tensor, memory_starts: th.Tensor, state: MemoryState | None = None) -> th.Tensor:
        batch, seq_len, token_dim = tokens.shape
        memory, filled = self.initial_state(batch) if state is None else state
        # Put what is remembered right before the new tokens: (batch, memory_length + seq_len, token_dim)
        shift = (th.arange(self.memory_length, device=tokens.device) + filled.unsqueeze(1)) % self.memory_length
        history = memory.gather(1, shift.unsqueeze(-1).expand(-1, -1, token_dim))
        history = th.cat([history, tokens], dim=1)
        lengths = memory_lengths(memory_starts, filled).clamp(max=self.memory_length)
        rows = (self.memory_length + th.arange(seq_len, device=tokens.device)).expand(batch, seq_len)
        # (batch, seq_len) -> (batch * seq_len, memory_length), one window per token
        indices = window_indices(rows.flatten(), lengths.flatten(), self.memory_length)
        owners = th.arange(batch, device=tokens.device).repeat_interleave(seq_len).unsqueeze(1)
        features = self.encode_windows(history[owners, indices], lengths.flatten())
        return features.unflatten(0, (batch, seq_len))

"""
The contract between a policy and its memory.

Shapes: ``n_envs`` environments act together, ``batch`` sequences or windows are trained on together, ``seq_len`` tokens
follow each other in time, ``token_dim`` is the width of a token, ``features_dim`` that of the memory's output.
"""

from abc import ABC, abstractmethod
from typing import Literal

import torch as th
from torch import nn

#: What an encoder remembers between two calls of ``step``: tensors whose first axis is the environment.
MemoryState = tuple[th.Tensor, ...]


def oldest_first(tokens: th.Tensor, lengths: th.Tensor) -> th.Tensor:
    """
    Move what is remembered to the left: column ``i`` holds the ``i``-th oldest remembered token of its row. The columns
    behind the newest repeat it.

    :param tokens: Tokens, newest last, shape (batch, context, token_dim)
    :param lengths: How many of them, counted from the newest, are remembered, int64, shape (batch,), in [0, context]
    :return: Shape (batch, max(lengths), token_dim)
    """
    context = tokens.shape[1]
    columns = (context - lengths).unsqueeze(1) + th.arange(int(lengths.max()), device=tokens.device)
    return tokens.gather(1, columns.clamp(max=context - 1).unsqueeze(-1).expand(-1, -1, tokens.shape[2]))


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

    An encoder is causal, keeps environments apart and is the same function in ``step`` (acting) and ``forward`` (training).
    A subclass implements :meth:`initial_state`, :meth:`step` and :meth:`forward`; ``examples/custom_memory_encoder.py`` shows
    how.

    :param token_dim: Width F of the tokens
    :param features_dim: Width D of the features
    :param context_length: How many tokens before the current one can influence its features. The rollout buffer keeps that
        many tokens of the last rollout in front of the next one. An encoder whose memory has no such bound names how many it
        wants to be re-encoded when a rollout starts in mid-trial.
    """

    #: What the rollout buffer hands out for training: independent ``"window"`` s of W tokens or whole ``"sequence"`` s.
    training_unit: Literal["window", "sequence"] = "sequence"

    def __init__(self, token_dim: int, features_dim: int, context_length: int):
        super().__init__()
        self.token_dim = token_dim
        self.features_dim = features_dim
        self.context_length = context_length
        # Knows device and dtype; not part of the weights
        self._anchor: th.Tensor
        self.register_buffer("_anchor", th.zeros(()), persistent=False)

    @abstractmethod
    def initial_state(self, n_envs: int) -> MemoryState:
        """
        :param n_envs: Number of environments
        :return: The empty memory of ``n_envs`` environments
        """

    @abstractmethod
    def step(self, tokens: th.Tensor, state: MemoryState, memory_starts: th.Tensor) -> tuple[th.Tensor, MemoryState]:
        """
        Remember one token per environment and read the memory. For acting, without gradients: training goes through
        :meth:`forward`.

        :param tokens: Shape (n_envs, token_dim)
        :param state: The memory before these tokens. It is used up: its tensors may be written to and become part of the
            new state
        :param memory_starts: Whether the memory is emptied first, bool, shape (n_envs,)
        :return: Features of shape (n_envs, features_dim) and the memory that includes the tokens
        """

    @abstractmethod
    def forward(self, tokens: th.Tensor, offsets: th.Tensor) -> th.Tensor:
        """
        The features of whole sequences; equal to calling ``step`` token by token from an empty memory.

        Each row is a stretch of *one* memory: none is emptied behind its first token. What a row has behind its end (rows
        are padded on the right to equal length) is computed and thrown away.

        :param tokens: Shape (batch, seq_len, token_dim)
        :param offsets: How many tokens this memory held before the first of the row, int64, shape (batch,): zero where the
            row starts with the memory. These tokens are out of reach; only encoders with absolute positions need to know,
            which have a :meth:`state_from_context` of their own.
        :return: Shape (batch, seq_len, features_dim)
        """

    def state_from_context(self, tokens: th.Tensor, lengths: th.Tensor) -> MemoryState:
        """
        Rebuild the memory from stored tokens under the current weights (at the start of a rollout in mid-trial). Here step
        by step, from an empty memory: encoders that can do it faster override it, and so must those whose features depend on
        ``offsets`` if trials may be longer than ``context_length``: the first token in reach then has others before it.

        :param tokens: The last tokens of each environment, newest last, shape (n_envs, context, token_dim)
        :param lengths: How many tokens the memory of each environment holds, shape (n_envs,), int64. It may be more than
            ``context``: the oldest ones are then out of reach.
        :return: The memory after these tokens
        """
        n_envs, context, _ = tokens.shape
        reach = lengths.clamp(max=context)
        state = self.initial_state(n_envs)
        for t in range(context - int(reach.max()), context):
            # A memory whose first token is still to come is filled with what is there, and emptied when it comes
            _, state = self.step(tokens[:, t], state, reach == context - t)
        empty = lengths == 0
        if not empty.any():
            return state
        fresh = self.initial_state(n_envs)
        return tuple(
            th.where(empty.view(-1, *[1] * (part.dim() - 1)), new, part) for part, new in zip(state, fresh, strict=True)
        )


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

    training_unit: Literal["window", "sequence"] = "window"

    def __init__(self, token_dim: int, features_dim: int, memory_length: int):
        if memory_length < 1:
            raise ValueError(
                f"memory_length must be at least 1 (the current token is part of the working memory), got {memory_length}."
            )
        super().__init__(token_dim, features_dim, context_length=memory_length - 1)
        self.memory_length = memory_length

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
        tokens = self._anchor.new_zeros(n_envs, self.memory_length, self.token_dim)
        return tokens, th.zeros(n_envs, dtype=th.int64, device=tokens.device)

    def state_from_context(self, tokens: th.Tensor, lengths: th.Tensor) -> MemoryState:
        memory, _ = self.initial_state(len(tokens))
        lengths = lengths.clamp(max=min(tokens.shape[1], self.memory_length))
        newest = oldest_first(tokens, lengths)
        memory[:, : newest.shape[1]] = newest
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

    def forward(self, tokens: th.Tensor, offsets: th.Tensor) -> th.Tensor:
        batch, seq_len, _ = tokens.shape
        rows = th.arange(seq_len, device=tokens.device).repeat(batch)
        lengths = (rows + 1).clamp(max=self.memory_length)
        # (batch, seq_len) -> (batch * seq_len, memory_length), one window per token
        indices = window_indices(rows, lengths, self.memory_length)
        owners = th.arange(batch, device=tokens.device).repeat_interleave(seq_len).unsqueeze(1)
        return self.encode_windows(tokens[owners, indices], lengths).unflatten(0, (batch, seq_len))

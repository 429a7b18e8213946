"""
Causal self-attention and the transformer layer: over windows, over whole sequences, and token by token with a cache.

Shapes: batch, seq_len, embed_dim = n_heads * head_dim. Keys and values of a cache: (n_envs, n_heads, n_slots, head_dim).
"""

import math
from typing import Any

import torch as th
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from sb3_trmrl.memory_encoders.positional_encoding import Rotation, rotate

#: Slots of a fresh cache; they double when they are full, up to the encoder's ``memory_length``
INITIAL_CACHE_SLOTS = 64
#: Queries that meet their keys together: few enough that little of what they don't see is computed
QUERY_BLOCK = 64
#: Up to this many tokens with heads up to this narrow, :class:`AttentionOverFew` trains faster than torch's kernel
FEW_TOKENS, NARROW_HEAD = 10, 8


def check_heads(embed_dim: int, n_heads: int) -> None:
    """
    :param embed_dim: Width of the tokens
    :param n_heads: Number of heads
    :raises ValueError: if ``embed_dim`` is not divisible by ``n_heads``
    """
    if embed_dim % n_heads != 0:
        raise ValueError(
            f"embed_dim must be divisible by n_heads, got embed_dim={embed_dim} and n_heads={n_heads}: "
            "the heads share the embedding evenly, choose for example n_heads=4 with embed_dim=128."
        )


def n_cache_slots(n_tokens: int, memory_length: int) -> int:
    """
    :param n_tokens: Number of tokens in the longest memory
    :param memory_length: How many of them are kept at most
    :return: Number of slots of the ring that holds them
    """
    n_slots = min(INITIAL_CACHE_SLOTS, memory_length)
    while n_slots < min(n_tokens, memory_length):
        n_slots = min(2 * n_slots, memory_length)
    return n_slots


def next_slots(
    cache: th.Tensor, lengths: th.Tensor, memory_starts: th.Tensor, memory_length: int
) -> tuple[th.Tensor, th.Tensor, th.Tensor, int]:
    """
    Where the next token of each memory goes.

    :param cache: Rings of slots, (..., n_slots, size)
    :param lengths: Number of tokens in each memory, int64, (n_envs,)
    :param memory_starts: Whether a memory is emptied first, bool, (n_envs,)
    :param memory_length: How many tokens are kept at most
    :return: The cache, a larger one with the same entries if it was too small; the positions of the new tokens, which are the
        numbers of tokens before them, and their slots, int64, (n_envs,) each; how many slots some memory has reached, with
        the new tokens: the others can be left out
    """
    positions = lengths.masked_fill(memory_starts, 0)
    longest, n_slots = int(positions.max()) + 1, cache.shape[-2]
    if n_slots < min(longest, memory_length):
        larger = cache.new_zeros(*cache.shape[:-2], n_cache_slots(longest, memory_length), cache.shape[-1])
        larger[..., :n_slots, :] = cache
        cache, n_slots = larger, larger.shape[-2]
    return cache, positions, positions % n_slots, min(longest, n_slots)


def newest_in_slots(lengths: th.Tensor, n_slots: int) -> th.Tensor:
    """
    Which token each slot of a ring holds: slot ``i`` the newest whose position is ``i`` modulo the number of slots.

    :param lengths: Number of tokens so far, int64, (n_envs,)
    :param n_slots: Number of slots of the ring
    :return: Positions, int64, (n_envs, n_slots); negative for slots that nothing has been written to
    """
    newest = lengths.unsqueeze(1) - 1
    return newest - (newest - th.arange(n_slots, device=lengths.device)) % n_slots


def remember(cache: th.Tensor, slots: th.Tensor, new: th.Tensor) -> None:
    """
    Write one entry per environment into a cache, in place.

    :param cache: Shape (n_envs, n_heads, n_slots, head_dim)
    :param slots: Where each environment's entry goes, int64, (n_envs,), in [0, n_slots)
    :param new: The entries, (n_envs, n_heads, head_dim)
    """
    # scatter_ and not cache[envs, :, slots] = new, which is three times slower
    index = slots.view(-1, 1, 1, 1).expand(-1, new.shape[1], 1, new.shape[2])
    cache.scatter_(2, index, new.unsqueeze(2))


class AttentionOverFew(th.autograd.Function):
    """
    ``F.scaled_dot_product_attention(query, key, value, is_causal=True)`` for the paper's windows: few tokens, narrow heads.

    torch's kernel on the CPU multiplies matrices for each head of each sequence. Matrices of 5 x 8 numbers are too small for
    that: 256 windows with 16 heads take 7.7 ms, forward and backward, on one thread. Here sequences and heads lie side by side
    in memory, so that one operation goes over all of them: 2.5 ms.
    """

    @staticmethod
    def forward(ctx: Any, query: th.Tensor, key: th.Tensor, value: th.Tensor) -> th.Tensor:
        """
        :param ctx: What is kept for the gradient
        :param query: Shape (batch, n_heads, seq_len, head_dim)
        :param key: Same shape
        :param value: Same shape
        :return: Same shape
        """
        ctx.shape = query.shape
        _, _, seq_len, head_dim = query.shape
        query, key, value = (_side_by_side(part) for part in (query, key, value))
        query = query * head_dim**-0.5
        weights = query.new_empty(seq_len, seq_len, query.shape[-1])  # of queries for keys; those of the future are not used
        for now in range(seq_len):
            weights[now, : now + 1] = (query[now] * key[: now + 1]).sum(1).softmax(0)
        ctx.save_for_backward(query, key, value, weights)
        return _heads_apart(_weighted_past(weights, value), ctx.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: th.Tensor) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        """
        :param ctx: What was kept
        :param grad: Gradient of the attended values, (batch, n_heads, seq_len, head_dim)
        :return: Gradients of queries, keys and values
        """
        query, key, value, weights = ctx.saved_tensors
        grad = _side_by_side(grad)
        grad_key, grad_value, grad_scores = th.zeros_like(key), th.zeros_like(value), th.empty_like(weights)
        for now in range(len(weights)):
            past, seen = slice(now + 1), weights[now, : now + 1]
            through_weights = (grad[now] * value[past]).sum(1).mul_(seen)
            grad_scores[now, past] = through_weights.sub_(seen * through_weights.sum(0))  # through the softmax
            grad_key[past].addcmul_(grad_scores[now, past].unsqueeze(1), query[now])
            grad_value[past].addcmul_(seen.unsqueeze(1), grad[now])
        grad_query = _weighted_past(grad_scores, key).mul_(ctx.shape[-1] ** -0.5)
        return tuple(_heads_apart(part, ctx.shape) for part in (grad_query, grad_key, grad_value))  # type: ignore[return-value]


def _weighted_past(weights: th.Tensor, x: th.Tensor) -> th.Tensor:
    # Sum of weights[now, then] * x[then] over then <= now; (seq_len, seq_len, n) and (seq_len, head_dim, n) -> that of x
    total = weights[:, 0].unsqueeze(1) * x[0]
    for then in range(1, len(x)):
        total[then:].addcmul_(weights[then:, then].unsqueeze(1), x[then])
    return total


def _side_by_side(x: th.Tensor) -> th.Tensor:
    # (batch, n_heads, seq_len, head_dim) -> (seq_len, head_dim, batch * n_heads)
    return x.permute(2, 3, 0, 1).flatten(2).contiguous()


def _heads_apart(x: th.Tensor, shape: th.Size) -> th.Tensor:
    # (seq_len, head_dim, batch * n_heads) -> (batch, n_heads, seq_len, head_dim); in memory heads lie beside each other
    return x.unflatten(-1, shape[:2]).permute(2, 0, 3, 1).contiguous().transpose(1, 2)


def _attend_from_one(query: th.Tensor, key: th.Tensor, value: th.Tensor, visible: th.Tensor) -> th.Tensor:
    # F.scaled_dot_product_attention(query, key, value, attn_mask=visible) for one query per sequence, sequences and heads side
    # by side; so little is left to do that autograd's own gradient is as fast
    shape = query.shape  # (batch, n_heads, 1, head_dim)
    query, key, value = (_side_by_side(part) for part in (query, key, value))
    hidden = ~visible.flatten(1).t().repeat_interleave(shape[1], dim=1)  # (seq_len, batch * n_heads)
    scores = (query * key).sum(1) * shape[-1] ** -0.5
    weights = scores.masked_fill(hidden, -math.inf).softmax(0)
    return _heads_apart((weights.unsqueeze(1) * value).sum(0, keepdim=True), shape)


def _trains_faster_over_few(key: th.Tensor, value: th.Tensor) -> bool:
    # While acting there is little to gain, and `inspection` looks at the calls of torch's kernel. That one also adds up half
    # precision in float32
    _, _, seq_len, head_dim = key.shape
    few = seq_len <= FEW_TOKENS and head_dim <= NARROW_HEAD and value.shape == key.shape
    return few and key.device.type == "cpu" and key.dtype in (th.float32, th.float64) and th.is_grad_enabled()


def attend_in_band(query: th.Tensor, key: th.Tensor, value: th.Tensor, band: int) -> th.Tensor:
    """
    Causal attention in which a token sees itself and the ``band - 1`` tokens before it. Blocks of queries meet the keys that
    one of them sees, so that time and memory grow with seq_len * band, not with seq_len^2, and no future is computed.

    :param query: Shape (batch, n_heads, seq_len, head_dim)
    :param key: Same shape
    :param value: Same shape
    :param band: Number of tokens that a token sees, at least 1
    :return: Same shape
    """
    seq_len = query.shape[2]
    if seq_len <= band and _trains_faster_over_few(key, value):
        return AttentionOverFew.apply(query, key, value)
    # On a GPU the kernel skips the future by itself; on a CPU it computes it
    if seq_len <= band and (seq_len <= QUERY_BLOCK or query.is_cuda):
        return F.scaled_dot_product_attention(query, key, value, is_causal=True)
    # Split and cat, not slices: the backward pass of a slice fills a tensor of the whole length
    queries, keys, values = (part.split(QUERY_BLOCK, dim=2) for part in (query, key, value))

    def tokens_of(blocks: tuple[th.Tensor, ...], first: int, last_block: int) -> th.Tensor:
        far, *near = blocks[first // QUERY_BLOCK : last_block + 1]
        return th.cat([far[:, :, first % QUERY_BLOCK :], *near], dim=2)

    time, attended = th.arange(seq_len, device=query.device), []
    for index, block in enumerate(queries):
        start = index * QUERY_BLOCK
        first, end = max(0, start - band + 1), start + block.shape[2]
        age = time[start:end].unsqueeze(1) - time[first:end]
        seen = F.scaled_dot_product_attention(
            block, tokens_of(keys, first, index), tokens_of(values, first, index), attn_mask=(age >= 0) & (age < band)
        )
        attended.append(seen.transpose(1, 2))
    # Laid out as (batch, seq_len, n_heads, head_dim), so that the heads lie side by side already
    return th.cat(attended, dim=1).transpose(1, 2)


class CausalSelfAttention(nn.Module):
    """
    Multi-head self-attention in which a token sees itself and the tokens before it (Vaswani et al. 2017).

    Query, key and value projections are the three (embed_dim, embed_dim) blocks of one matrix, ``in_proj``.

    :param embed_dim: Width of the tokens
    :param n_heads: Number of heads; must divide ``embed_dim``
    :raises ValueError: if ``embed_dim`` is not divisible by ``n_heads``
    """

    def __init__(self, embed_dim: int, n_heads: int):
        super().__init__()
        check_heads(embed_dim, n_heads)
        self.embed_dim = embed_dim
        self.n_heads = n_heads
        self.in_proj = nn.Linear(embed_dim, 3 * embed_dim)
        self.out_proj = nn.Linear(embed_dim, embed_dim)

    def _split_heads(self, x: th.Tensor) -> th.Tensor:
        # (batch, seq_len, embed_dim) -> (batch, n_heads, seq_len, head_dim)
        return x.unflatten(-1, (self.n_heads, -1)).transpose(1, 2)

    def _project(self, x: th.Tensor, rotation: Rotation | None) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        projected = self.in_proj(x)
        if rotation is None:
            query, key, value = (self._split_heads(part) for part in projected.chunk(3, dim=-1))
            return query, key, value
        query_key, value = projected.split([2 * self.embed_dim, self.embed_dim], dim=-1)
        # Queries and keys turn together: (batch, seq_len, 2 * n_heads, head_dim)
        query, key = rotate(query_key.unflatten(-1, (2 * self.n_heads, -1)), rotation).transpose(1, 2).chunk(2, dim=1)
        return query, key, self._split_heads(value)

    def encode(
        self, x: th.Tensor, band: int | None = None, rotation: Rotation | None = None
    ) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        """
        :param x: Tokens, shape (batch, seq_len, embed_dim)
        :param band: How many tokens a token sees, itself included; all before it if None
        :param rotation: Rotary positions of the tokens
        :return: Attended values of every token, same shape, and the keys and values, (batch, n_heads, seq_len, head_dim)
        """
        query, key, value = self._project(x, rotation)
        attended = attend_in_band(query, key, value, x.shape[1] if band is None else band)
        # (batch, n_heads, seq_len, head_dim) -> (batch, seq_len, embed_dim)
        return self.out_proj(attended.transpose(1, 2).flatten(-2)), key, value

    def step(
        self,
        x: th.Tensor,
        keys: th.Tensor,
        values: th.Tensor,
        slots: th.Tensor,
        visible: th.Tensor,
        rotation: Rotation | None = None,
    ) -> th.Tensor:
        """
        Attention of one new token per environment to itself and to what the cache holds.

        :param x: New tokens, shape (n_envs, embed_dim)
        :param keys: Cache, (n_envs, n_heads, n_slots, head_dim); the new keys are written to it
        :param values: Cache, same shape; the new values are written to it
        :param slots: Where the new entries go, int64, (n_envs,)
        :param visible: Which slots are seen, bool, (n_envs, 1, 1, n_slots); those of the new tokens among them
        :param rotation: Rotary positions of the new tokens
        :return: Shape (n_envs, embed_dim)
        """
        query, key, value = self._project(x.unsqueeze(1), rotation)
        remember(keys, slots, key.squeeze(2))
        remember(values, slots, value.squeeze(2))
        attended = F.scaled_dot_product_attention(query, keys, values, attn_mask=visible)
        return self.out_proj(attended.flatten(1))

    def attend_from(self, x: th.Tensor, position: th.Tensor) -> th.Tensor:
        """
        Attention of one query token per sequence: ``encode(x)[0][arange(batch), position]`` for a fraction of the work,
        because the other queries (and everything behind them) are not computed.

        :param x: Tokens, shape (batch, seq_len, embed_dim)
        :param position: Index of the query token of each sequence, shape (batch,), in [0, seq_len)
        :return: Attended value of that token, shape (batch, embed_dim)
        """
        batch, seq_len, embed_dim = x.shape
        weight_query, weight_key_value = self.in_proj.weight.split([embed_dim, 2 * embed_dim])
        bias_query, bias_key_value = self.in_proj.bias.split([embed_dim, 2 * embed_dim])
        current = x[th.arange(batch, device=x.device), position].unsqueeze(1)
        query = self._split_heads(F.linear(current, weight_query, bias_query))
        key, value = (self._split_heads(part) for part in F.linear(x, weight_key_value, bias_key_value).chunk(2, dim=-1))
        # (batch,) -> (batch, 1 head, 1 query, seq_len keys)
        visible = (th.arange(seq_len, device=x.device) <= position.unsqueeze(1))[:, None, None, :]
        if _trains_faster_over_few(key, value):
            attended = _attend_from_one(query, key, value, visible)
        else:
            attended = F.scaled_dot_product_attention(query, key, value, attn_mask=visible)
        return self.out_proj(attended.flatten(1))


class TransformerLayer(nn.Module):
    """
    Transformer encoder layer without dropout: ``x += MHA(x)``, ``x += W2 relu(W1 x)``; without LayerNorm, as T-Fixup allows
    (Huang et al., ICML 2020), or with LayerNorm on the input of each part (pre-norm).

    :param embed_dim: Width of the tokens
    :param n_heads: Number of attention heads
    :param ff_dim: Width of the feed-forward network
    :param pre_norm: Whether to normalise the input of attention and feed-forward network
    """

    def __init__(self, embed_dim: int, n_heads: int, ff_dim: int, pre_norm: bool = False):
        super().__init__()
        self.attention_norm = nn.LayerNorm(embed_dim) if pre_norm else nn.Identity()
        self.attention = CausalSelfAttention(embed_dim, n_heads)
        self.feed_forward_norm = nn.LayerNorm(embed_dim) if pre_norm else nn.Identity()
        self.feed_forward_1 = nn.Linear(embed_dim, ff_dim)
        self.feed_forward_2 = nn.Linear(ff_dim, embed_dim)

    def _feed_forward(self, x: th.Tensor) -> th.Tensor:
        return x + self.feed_forward_2(F.relu(self.feed_forward_1(self.feed_forward_norm(x))))

    def encode(
        self, x: th.Tensor, band: int | None = None, rotation: Rotation | None = None
    ) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        """
        :param x: Tokens, shape (batch, seq_len, embed_dim)
        :param band: How many tokens a token sees, itself included; all before it if None
        :param rotation: Rotary positions of the tokens
        :return: Refined tokens, same shape, and the attention's keys and values, (batch, n_heads, seq_len, head_dim)
        """
        attended, key, value = self.attention.encode(self.attention_norm(x), band, rotation)
        return self._feed_forward(x + attended), key, value

    def forward(self, x: th.Tensor, band: int | None = None, rotation: Rotation | None = None) -> th.Tensor:
        """
        :param x: Tokens, shape (batch, seq_len, embed_dim)
        :param band: How many tokens a token sees, itself included; all before it if None
        :param rotation: Rotary positions of the tokens
        :return: Refined tokens, same shape
        """
        return self.encode(x, band, rotation)[0]

    def step(
        self,
        x: th.Tensor,
        keys: th.Tensor,
        values: th.Tensor,
        slots: th.Tensor,
        visible: th.Tensor,
        rotation: Rotation | None = None,
    ) -> th.Tensor:
        """
        One new token per environment; arguments as in :meth:`CausalSelfAttention.step`.

        :return: Refined tokens, (n_envs, embed_dim)
        """
        return self._feed_forward(x + self.attention.step(self.attention_norm(x), keys, values, slots, visible, rotation))

    def forward_at(self, x: th.Tensor, position: th.Tensor) -> th.Tensor:
        """
        The layer's output at one position of each sequence only: ``forward(x)[arange(batch), position]``.

        :param x: Tokens, shape (batch, seq_len, embed_dim)
        :param position: Shape (batch,), in [0, seq_len)
        :return: Shape (batch, embed_dim)
        """
        current = x[th.arange(len(x), device=x.device), position]
        return self._feed_forward(current + self.attention.attend_from(self.attention_norm(x), position))

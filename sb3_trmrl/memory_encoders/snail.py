"""SNAIL: causal dilated convolutions and causal attention in turn."""

import math

import torch as th
from torch import nn
from torch.nn import functional as F

from sb3_trmrl.common.arguments import check_integers
from sb3_trmrl.memory_encoders.attention import attend_in_band, n_cache_slots, newest_in_slots, next_slots, remember
from sb3_trmrl.memory_encoders.base import MemoryEncoder, MemoryState, oldest_first


class DenseBlock(nn.Module):
    """
    Causal convolution of kernel size 2 with a gate, ``tanh(x_f) * sigmoid(x_g)`` (Mishra et al. 2018, section 3).

    The convolution is two matrices, one for the current token and one for that of ``dilation`` steps ago, applied to every
    token at once. So what a token will contribute ``dilation`` steps later is known when it comes, and acting keeps that
    (2 * filters numbers) and not the much wider input. Before the first token are zeros.

    :param in_dim: Width of the tokens
    :param filters: Width of the output
    :param dilation: How many steps ago the other token is
    """

    def __init__(self, in_dim: int, filters: int, dilation: int):
        super().__init__()
        self.dilation = dilation
        # Blocks of 2 * filters rows: current token, earlier token; in each x_f, x_g
        self.taps = nn.Linear(in_dim, 4 * filters, bias=False)
        self.bias = nn.Parameter(th.zeros(2 * filters))
        # Xavier with the fans of two convolutions of kernel size 2
        bound = math.sqrt(6 / (2 * in_dim + 2 * filters))
        nn.init.uniform_(self.taps.weight, -bound, bound)

    def contributions(self, x: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """
        :param x: Tokens, shape (..., in_dim)
        :return: What they contribute to their own output and to that of ``dilation`` steps later, (..., 2 * filters) each
        """
        now, later = self.taps(x).chunk(2, dim=-1)
        return now, later

    def activate(self, now: th.Tensor, earlier: th.Tensor) -> th.Tensor:
        """
        :param now: Contributions of the current tokens, shape (..., 2 * filters)
        :param earlier: Contributions of the tokens of ``dilation`` steps ago, zero where there is none; same shape
        :return: Output, shape (..., filters)
        """
        x_f, x_g = (now + earlier + self.bias).chunk(2, dim=-1)
        return th.tanh(x_f) * th.sigmoid(x_g)

    def forward(self, x: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """
        :param x: Tokens, shape (batch, seq_len, in_dim)
        :return: Output, (batch, seq_len, filters), and what each token contributes later, (batch, seq_len, 2 * filters)
        """
        now, later = self.contributions(x)
        earlier = F.pad(later, (0, 0, self.dilation, 0))[:, : x.shape[1]]
        return self.activate(now, earlier), later


class TCBlock(nn.Module):
    """
    TCBlock(T, F): dense blocks of dilation 1, 2, 4, ... 2^(ceil(log2 T) - 1), each one's output concatenated to its input, so
    that the last sees the whole trial (Mishra et al. 2018, section 3).

    Acting keeps the contributions of block ``l`` in ``2^l`` slots, in a ring; those of all blocks lie one behind another.

    :param in_dim: Width of the tokens
    :param filters: Width F that each block adds
    :param length: Trial length T
    """

    def __init__(self, in_dim: int, filters: int, length: int):
        super().__init__()
        n_blocks = (length - 1).bit_length()  # ceil(log2(length))
        self.blocks = nn.ModuleList(DenseBlock(in_dim + i * filters, filters, 2**i) for i in range(n_blocks))
        self.out_dim = in_dim + n_blocks * filters
        #: How many tokens before the current one are seen; also the number of slots
        self.reach = 2**n_blocks - 1

    def _dense_blocks(self) -> list[DenseBlock]:
        return [block for block in self.blocks if isinstance(block, DenseBlock)]

    def forward(self, x: th.Tensor, ring: th.Tensor | None = None, lengths: th.Tensor | None = None) -> th.Tensor:
        """
        :param x: Tokens, shape (batch, seq_len, in_dim)
        :param ring: Filled with what acting goes on from, (batch, reach, 2 * filters)
        :param lengths: Of how many tokens, int64, (batch,); must be given with ``ring``
        :return: Shape (batch, seq_len, out_dim)
        """
        for block in self._dense_blocks():
            output, later = block(x)
            x = th.cat([x, output], dim=-1)
            if ring is not None and lengths is not None:
                columns = newest_in_slots(lengths, block.dilation).clamp(min=0).unsqueeze(-1).expand(-1, -1, later.shape[-1])
                ring[:, block.dilation - 1 : 2 * block.dilation - 1] = later.gather(1, columns)
        return x

    def step(self, x: th.Tensor, ring: th.Tensor, positions: th.Tensor) -> th.Tensor:
        """
        :param x: New tokens, shape (n_envs, in_dim)
        :param ring: Contributions of earlier tokens, (n_envs, reach, 2 * filters); those of the new tokens are written to it
        :param positions: Number of tokens before the new ones, int64, (n_envs,)
        :return: Shape (n_envs, out_dim)
        """
        dilations = 2 ** th.arange(len(self.blocks), device=x.device)
        # The slot of the token of ``dilation`` steps ago is that of the new one: (n_envs, n_blocks, 2 * filters)
        slots = (dilations - 1 + positions.unsqueeze(1) % dilations).unsqueeze(-1).expand(-1, -1, ring.shape[2])
        earlier = ring.gather(1, slots).masked_fill_((positions.unsqueeze(1) < dilations).unsqueeze(-1), 0.0)
        laters = th.empty_like(earlier)
        for i, block in enumerate(self._dense_blocks()):
            now, laters[:, i] = block.contributions(x)
            x = th.cat([x, block.activate(now, earlier[:, i])], dim=-1)
        ring.scatter_(1, slots, laters)
        return x


class AttentionBlock(nn.Module):
    """
    Causal softmax attention with a single head, its values concatenated to its input (Mishra et al. 2018, section 3).

    :param in_dim: Width of the tokens
    :param key_dim: Width of queries and keys
    :param value_dim: Width of the values
    :param memory_length: Number of tokens that a token attends to, itself included
    """

    def __init__(self, in_dim: int, key_dim: int, value_dim: int, memory_length: int):
        super().__init__()
        self.out_dim = in_dim + value_dim
        self.memory_length = memory_length
        self.sizes = [key_dim, key_dim, value_dim]
        self.in_proj = nn.Linear(in_dim, sum(self.sizes))
        for matrix in self.in_proj.weight.split(self.sizes):
            nn.init.xavier_uniform_(matrix)
        nn.init.zeros_(self.in_proj.bias)

    def forward(self, x: th.Tensor, cache: th.Tensor | None = None, lengths: th.Tensor | None = None) -> th.Tensor:
        """
        :param x: Tokens, shape (batch, seq_len, in_dim)
        :param cache: Filled with what acting goes on from, (batch, n_slots, key_dim + value_dim)
        :param lengths: Of how many tokens, int64, (batch,); must be given with ``cache``
        :return: Shape (batch, seq_len, out_dim)
        """
        projected = self.in_proj(x)
        query, key, value = (part.unsqueeze(1) for part in projected.split(self.sizes, dim=-1))
        if cache is not None and lengths is not None:
            columns = newest_in_slots(lengths, cache.shape[1]).clamp(min=0).unsqueeze(-1).expand(-1, -1, cache.shape[2])
            cache.copy_(projected[..., self.sizes[0] :].gather(1, columns))
        return th.cat([x, attend_in_band(query, key, value, self.memory_length).squeeze(1)], dim=-1)

    def step(self, x: th.Tensor, cache: th.Tensor, slots: th.Tensor, visible: th.Tensor) -> th.Tensor:
        """
        :param x: New tokens, shape (n_envs, in_dim)
        :param cache: Keys and values, (n_envs, n_slots, key_dim + value_dim); the new ones are written to it
        :param slots: Where the new entries go, int64, (n_envs,)
        :param visible: Which slots are seen, bool, (n_envs, 1, n_slots); those of the new tokens among them
        :return: Shape (n_envs, out_dim)
        """
        query, key_value = self.in_proj(x).split([self.sizes[0], self.sizes[1] + self.sizes[2]], dim=-1)
        remember(cache.unsqueeze(1), slots, key_value.unsqueeze(1))
        keys, values = cache.split(self.sizes[1:], dim=-1)
        attended = F.scaled_dot_product_attention(query.unsqueeze(1), keys, values, attn_mask=visible)
        return th.cat([x, attended.squeeze(1)], dim=-1)


class SNAILEncoder(MemoryEncoder):
    """
    The memory of SNAIL (Mishra et al., ICLR 2018, arXiv 1707.03141): a linear embedding, TCBlock(T, F), AttentionBlock,
    TCBlock(T, F), AttentionBlock; every block's output is concatenated to its input, and the features are all of that.

    The paper's networks for reinforcement learning (appendix C) have F = 32. Attention has keys and values of width 32 for
    bandits and tabular MDPs, where the blocks come in another order, and of width 16 in this order (visual navigation). These
    sizes are as public reimplementations give them; the initialisation (Xavier-uniform, zero biases) is ours.

    A TCBlock reaches back ``2^ceil(log2 T) - 1`` tokens. In the paper a trial has at most T tokens; here attention reads the
    last T tokens, the current one included, so that the memory slides in a longer trial. Together the blocks reach back
    ``context_length = 2 * (2^ceil(log2 T) - 1) + 2 * (T - 1)`` tokens. Acting keeps what it needs of them in rings; training
    encodes a slice of a trial in one pass.

    State: the convolutions' rings, (n_envs, 2, 2^ceil(log2 T) - 1, 2 * filters); keys and values of the attention blocks,
    (n_envs, 2, n_slots, key_dim + value_dim); the number of tokens held, int64 (n_envs,).

    :param token_dim: Width of the tokens
    :param embed_dim: Width of the embedded tokens
    :param filters: Width F that each of the ceil(log2 T) convolutions of a TCBlock adds
    :param key_dim: Width of the attention blocks' queries and keys
    :param value_dim: Width of their values; attention is fastest if it equals ``key_dim``
    :param memory_length: Trial length T that the TCBlocks are built for, and number of tokens that attention reads
    :raises ValueError: for sizes that are no integers of at least 1
    """

    def __init__(
        self,
        token_dim: int,
        embed_dim: int = 32,
        filters: int = 32,
        key_dim: int = 16,
        value_dim: int = 16,
        memory_length: int = 512,
    ):
        check_integers(
            dict(embed_dim=embed_dim, filters=filters, key_dim=key_dim, value_dim=value_dim, memory_length=memory_length)
        )
        tc_blocks, attention_blocks, width = [], [], embed_dim
        for _ in range(2):
            tc_blocks.append(TCBlock(width, filters, memory_length))
            attention_blocks.append(AttentionBlock(tc_blocks[-1].out_dim, key_dim, value_dim, memory_length))
            width = attention_blocks[-1].out_dim
        reach = sum(block.reach for block in tc_blocks) + 2 * (memory_length - 1)
        super().__init__(token_dim, features_dim=width, context_length=reach)
        self.memory_length = memory_length
        self._ring_shape = (2, tc_blocks[0].reach, 2 * filters)
        self._cache_dim = key_dim + value_dim
        self.embedding = nn.Linear(token_dim, embed_dim)
        nn.init.xavier_uniform_(self.embedding.weight)
        nn.init.zeros_(self.embedding.bias)
        self.tc_blocks, self.attention_blocks = nn.ModuleList(tc_blocks), nn.ModuleList(attention_blocks)

    def _stages(self) -> list[tuple[TCBlock, AttentionBlock]]:
        return [
            (tc_block, attention_block)
            for tc_block, attention_block in zip(self.tc_blocks, self.attention_blocks, strict=True)
            if isinstance(tc_block, TCBlock) and isinstance(attention_block, AttentionBlock)
        ]

    def _empty_cache(self, n_envs: int, n_slots: int) -> th.Tensor:
        return self._anchor.new_zeros(n_envs, 2, n_slots, self._cache_dim)

    def initial_state(self, n_envs: int) -> MemoryState:
        ring = self._anchor.new_zeros(n_envs, *self._ring_shape)
        cache = self._empty_cache(n_envs, n_cache_slots(0, self.memory_length))
        return ring, cache, th.zeros(n_envs, dtype=th.int64, device=ring.device)

    def state_from_context(self, tokens: th.Tensor, lengths: th.Tensor) -> MemoryState:
        n_envs, context, _ = tokens.shape
        # Nothing depends on absolute positions, so that a memory need not know of the tokens that are out of reach
        lengths = lengths.clamp(max=context)
        longest = int(lengths.max())
        ring, cache, empty = self.initial_state(n_envs)
        if longest == 0:
            return ring, cache, empty
        cache = self._empty_cache(n_envs, n_cache_slots(longest, self.memory_length))
        x = self.embedding(oldest_first(tokens, lengths))
        for i, (tc_block, attention_block) in enumerate(self._stages()):
            x = attention_block(tc_block(x, ring[:, i], lengths), cache[:, i], lengths)
        return ring, cache, lengths

    @th.no_grad()
    def step(self, tokens: th.Tensor, state: MemoryState, memory_starts: th.Tensor) -> tuple[th.Tensor, MemoryState]:
        ring, cache, lengths = state
        cache, positions, slots, used = next_slots(cache, lengths, memory_starts, self.memory_length)
        visible = (th.arange(used, device=tokens.device) <= positions.unsqueeze(1)).unsqueeze(1)
        x = self.embedding(tokens)
        for i, (tc_block, attention_block) in enumerate(self._stages()):
            x = attention_block.step(tc_block.step(x, ring[:, i], positions), cache[:, i, :used], slots, visible)
        return x, (ring, cache, positions + 1)

    def forward(self, tokens: th.Tensor, offsets: th.Tensor) -> th.Tensor:
        x = self.embedding(tokens)
        for tc_block, attention_block in self._stages():
            x = attention_block(tc_block(x))
        return x

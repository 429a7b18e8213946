"""GTrXL: Transformer-XL with LayerNorm on the input of each part and gates in the place of the residuals."""

import math

import torch as th
from torch import nn
from torch.nn import functional as F

from sb3_trmrl.common.arguments import check_integers, is_number
from sb3_trmrl.memory_encoders.attention import QUERY_BLOCK, check_heads, n_cache_slots, newest_in_slots, next_slots, remember
from sb3_trmrl.memory_encoders.base import MemoryEncoder, MemoryState, oldest_first
from sb3_trmrl.memory_encoders.positional_encoding import sinusoidal_encoding


def attend_relatively(
    content_query: th.Tensor,
    position_query: th.Tensor,
    key: th.Tensor,
    value: th.Tensor,
    relative: th.Tensor,
    band: int,
) -> th.Tensor:
    """
    Causal attention with relative positions: query ``i`` sees the newest ``band`` keys up to its own, the key of age ``a``
    (0 is its own) with the score ``content_query[i] . key + position_query[i] . relative[a]``.

    There may be more keys than queries: the last query belongs to the last key.

    :param content_query: Shape (batch, n_heads, n_queries, head_dim), already divided by sqrt(head_dim)
    :param position_query: Same shape, already divided by sqrt(head_dim)
    :param key: Shape (batch, n_heads, n_keys, head_dim), n_keys >= n_queries
    :param value: Same shape
    :param relative: Projected encodings of the ages from 0 on, (n_heads, n_ages, head_dim), n_ages >= min(band, n_keys)
    :param band: Number of tokens that a token sees, itself included, at least 1
    :return: Shape (batch, n_heads, n_queries, head_dim)
    """
    batch, n_heads, n_queries, _ = content_query.shape
    n_keys, n_ages = key.shape[2], relative.shape[1]
    # Oldest age first; in front of them rows for ages beyond the band (masked below), behind them the one that makes a row of
    # products longer by one than the number of keys
    relative = F.pad(relative.flip(1), (0, 0, QUERY_BLOCK, 1)).transpose(1, 2)
    attended = []
    for start in range(0, n_queries, QUERY_BLOCK):
        stop = min(start + QUERY_BLOCK, n_queries)
        last = n_keys - n_queries + stop  # behind the last visible key
        first = max(0, last - (stop - start) - band + 1)
        height, width = stop - start, last - first
        # Column c of these products belongs to age width - 1 - c. Read again in rows that are shorter by one, each row is
        # shifted by one against the row above, as the ages of the keys are (Dai et al. 2019, appendix B)
        ages = relative[:, :, QUERY_BLOCK + n_ages - width : QUERY_BLOCK + n_ages + 1]
        by_age = position_query[:, :, start:stop] @ ages
        by_key = by_age.flatten(2)[:, :, height - 1 : -1].unflatten(2, (height, width))
        scores = th.baddbmm(
            by_key.flatten(0, 1),
            content_query[:, :, start:stop].flatten(0, 1),
            key[:, :, first:last].flatten(0, 1).transpose(1, 2),
        )
        time = th.arange(first, last, device=key.device)
        age = time[-height:].unsqueeze(1) - time
        weights = scores.masked_fill_((age < 0) | (age >= band), -math.inf).softmax(dim=-1)
        attended.append(weights.unflatten(0, (batch, n_heads)) @ value[:, :, first:last])
    return th.cat(attended, dim=2)


class RelativeSelfAttention(nn.Module):
    """
    Transformer-XL's multi-head self-attention (Dai et al. 2019, arXiv 1901.02860, section 3.3): the score of a query ``q`` of
    time ``i`` and a key ``k`` of time ``j`` is ``((q + u) . k + (q + v) . r_{i-j}) / sqrt(head_dim)``. ``u`` is the content
    bias and ``v`` the position bias, one vector per head; ``r`` is the sinusoidal encoding of the distance, projected. No
    projection has a bias.

    :param embed_dim: Width of the tokens
    :param n_heads: Number of heads; must divide ``embed_dim``
    :param memory_length: Number of tokens that a token attends to, itself included
    """

    def __init__(self, embed_dim: int, n_heads: int, memory_length: int):
        super().__init__()
        self.embed_dim, self.n_heads, self.memory_length = embed_dim, n_heads, memory_length
        self.scale = (embed_dim // n_heads) ** -0.5
        self.query_proj = nn.Linear(embed_dim, embed_dim, bias=False)
        self.key_value_proj = nn.Linear(embed_dim, 2 * embed_dim, bias=False)
        self.position_proj = nn.Linear(embed_dim, embed_dim, bias=False)
        self.out_proj = nn.Linear(embed_dim, embed_dim, bias=False)
        self.content_bias = nn.Parameter(th.zeros(n_heads, 1, embed_dim // n_heads))
        self.position_bias = nn.Parameter(th.zeros(n_heads, 1, embed_dim // n_heads))

    def _split_heads(self, x: th.Tensor) -> th.Tensor:
        # (batch, seq_len, embed_dim) -> (batch, n_heads, seq_len, head_dim)
        return x.unflatten(-1, (self.n_heads, -1)).transpose(1, 2)

    def project(self, x: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """
        :param x: Tokens, shape (batch, seq_len, embed_dim)
        :return: Their keys and values, (batch, n_heads, seq_len, head_dim)
        """
        key, value = self.key_value_proj(x).chunk(2, dim=-1)
        return self._split_heads(key), self._split_heads(value)

    def _queries(self, x: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        query = self._split_heads(self.query_proj(x))
        return (query + self.content_bias) * self.scale, (query + self.position_bias) * self.scale

    def forward(self, x: th.Tensor, key: th.Tensor, value: th.Tensor, encodings: th.Tensor) -> th.Tensor:
        """
        :param x: Tokens, shape (batch, seq_len, embed_dim)
        :param key: Keys of what precedes the tokens, if anything, and of the tokens, (batch, n_heads, n_keys, head_dim)
        :param value: Their values, same shape
        :param encodings: Sinusoidal encodings of the ages 0 to ``memory_length - 1``, (memory_length, embed_dim)
        :return: Attended values of every token, shape (batch, seq_len, embed_dim)
        """
        content_query, position_query = self._queries(x)
        relative = self._split_heads(self.position_proj(encodings[: key.shape[2]]).unsqueeze(0))[0]
        attended = attend_relatively(content_query, position_query, key, value, relative, self.memory_length)
        # (batch, n_heads, seq_len, head_dim) -> (batch, seq_len, embed_dim)
        return self.out_proj(attended.transpose(1, 2).flatten(2))

    def step(
        self,
        x: th.Tensor,
        cache: th.Tensor,
        slots: th.Tensor,
        ages: th.Tensor,
        hidden: th.Tensor,
        encodings: th.Tensor,
    ) -> th.Tensor:
        """
        Attention of one new token per environment to itself and to what the cache holds.

        :param x: New tokens, shape (n_envs, embed_dim)
        :param cache: Keys and values, (n_envs, 2, n_heads, n_slots, head_dim); the new ones are written to it
        :param slots: Where the new entries go, int64, (n_envs,)
        :param ages: Age of what the slots hold, int64, (n_envs, n_slots), in [0, n_slots)
        :param hidden: Which slots are not seen, bool, (n_envs, n_slots); those of the new tokens are
        :param encodings: Sinusoidal encodings of the ages from 0 on, (at least n_slots, embed_dim)
        :return: Shape (n_envs, embed_dim)
        """
        x = x.unsqueeze(1)
        key, value = self.project(x)
        remember(cache[:, 0], slots, key.squeeze(2))
        remember(cache[:, 1], slots, value.squeeze(2))
        content_query, position_query = self._queries(x)
        # The queries are moved to the encodings, of which there are more, and not they to the queries. Heads first, or the
        # matrices would be copied for every environment: (n_heads, n_envs, head_dim) -> (n_heads, n_envs, n_slots)
        position_proj = self.position_proj.weight.unflatten(0, (self.n_heads, -1))
        by_age = th.bmm(position_query.squeeze(2).transpose(0, 1), position_proj) @ encodings[: ages.shape[1]].T
        bias = by_age.gather(2, ages.expand_as(by_age)).masked_fill_(hidden, -math.inf).transpose(0, 1).unsqueeze(2)
        attended = F.scaled_dot_product_attention(content_query, cache[:, 0], cache[:, 1], attn_mask=bias, scale=1.0)
        return self.out_proj(attended.flatten(1))


class GRUGate(nn.Module):
    """
    GTrXL's gate of GRU type, in the place of the residual ``x + y`` (Parisotto et al. 2020, section 3.2)::

        r = sigmoid(W_r y + U_r x)
        z = sigmoid(W_z y + U_z x - b_g)
        h = tanh(W_g y + U_g (r * x))
        g = (1 - z) * x + z * h

    :param embed_dim: Width of the tokens
    :param bias: Where the learned ``b_g`` starts. The larger, the closer the gate is to the identity
    """

    def __init__(self, embed_dim: int, bias: float):
        super().__init__()
        # W_r, W_z, W_g; U_r, U_z; U_g
        self.from_output = nn.Linear(embed_dim, 3 * embed_dim, bias=False)
        self.from_input = nn.Linear(embed_dim, 2 * embed_dim, bias=False)
        self.from_reset_input = nn.Linear(embed_dim, embed_dim, bias=False)
        self.bias = nn.Parameter(th.full((embed_dim,), float(bias)))

    def forward(self, x: th.Tensor, y: th.Tensor) -> th.Tensor:
        """
        :param x: The un-normalised input of the gated part, shape (..., embed_dim)
        :param y: Its output, same shape
        :return: Same shape
        """
        reset_y, update_y, candidate_y = self.from_output(y).chunk(3, dim=-1)
        reset_x, update_x = self.from_input(x).chunk(2, dim=-1)
        reset = th.sigmoid(reset_y + reset_x)
        update = th.sigmoid(update_y + update_x - self.bias)
        candidate = th.tanh(candidate_y + self.from_reset_input(reset * x))
        # (1 - z) x + z h
        return th.lerp(x, candidate, update)


class GTrXLLayer(nn.Module):
    """
    ``x = gate(x, relu(attention(norm(x))))``, ``x = gate(x, relu(feed_forward(norm(x))))`` (Parisotto et al. 2020, section 3).

    :param embed_dim: Width of the tokens
    :param n_heads: Number of attention heads
    :param ff_dim: Width of the feed-forward network
    :param memory_length: Number of tokens that a token attends to, itself included
    :param gate_bias: Where the bias ``b_g`` of the gates starts
    """

    def __init__(self, embed_dim: int, n_heads: int, ff_dim: int, memory_length: int, gate_bias: float):
        super().__init__()
        self.attention_norm = nn.LayerNorm(embed_dim)
        self.attention = RelativeSelfAttention(embed_dim, n_heads, memory_length)
        self.attention_gate = GRUGate(embed_dim, gate_bias)
        self.feed_forward_norm = nn.LayerNorm(embed_dim)
        self.feed_forward_1 = nn.Linear(embed_dim, ff_dim)
        self.feed_forward_2 = nn.Linear(ff_dim, embed_dim)
        self.feed_forward_gate = GRUGate(embed_dim, gate_bias)

    def _behind_attention(self, x: th.Tensor, attended: th.Tensor) -> th.Tensor:
        x = self.attention_gate(x, F.relu(attended))
        y = self.feed_forward_2(F.relu(self.feed_forward_1(self.feed_forward_norm(x))))
        return self.feed_forward_gate(x, F.relu(y))

    def encode(
        self, x: th.Tensor, encodings: th.Tensor, segment_length: int | None = None
    ) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        """
        :param x: Tokens, shape (batch, seq_len, embed_dim)
        :param encodings: Sinusoidal encodings of the ages 0 to ``memory_length - 1``, (memory_length, embed_dim)
        :param segment_length: Gradients do not flow into tokens of earlier segments of that length; they do if None
        :return: Refined tokens, same shape, and the attention's keys and values, (batch, n_heads, seq_len, head_dim)
        """
        normed = self.attention_norm(x)
        key, value = self.attention.project(normed)
        if segment_length is None or segment_length >= x.shape[1]:
            return self._behind_attention(x, self.attention(normed, key, value, encodings)), key, value
        # The same keys and values for the segments behind: gradients reach the weights that make them, not the tokens
        old_key, old_value = self.attention.project(self.attention_norm(x.detach()))
        attended = []
        for start in range(0, x.shape[1], segment_length):
            first, stop = max(0, start - self.attention.memory_length + 1), start + segment_length
            keys = th.cat([old_key[:, :, first:start], key[:, :, start:stop]], dim=2)
            values = th.cat([old_value[:, :, first:start], value[:, :, start:stop]], dim=2)
            attended.append(self.attention(normed[:, start:stop], keys, values, encodings))
        return self._behind_attention(x, th.cat(attended, dim=1)), key, value

    def step(
        self,
        x: th.Tensor,
        cache: th.Tensor,
        slots: th.Tensor,
        ages: th.Tensor,
        hidden: th.Tensor,
        encodings: th.Tensor,
    ) -> th.Tensor:
        """
        One new token per environment; arguments as in :meth:`RelativeSelfAttention.step`.

        :return: Refined tokens, (n_envs, embed_dim)
        """
        attended = self.attention.step(self.attention_norm(x), cache, slots, ages, hidden, encodings)
        return self._behind_attention(x, attended)


class GTrXLEncoder(MemoryEncoder):
    """
    The Gated Transformer-XL (Parisotto et al., ICML 2020, arXiv 1910.06764, section 3): relative positions, LayerNorm on the
    input of attention and feed-forward network only, ReLU on their outputs, and GRU-type gates in the place of the residuals.
    The gates start almost closed, so that at first the features are nearly an embedding of the current token: a reactive
    policy.

    In each layer a token attends to the last ``memory_length`` tokens of the trial, itself included, so that ``n_layers``
    layers reach back ``n_layers * (memory_length - 1)`` tokens. Acting keeps keys and values of each layer in a ring of up to
    ``memory_length`` slots per environment; training encodes a slice of a trial in one pass.

    State: the cache, (n_envs, n_layers, 2 (keys, values), n_heads, n_slots, head_dim), and the number of tokens held, int64
    (n_envs,).

    :param token_dim: Width of the tokens
    :param embed_dim: Width d of the transformer and of the features
    :param n_heads: Number of attention heads; must divide ``embed_dim``
    :param n_layers: Number of layers
    :param ff_dim: Width of the feed-forward networks; ``4 * embed_dim`` if None
    :param memory_length: Number of tokens that a token attends to, itself included
    :param gate_bias: Where the learned bias ``b_g`` of the gates starts, 2 in the paper. The larger, the closer the network is
        to the identity at first
    :param segment_length: Transformer-XL's training: a slice is cut into segments of that length, and gradients do not flow
        into tokens of earlier segments (the features stay the same). The whole slice is one segment if None
    :raises ValueError: for sizes that are no integers of at least 1, and if ``n_heads`` does not divide ``embed_dim``
    """

    def __init__(
        self,
        token_dim: int,
        embed_dim: int = 128,
        n_heads: int = 4,
        n_layers: int = 2,
        ff_dim: int | None = None,
        memory_length: int = 512,
        gate_bias: float = 2.0,
        segment_length: int | None = None,
    ):
        ff_dim = 4 * embed_dim if ff_dim is None else ff_dim
        sizes = dict(embed_dim=embed_dim, n_heads=n_heads, n_layers=n_layers, ff_dim=ff_dim, memory_length=memory_length)
        sizes["segment_length"] = 1 if segment_length is None else segment_length
        check_integers(sizes)
        check_heads(embed_dim, n_heads)
        if not is_number(gate_bias) or not math.isfinite(gate_bias):
            raise ValueError(f"gate_bias must be a finite number, got {gate_bias!r}.")
        super().__init__(token_dim, features_dim=embed_dim, context_length=n_layers * (memory_length - 1))
        self.n_heads, self.memory_length, self.segment_length = n_heads, memory_length, segment_length
        self.embedding = nn.Linear(token_dim, embed_dim)
        self.layers = nn.ModuleList(GTrXLLayer(embed_dim, n_heads, ff_dim, memory_length, gate_bias) for _ in range(n_layers))
        self._encodings: th.Tensor
        self.register_buffer("_encodings", sinusoidal_encoding(th.arange(memory_length), embed_dim), persistent=False)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def _gtrxl_layers(self) -> list[GTrXLLayer]:
        return [layer for layer in self.layers if isinstance(layer, GTrXLLayer)]

    def _empty_cache(self, n_envs: int, n_slots: int) -> th.Tensor:
        head_dim = self.features_dim // self.n_heads
        return self._anchor.new_zeros(n_envs, len(self.layers), 2, self.n_heads, n_slots, head_dim)

    def initial_state(self, n_envs: int) -> MemoryState:
        cache = self._empty_cache(n_envs, n_cache_slots(0, self.memory_length))
        return cache, th.zeros(n_envs, dtype=th.int64, device=cache.device)

    def state_from_context(self, tokens: th.Tensor, lengths: th.Tensor) -> MemoryState:
        n_envs, context, _ = tokens.shape
        # Positions are relative, so that a memory need not know of the tokens that are out of reach
        lengths = lengths.clamp(max=context)
        longest = int(lengths.max())
        if longest == 0:
            return self.initial_state(n_envs)
        cache = self._empty_cache(n_envs, n_cache_slots(longest, self.memory_length))
        columns = newest_in_slots(lengths, cache.shape[4]).clamp(min=0)
        columns = columns[:, None, :, None].expand(-1, self.n_heads, -1, cache.shape[5])
        x = self.embedding(oldest_first(tokens, lengths))
        for index, layer in enumerate(self._gtrxl_layers()):
            x, keys, values = layer.encode(x, self._encodings)
            cache[:, index, 0], cache[:, index, 1] = keys.gather(2, columns), values.gather(2, columns)
        return cache, lengths

    @th.no_grad()
    def step(self, tokens: th.Tensor, state: MemoryState, memory_starts: th.Tensor) -> tuple[th.Tensor, MemoryState]:
        cache, lengths = state
        cache, positions, slots, used = next_slots(cache, lengths, memory_starts, self.memory_length)
        ages = (positions.unsqueeze(1) - th.arange(used, device=tokens.device)) % cache.shape[4]
        hidden = ages > positions.unsqueeze(1)
        ages = ages.clamp(max=used - 1)
        x = self.embedding(tokens)
        for index, layer in enumerate(self._gtrxl_layers()):
            x = layer.step(x, cache[:, index, :, :, :used], slots, ages, hidden, self._encodings)
        return x, (cache, positions + 1)

    def forward(self, tokens: th.Tensor, offsets: th.Tensor) -> th.Tensor:
        x = self.embedding(tokens)
        for layer in self._gtrxl_layers():
            x, _, _ = layer.encode(x, self._encodings, self.segment_length)
        return x

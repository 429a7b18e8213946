"""
Causal self-attention and the normalisation-free transformer layer.

Shapes: batch, seq_len, embed_dim = n_heads * head_dim.
"""

import torch as th
from torch import nn
from torch.nn import functional as F


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
        if embed_dim % n_heads != 0:
            raise ValueError(
                f"embed_dim must be divisible by n_heads, got embed_dim={embed_dim} and n_heads={n_heads}: "
                "the heads share the embedding evenly, choose for example n_heads=4 with embed_dim=128."
            )
        self.embed_dim = embed_dim
        self.n_heads = n_heads
        self.in_proj = nn.Linear(embed_dim, 3 * embed_dim)
        self.out_proj = nn.Linear(embed_dim, embed_dim)

    def _split_heads(self, x: th.Tensor) -> th.Tensor:
        # (batch, seq_len, embed_dim) -> (batch, n_heads, seq_len, head_dim)
        return x.unflatten(-1, (self.n_heads, -1)).transpose(1, 2)

    def forward(self, x: th.Tensor) -> th.Tensor:
        """
        :param x: Tokens, shape (batch, seq_len, embed_dim)
        :return: Attended values of every token, same shape
        """
        query, key, value = (self._split_heads(part) for part in self.in_proj(x).chunk(3, dim=-1))
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        # (batch, n_heads, seq_len, head_dim) -> (batch, seq_len, embed_dim)
        return self.out_proj(attended.transpose(1, 2).flatten(-2))

    def attend_from(self, x: th.Tensor, position: th.Tensor) -> th.Tensor:
        """
        Attention of one query token per sequence: ``forward(x)[arange(batch), position]`` for a fraction of the work,
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
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=visible)
        return self.out_proj(attended.flatten(1))


class TransformerLayer(nn.Module):
    """
    Transformer encoder layer without LayerNorm and dropout, as T-Fixup allows (Huang et al., ICML 2020):
    ``x += MHA(x)``, ``x += W2 relu(W1 x)``.

    :param embed_dim: Width of the tokens
    :param n_heads: Number of attention heads
    :param ff_dim: Width of the feed-forward network
    """

    def __init__(self, embed_dim: int, n_heads: int, ff_dim: int):
        super().__init__()
        self.attention = CausalSelfAttention(embed_dim, n_heads)
        self.feed_forward_1 = nn.Linear(embed_dim, ff_dim)
        self.feed_forward_2 = nn.Linear(ff_dim, embed_dim)

    def _feed_forward(self, x: th.Tensor) -> th.Tensor:
        return x + self.feed_forward_2(F.relu(self.feed_forward_1(x)))

    def forward(self, x: th.Tensor) -> th.Tensor:
        """
        :param x: Tokens, shape (batch, seq_len, embed_dim)
        :return: Refined tokens, same shape
        """
        return self._feed_forward(x + self.attention(x))

    def forward_at(self, x: th.Tensor, position: th.Tensor) -> th.Tensor:
        """
        The layer's output at one position of each sequence only: ``forward(x)[arange(batch), position]``.

        :param x: Tokens, shape (batch, seq_len, embed_dim)
        :param position: Shape (batch,), in [0, seq_len)
        :return: Shape (batch, embed_dim)
        """
        current = x[th.arange(len(x), device=x.device), position]
        return self._feed_forward(current + self.attention.attend_from(x, position))

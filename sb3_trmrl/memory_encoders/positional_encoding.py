"""Positions of tokens in memory: sinusoids that are added to tokens, rotations of queries and keys."""

import math

import torch as th

#: Cosines and sines of rotary positions, (batch or 1, seq_len, 1, head_dim / 2) each
Rotation = tuple[th.Tensor, th.Tensor]


def sinusoidal_encoding(positions: th.Tensor, embed_dim: int) -> th.Tensor:
    """
    Fixed sinusoids: sine on even, cosine on odd channels, base 10000 (Vaswani et al. 2017, section 3.5).

    ``PE[pos, 2i] = sin(pos / 10000^(2i / d))``, ``PE[pos, 2i + 1] = cos(pos / 10000^(2i / d))``

    :param positions: Positions, int64, any shape
    :param embed_dim: Number of channels ``d`` (odd numbers are allowed)
    :return: Float32 tensor of shape (\\*positions.shape, embed_dim), every entry in [-1, 1]
    """
    channels = th.arange(0, embed_dim, 2, dtype=th.float32, device=positions.device)
    angles = positions.unsqueeze(-1) * th.exp(channels * (-math.log(10_000.0) / embed_dim))
    encoding = angles.new_zeros(*positions.shape, embed_dim)
    encoding[..., 0::2] = th.sin(angles)
    encoding[..., 1::2] = th.cos(angles[..., : embed_dim // 2])
    return encoding


def rotation_at(positions: th.Tensor, head_dim: int) -> Rotation:
    """
    Rotary positions (Su et al. 2021, arXiv 2104.09864, section 3.2.2): channel pair ``i`` of a head turns by
    ``pos / 10000^(2i / head_dim)``, so that the product of a query and a key depends on their distance only.

    :param positions: Positions, int64, (batch, seq_len)
    :param head_dim: Width of a head, even
    :return: Cosines and sines
    """
    channels = th.arange(0, head_dim, 2, dtype=th.float64, device=positions.device)
    # In float64: a trial may be long, and an angle of 10^5 has lost two digits in float32
    angles = positions[..., None, None] * th.exp(channels * (-math.log(10_000.0) / head_dim))
    return angles.cos().float(), angles.sin().float()


def rotate(x: th.Tensor, rotation: Rotation) -> th.Tensor:
    """
    :param x: Queries or keys, (batch, seq_len, n_heads, head_dim); channel ``i`` is paired with ``i + head_dim / 2``
    :param rotation: Their rotary positions
    :return: Same shape
    """
    cosine, sine = rotation
    first, second = x.chunk(2, dim=-1)
    return th.cat([first * cosine - second * sine, first * sine + second * cosine], dim=-1)

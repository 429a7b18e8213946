"""Positional encodings of working-memory tokens."""

import math

import torch as th


def sinusoidal_encoding(length: int, embed_dim: int) -> th.Tensor:
    """
    Fixed sinusoids: sine on even, cosine on odd channels, base 10000 (Vaswani et al. 2017, section 3.5).

    ``PE[pos, 2i] = sin(pos / 10000^(2i / d))``, ``PE[pos, 2i + 1] = cos(pos / 10000^(2i / d))``

    :param length: Number of positions
    :param embed_dim: Number of channels ``d`` (odd numbers are allowed)
    :return: Tensor of shape (length, embed_dim), every entry in [-1, 1]
    """
    position = th.arange(length, dtype=th.float32).unsqueeze(1)
    frequency = th.exp(th.arange(0, embed_dim, 2, dtype=th.float32) * (-math.log(10_000.0) / embed_dim))
    encoding = th.zeros(length, embed_dim)
    encoding[:, 0::2] = th.sin(position * frequency)
    encoding[:, 1::2] = th.cos(position * frequency[: embed_dim // 2])
    return encoding

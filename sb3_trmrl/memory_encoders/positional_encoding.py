"""Positions of tokens in memory: sinusoids that are added to tokens, rotations of queries and keys."""

import math
from typing import Any

import torch as th
from torch.autograd.function import once_differentiable

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


def _turn(x: th.Tensor, cosine: th.Tensor, sine: th.Tensor) -> th.Tensor:
    turned = th.empty_like(x)
    first, second = x.chunk(2, dim=-1)
    turned_first, turned_second = turned.chunk(2, dim=-1)
    th.mul(first, cosine, out=turned_first).addcmul_(second, sine, value=-1)
    th.mul(first, sine, out=turned_second).addcmul_(second, cosine)
    return turned


class _Rotate(th.autograd.Function):
    """``_turn`` with its gradient, which is the turn back: half the passes over memory that autograd would make."""

    @staticmethod
    def forward(ctx: Any, x: th.Tensor, cosine: th.Tensor, sine: th.Tensor) -> th.Tensor:
        ctx.save_for_backward(cosine, sine)
        return _turn(x, cosine, sine)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: th.Tensor) -> tuple[th.Tensor, None, None]:
        cosine, sine = ctx.saved_tensors
        return _turn(grad, cosine, -sine), None, None


def rotate(x: th.Tensor, rotation: Rotation) -> th.Tensor:
    """
    :param x: Queries or keys, (batch, seq_len, n_heads, head_dim); channel ``i`` is paired with ``i + head_dim / 2``
    :param rotation: Their rotary positions
    :return: Same shape
    """
    # Acting calls this for single tokens, for which autograd's part is half of the time
    return _Rotate.apply(x, *rotation) if th.is_grad_enabled() else _turn(x, *rotation)

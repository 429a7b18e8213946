"""Attention against PyTorch's and against masks, values and gradients; positions against their closed forms."""

import math
from typing import Any

import pytest
import torch as th
from torch import nn

from sb3_trmrl.memory_encoders import attention
from sb3_trmrl.memory_encoders.attention import (
    FEW_TOKENS,
    NARROW_HEAD,
    AttentionOverFew,
    CausalSelfAttention,
    TransformerLayer,
    attend_in_band,
)
from sb3_trmrl.memory_encoders.positional_encoding import rotate, rotation_at, sinusoidal_encoding


def test_attention_equals_pytorchs_multihead_attention():
    th.manual_seed(0)
    ours, theirs = CausalSelfAttention(16, 4), nn.MultiheadAttention(16, 4, batch_first=True)
    with th.no_grad():
        theirs.in_proj_weight.copy_(ours.in_proj.weight)
        theirs.in_proj_bias.copy_(ours.in_proj.bias)
        theirs.out_proj.weight.copy_(ours.out_proj.weight)
        theirs.out_proj.bias.copy_(ours.out_proj.bias)
    x = th.randn(3, 7, 16)
    mask = th.ones(7, 7, dtype=th.bool).triu(1)
    th.testing.assert_close(ours.encode(x)[0], theirs(x, x, x, attn_mask=mask, need_weights=False)[0], atol=1e-6, rtol=1e-5)


def test_layer_at_one_position_equals_the_whole_layer():
    th.manual_seed(0)
    layer, x, position = TransformerLayer(16, 4, 32), th.randn(9, 6, 16), th.randint(0, 6, (9,))
    th.testing.assert_close(layer.forward_at(x, position), layer(x)[th.arange(9), position], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("seq_len", [1, 2, 5, FEW_TOKENS])
@pytest.mark.parametrize(("n_heads", "head_dim"), [(16, 8), (1, 1), (3, 5)])
def test_attention_over_few_equals_pytorchs(seq_len, n_heads, head_dim):
    """Values and gradients, in float64; queries, keys and values as the projection makes them, and laid out otherwise."""
    th.manual_seed(0)
    projected = th.randn(7, seq_len, 3, n_heads, head_dim, dtype=th.float64)
    for parts in (projected.permute(2, 0, 3, 1, 4), th.randn(3, 7, n_heads, seq_len, head_dim, dtype=th.float64)):
        query, key, value = parts = parts.requires_grad_()
        ours = AttentionOverFew.apply(query, key, value)
        theirs = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        th.testing.assert_close(ours, theirs)
        assert ours.transpose(1, 2).is_contiguous(), "the heads of a token lie side by side"
        for grad in (th.randn_like(theirs), th.ones(1, 1, 1, 1, dtype=th.float64).expand_as(theirs)):
            th.testing.assert_close(
                th.autograd.grad(ours, parts, grad, retain_graph=True),
                th.autograd.grad(theirs, parts, grad, retain_graph=True),
            )
    # Queries and values that are not trained
    key = th.randn(7, n_heads, seq_len, head_dim, dtype=th.float64, requires_grad=True)
    ours = AttentionOverFew.apply(query.detach(), key, value.detach()).pow(2).sum()
    theirs = nn.functional.scaled_dot_product_attention(query.detach(), key, value.detach(), is_causal=True).pow(2).sum()
    th.testing.assert_close(th.autograd.grad(ours, key), th.autograd.grad(theirs, key))


def test_which_attention_acts_and_which_trains(monkeypatch):
    """Narrow heads over few tokens train by our own function; they act by torch's, and so does everything else."""
    calls: list[th.Tensor] = []
    torchs = nn.functional.scaled_dot_product_attention

    def record(query: th.Tensor, *args: Any, **kwargs: Any) -> th.Tensor:
        calls.append(query)
        return torchs(query, *args, **kwargs)

    monkeypatch.setattr(nn.functional, "scaled_dot_product_attention", record)
    th.manual_seed(0)
    position = th.randint(0, FEW_TOKENS, (9,))
    for seq_len, head_dim, trains_by_torchs in (
        (FEW_TOKENS, NARROW_HEAD, False),
        (FEW_TOKENS + 1, NARROW_HEAD, True),
        (FEW_TOKENS, 2 * NARROW_HEAD, True),
    ):
        layer, x = TransformerLayer(2 * head_dim, 2, 32), th.randn(9, seq_len, 2 * head_dim)
        results, gradients = [], []
        for own in (True, False):
            if not own:  # what torch's gives
                monkeypatch.setattr(attention, "NARROW_HEAD", 0)
            calls.clear()
            outputs = layer(x), layer.forward_at(x, position)
            assert len(calls) == (2 if trains_by_torchs or not own else 0)
            results.append(outputs)
            gradients.append(
                th.autograd.grad(th.cat([outputs[0].flatten(), outputs[1].flatten()]).pow(2).sum(), list(layer.parameters()))
            )
        monkeypatch.setattr(attention, "NARROW_HEAD", NARROW_HEAD)
        calls.clear()
        with th.no_grad():
            results.append((layer(x), layer.forward_at(x, position)))
        assert len(calls) == 2
        for outputs in results[1:]:
            th.testing.assert_close(outputs, results[0], atol=1e-6, rtol=1e-5)
        th.testing.assert_close(gradients[0], gradients[1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("embed_dim", [6, 7])
def test_sinusoidal_encoding_entry_by_entry(embed_dim):
    encoding = sinusoidal_encoding(th.arange(5), embed_dim)
    for position in range(5):
        for channel in range(embed_dim):
            angle = position / 10_000 ** ((channel - channel % 2) / embed_dim)
            expected = math.cos(angle) if channel % 2 else math.sin(angle)
            assert encoding[position, channel].item() == pytest.approx(expected, abs=1e-6)


# -- Bands and rotary positions --------------------------------------------------------------------------------------


def attend_by_mask(query: th.Tensor, key: th.Tensor, value: th.Tensor, band: int) -> th.Tensor:
    """A token sees those of age 0 to band - 1."""
    time = th.arange(query.shape[2])
    age = time.unsqueeze(1) - time
    scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
    return scores.masked_fill((age < 0) | (age >= band), -math.inf).softmax(dim=-1) @ value


@pytest.mark.parametrize("band", range(1, 10))
def test_attention_in_a_band_equals_a_masked_one(band, monkeypatch):
    monkeypatch.setattr(attention, "QUERY_BLOCK", 7)
    th.manual_seed(0)
    for seq_len in range(1, 41):
        banded = [th.randn(2, 3, seq_len, 4, requires_grad=True) for _ in range(3)]
        masked = [part.detach().clone().requires_grad_() for part in banded]
        weights = th.randn(2, 3, seq_len, 4)
        results = (
            attend_in_band(banded[0], banded[1], banded[2], band),
            attend_by_mask(masked[0], masked[1], masked[2], band),
        )
        for result in results:
            (result * weights).sum().backward()
        th.testing.assert_close(*results, atol=1e-6, rtol=1e-5)
        for ours, theirs in zip(banded, masked, strict=True):
            assert ours.grad is not None and theirs.grad is not None
            th.testing.assert_close(ours.grad, theirs.grad, atol=1e-5, rtol=1e-5)


def test_a_band_takes_work_in_proportion_to_the_sequence(monkeypatch):
    sizes = []

    def record(query: th.Tensor, key: th.Tensor, value: th.Tensor, **kwargs: Any) -> th.Tensor:
        sizes.append(query.shape[2] * key.shape[2])
        return query

    monkeypatch.setattr(nn.functional, "scaled_dot_product_attention", record)
    x = th.zeros(1, 1, 640, 2)
    attend_in_band(x, x, x, band=10)
    # Ten blocks of 64 queries; each meets its own 64 keys and the 9 before them, if there are any
    assert sizes == [64 * 64] + [64 * 73] * 9
    sizes.clear()
    attend_in_band(x, x, x, band=640)
    assert sizes == [64 * 64 * (block + 1) for block in range(10)], "without a band the future is left out"


def test_the_gradient_of_a_rotation_is_exact():
    th.manual_seed(0)
    cosine, sine = rotation_at(th.tensor([[3, 4, 1000], [0, 1, 2]]), 6)
    rotation = cosine.double(), sine.double()
    x = th.randn(2, 3, 5, 6, dtype=th.float64, requires_grad=True)
    assert th.autograd.gradcheck(lambda x: rotate(x, rotation), (x,))
    with th.no_grad():
        without = rotate(x, rotation)
    assert th.equal(rotate(x, rotation), without), "acting and training turn alike"


def test_rotary_positions_in_closed_form():
    x = th.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 1, 1, 4)
    # Channel 0 turns with channel 2 by one radian per position, channel 1 with channel 3 by 1/100
    for position in (0, 1, 7, 1000):
        turned = rotate(x, rotation_at(th.tensor([[position]]), 4)).flatten().tolist()
        for first, second, angle in ((0, 2, position), (1, 3, position / 100)):
            a, b = x.flatten()[first].item(), x.flatten()[second].item()
            assert turned[first] == pytest.approx(a * math.cos(angle) - b * math.sin(angle), abs=1e-5)
            assert turned[second] == pytest.approx(a * math.sin(angle) + b * math.cos(angle), abs=1e-5)


def test_rotary_scores_depend_on_the_distance_only():
    th.manual_seed(0)
    query, key = th.randn(1, 1, 2, 8), th.randn(1, 1, 2, 8)

    def score(query_position: int, key_position: int) -> th.Tensor:
        turned = [
            rotate(x, rotation_at(th.tensor([[position]]), 8))
            for x, position in ((query, query_position), (key, key_position))
        ]
        return (turned[0] * turned[1]).sum(dim=-1)

    for distance in (0, 1, 17):
        for position in (distance, 100, 100_000):
            th.testing.assert_close(score(position, position - distance), score(distance, 0), atol=1e-4, rtol=0)
    assert (score(5, 0) - score(3, 0)).abs().min() > 1e-3
    th.testing.assert_close(score(9, 9), (query * key).sum(dim=-1), atol=1e-5, rtol=0)

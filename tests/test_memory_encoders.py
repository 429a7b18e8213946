"""Memory encoders: T-Fixup by matrix, attention against PyTorch, step by step against whole sequences, causality."""

import math
from typing import Any

import pytest
import torch as th
from gymnasium import spaces
from torch import nn

from sb3_trmrl.memory_encoders import MEMORY_ENCODERS, TFixupTransformerEncoder, get_memory_encoder_class
from sb3_trmrl.memory_encoders.attention import CausalSelfAttention, TransformerLayer
from sb3_trmrl.memory_encoders.base import memory_lengths, window_indices
from sb3_trmrl.memory_encoders.positional_encoding import sinusoidal_encoding
from sb3_trmrl.trmrl_ppo import TrMRLPolicy

PAPER_HALF_CHEETAH: dict[str, Any] = dict(embed_dim=128, n_heads=16, n_layers=4, ff_dim=512, memory_length=5)


def make_encoder(memory_length: int = 4, n_layers: int = 2, **kwargs) -> TFixupTransformerEncoder:
    th.manual_seed(0)
    return TFixupTransformerEncoder(3, embed_dim=16, n_heads=4, n_layers=n_layers, memory_length=memory_length, **kwargs)


# -- T-Fixup ---------------------------------------------------------------------------------------------------------


def assert_uniform(matrix: th.Tensor, bound: float) -> None:
    """The entries fill U(-bound, bound): the largest is just below the bound, the deviation is bound / sqrt(3)."""
    assert matrix.abs().max() <= bound
    assert matrix.abs().max() > 0.99 * bound
    assert matrix.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.03)


@pytest.mark.parametrize("initialization", ["trmrl", "tfixup"])
def test_tfixup_scales_every_matrix(initialization):
    th.manual_seed(0)
    encoder = TFixupTransformerEncoder(28, **PAPER_HALF_CHEETAH, initialization=initialization)
    scale = 0.67 * 4**-0.25
    assert scale == pytest.approx(0.4738, abs=1e-4)
    square, wide = math.sqrt(6 / (128 + 128)), math.sqrt(6 / (128 + 512))
    assert encoder.embedding.weight.std().item() == pytest.approx(0.0361, rel=0.03)
    for layer in encoder.layers:
        assert isinstance(layer, TransformerLayer)
        query, key, value = layer.attention.in_proj.weight.chunk(3)
        query_key_bound = square * (scale if initialization == "trmrl" else 1 / math.sqrt(2))
        assert_uniform(query, query_key_bound)
        assert_uniform(key, query_key_bound)
        for matrix in (value, layer.attention.out_proj.weight):
            assert_uniform(matrix, square * scale)
        for matrix in (layer.feed_forward_1.weight, layer.feed_forward_2.weight):
            assert_uniform(matrix, wide * scale)
        assert not layer.attention.in_proj.bias.any() and not layer.attention.out_proj.bias.any()
        # Author's code leaves PyTorch's default, U(-1/sqrt(fan_in), 1/sqrt(fan_in)); the T-Fixup paper has zeros
        assert bool(layer.feed_forward_1.bias.any()) == (initialization == "trmrl")
    if initialization == "trmrl":
        assert math.sqrt(6 / 256) * scale == pytest.approx(0.0725, abs=1e-4)


def test_without_tfixup_matrices_are_plain_xavier():
    th.manual_seed(0)
    encoder = TFixupTransformerEncoder(28, **PAPER_HALF_CHEETAH, initialization="xavier")
    layer = encoder.layers[0]
    assert isinstance(layer, TransformerLayer)
    assert_uniform(layer.attention.out_proj.weight, math.sqrt(6 / 256))


def test_scale_embedding_multiplies_by_sqrt_of_the_width():
    plain, scaled = make_encoder(), make_encoder(scale_embedding=True)
    windows, lengths = th.randn(5, 4, 3), th.tensor([1, 2, 3, 4, 4])
    with th.no_grad():
        plain.embedding.weight *= 4.0  # sqrt(16)
    th.testing.assert_close(plain.encode_windows(windows, lengths), scaled.encode_windows(windows, lengths))


@pytest.mark.parametrize(
    ("token_dim", "action_dim", "encoder_kwargs", "published"),
    [
        (28, 6, PAPER_HALF_CHEETAH, 807_000),
        (37, 8, PAPER_HALF_CHEETAH, 809_000),
        (45, 4, dict(embed_dim=32, n_heads=4, n_layers=4, ff_dim=128, memory_length=5), 58_000),
    ],
    ids=["half_cheetah", "ant", "meta_world"],
)
def test_paper_parameter_counts(token_dim, action_dim, encoder_kwargs, published):
    policy = TrMRLPolicy(
        spaces.Box(-1, 1, (token_dim,)),
        spaces.Box(-1, 1, (action_dim,)),
        lambda _: 3e-5,
        net_arch=[64, 64],
        memory_encoder_kwargs=encoder_kwargs,
        head_input="latest",
        critic="memoryless",
        normalize_observations=False,
    )
    n_parameters = sum(parameter.numel() for parameter in policy.actor_parameters())
    assert round(n_parameters, -3) == published
    if token_dim == 28:
        assert isinstance(policy.actor_memory, TFixupTransformerEncoder)
        layers = sum(parameter.numel() for parameter in policy.actor_memory.layers.parameters())
        assert layers == 4 * (4 * (128**2 + 128) + 2 * 128 * 512 + 128 + 512) == 791_040


# -- Attention and positions -----------------------------------------------------------------------------------------


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
    th.testing.assert_close(ours(x), theirs(x, x, x, attn_mask=mask, need_weights=False)[0], atol=1e-6, rtol=1e-5)


def test_layer_at_one_position_equals_the_whole_layer():
    th.manual_seed(0)
    layer, x, position = TransformerLayer(16, 4, 32), th.randn(9, 6, 16), th.randint(0, 6, (9,))
    th.testing.assert_close(layer.forward_at(x, position), layer(x)[th.arange(9), position], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("embed_dim", [6, 7])
def test_sinusoidal_encoding_entry_by_entry(embed_dim):
    encoding = sinusoidal_encoding(5, embed_dim)
    for position in range(5):
        for channel in range(embed_dim):
            angle = position / 10_000 ** ((channel - channel % 2) / embed_dim)
            expected = math.cos(angle) if channel % 2 else math.sin(angle)
            assert encoding[position, channel].item() == pytest.approx(expected, abs=1e-6)


# -- Windows ---------------------------------------------------------------------------------------------------------


def test_memory_lengths_count_since_the_last_start():
    starts = th.tensor([[False, False, True, False], [True, True, False, False], [False, False, False, False]])
    assert memory_lengths(starts, th.tensor([3, 3, 0])).tolist() == [[4, 5, 1, 2], [1, 1, 2, 3], [1, 2, 3, 4]]


def test_window_indices_fill_from_the_left():
    indices = window_indices(th.tensor([7, 7]), th.tensor([2, 4]), 4)
    assert indices.tolist() == [[6, 7, 7, 7], [4, 5, 6, 7]]


@pytest.mark.parametrize("memory_length", [1, 2, 5, 40])
def test_step_by_step_equals_the_whole_sequence(memory_length):
    encoder = make_encoder(memory_length)
    tokens, starts = th.randn(6, 30, 3), th.rand(6, 30) < 0.15
    starts[:3, 0] = True  # some memories start with the sequence, some go on from an earlier one
    state = encoder.initial_state(6)
    for token in th.randn(3, 6, 3):
        _, state = encoder.step(token, state, th.zeros(6, dtype=th.bool))
    whole = encoder(tokens, starts, state)
    for t in range(30):
        features, state = encoder.step(tokens[:, t], state, starts[:, t])
        th.testing.assert_close(features, whole[:, t], atol=1e-5, rtol=0)


def test_step_leaves_the_given_state_as_it_was():
    encoder = make_encoder()
    _, state = encoder.step(th.randn(2, 3), encoder.initial_state(2), th.ones(2, dtype=th.bool))
    copies = [part.clone() for part in state]
    encoder.step(th.randn(2, 3), state, th.zeros(2, dtype=th.bool))
    assert all(th.equal(part, copy) for part, copy in zip(state, copies, strict=True))


def test_features_depend_on_the_window_and_on_nothing_else():
    encoder = make_encoder(memory_length=4)
    tokens, starts = th.randn(2, 12, 3), th.zeros(2, 12, dtype=th.bool)
    starts[:, 0] = starts[0, 6] = True
    before = encoder(tokens, starts)
    for time in range(12):
        changed = tokens.clone()
        changed[0, time] += 10.0
        difference = (encoder(changed, starts) - before).abs().amax(dim=-1)
        assert not difference[1].any(), "another environment changed"
        for t in range(12):
            inside = time <= t < time + 4 and not time < 6 <= t
            assert bool(difference[0, t] > 1e-6) == inside, f"token {time} at time {t}"


def test_empty_slots_do_not_matter():
    encoder = make_encoder(memory_length=5)
    windows, lengths = th.randn(5, 5, 3), th.arange(1, 6)
    changed = windows.clone()
    for row, length in enumerate(lengths):
        changed[row, length:] = 1e3
    assert th.equal(encoder.encode_windows(windows, lengths), encoder.encode_windows(changed, lengths))


def test_a_memory_that_was_emptied_is_a_fresh_one():
    encoder = make_encoder()
    state = encoder.initial_state(2)
    for _ in range(6):
        _, state = encoder.step(th.randn(2, 3), state, th.zeros(2, dtype=th.bool))
    token, starts = th.randn(2, 3), th.tensor([True, False])
    after_reset, _ = encoder.step(token, state, starts)
    fresh, _ = encoder.step(token, encoder.initial_state(2), th.ones(2, dtype=th.bool))
    assert th.equal(after_reset[0], fresh[0])
    assert not th.allclose(after_reset[1], fresh[1])


def test_state_from_context_equals_the_steps_that_led_there():
    encoder = make_encoder(memory_length=5)
    tokens, remembered = th.randn(3, 4, 3), th.tensor([0, 2, 4])
    rebuilt = encoder.state_from_context(tokens, remembered)
    next_token, no_start = th.randn(3, 3), th.zeros(3, dtype=th.bool)
    features, _ = encoder.step(next_token, rebuilt, no_start)
    for env, n_tokens in enumerate(remembered.tolist()):
        state = encoder.initial_state(1)
        for t in range(4 - n_tokens, 4):
            _, state = encoder.step(tokens[env : env + 1, t], state, no_start[:1])
        expected, _ = encoder.step(next_token[env : env + 1], state, no_start[:1])
        th.testing.assert_close(features[env : env + 1], expected, atol=1e-6, rtol=0)


def test_gradient_reaches_every_parameter():
    encoder = make_encoder()
    encoder.encode_windows(th.randn(32, 4, 3), th.full((32,), 4)).pow(2).sum().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


# -- Bad input -------------------------------------------------------------------------------------------------------


def test_unknown_encoder_gets_the_nearest_name():
    with pytest.raises(ValueError, match=r"memory_encoder.*got 'tfixupp'.*Did you mean 'tfixup'"):
        get_memory_encoder_class("tfixupp")
    with pytest.raises(ValueError, match="subclass of MemoryEncoder"):
        get_memory_encoder_class(nn.Linear)  # type: ignore[arg-type]
    assert (
        get_memory_encoder_class("tfixup") is MEMORY_ENCODERS["tfixup"] is get_memory_encoder_class(TFixupTransformerEncoder)
    )


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(embed_dim=10, n_heads=4), r"embed_dim=10 and n_heads=4"),
        (dict(n_heads=0), r"n_heads must be an integer of at least 1, got 0"),
        (dict(embed_dim=-4), r"embed_dim must be an integer of at least 1, got -4"),
        (dict(ff_dim=0), r"ff_dim must be an integer of at least 1, got 0"),
        (dict(memory_length=2.5), r"memory_length must be an integer of at least 1, got 2.5"),
        (dict(memory_length=0), r"memory_length must be an integer of at least 1, got 0"),
        (dict(n_layers=0), r"n_layers must be an integer of at least 1, got 0"),
        (dict(initialization="tfix"), r"initialization must be .* got 'tfix'"),
    ],
)
def test_bad_sizes_name_argument_value_and_rule(kwargs, message):
    with pytest.raises(ValueError, match=message):
        TFixupTransformerEncoder(3, **kwargs)

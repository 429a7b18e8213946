"""SNAIL: its blocks against brute force, step by step against whole sequences, reach of the memory."""

import math

import pytest
import torch as th
from torch.nn import functional as F

from sb3_trmrl.memory_encoders import attention
from sb3_trmrl.memory_encoders.snail import AttentionBlock, DenseBlock, SNAILEncoder, TCBlock


def make_encoder(memory_length: int = 5, **kwargs) -> SNAILEncoder:
    th.manual_seed(0)
    encoder = SNAILEncoder(3, **(dict(embed_dim=4, filters=3, key_dim=4, value_dim=5) | kwargs), memory_length=memory_length)
    with th.no_grad():
        for name, parameter in encoder.named_parameters():
            if name.endswith("bias"):
                parameter.normal_()  # zero at first, which would hide its effect
    return encoder


def steps(encoder: SNAILEncoder, tokens: th.Tensor) -> th.Tensor:
    """Features of (batch, seq_len) tokens one by one from an empty memory."""
    no_starts = th.zeros(len(tokens), dtype=th.bool)
    state, features = encoder.initial_state(len(tokens)), []
    for t in range(tokens.shape[1]):
        feature, state = encoder.step(tokens[:, t], state, no_starts)
        features.append(feature)
    return th.stack(features, dim=1)


def no_offsets(tokens: th.Tensor) -> th.Tensor:
    return th.zeros(len(tokens), dtype=th.int64)


@pytest.fixture(autouse=True)
def small_cache(monkeypatch):
    """A cache that the sequences of a test are longer than."""
    monkeypatch.setattr(attention, "INITIAL_CACHE_SLOTS", 4)


# -- Blocks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dilation", [1, 2, 8, 16])
def test_dense_block_equals_two_causal_convolutions(dilation):
    th.manual_seed(0)
    block, x = DenseBlock(4, 3, dilation), th.randn(2, 11, 4)
    with th.no_grad():
        block.bias.normal_()
    now, earlier = block.taps.weight.chunk(2)
    kernel = th.stack([earlier, now], dim=-1)  # (out, in, 2), the older first
    # (batch, channels, time), zeros in front of the first token
    padded = F.pad(x.transpose(1, 2), (dilation, 0))
    x_f, x_g = (
        F.conv1d(padded, matrix, bias, dilation=dilation)
        for matrix, bias in zip(kernel.chunk(2), block.bias.chunk(2), strict=True)
    )
    th.testing.assert_close(block(x)[0], (x_f.tanh() * x_g.sigmoid()).transpose(1, 2), atol=1e-6, rtol=0)


@pytest.mark.parametrize("memory_length", [1, 4, 9, 30])
def test_attention_block_equals_a_double_loop(memory_length):
    th.manual_seed(0)
    block, x = AttentionBlock(6, 4, 3, memory_length), th.randn(2, 20, 6)
    query, key, value = block.in_proj(x).split([4, 4, 3], dim=-1)
    output = block(x)
    assert th.equal(output[..., :6], x)
    for b in range(2):
        for i in range(20):
            seen = range(max(0, i - memory_length + 1), i + 1)
            weights = th.stack([query[b, i] @ key[b, j] / math.sqrt(4) for j in seen]).softmax(0)
            expected = sum(weight * value[b, j] for weight, j in zip(weights, seen, strict=True))
            th.testing.assert_close(output[b, i, 6:], expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("length", "n_blocks"), [(1, 0), (2, 1), (3, 2), (4, 2), (5, 3), (8, 3), (9, 4), (512, 9)])
def test_tc_block_has_a_dense_block_per_power_of_two(length, n_blocks):
    block = TCBlock(2, 3, length)
    assert len(block.blocks) == n_blocks == math.ceil(math.log2(length))
    assert block.out_dim == 2 + 3 * n_blocks
    # The last one sees the whole trial
    assert block.reach == sum(2**i for i in range(n_blocks)) >= length - 1


def test_features_keep_the_output_of_every_block():
    encoder, tokens = make_encoder(), th.randn(2, 9, 3)
    features = encoder(tokens, no_offsets(tokens))
    assert encoder.features_dim == features.shape[-1] == 4 + 3 * 3 + 5 + 3 * 3 + 5
    th.testing.assert_close(features[..., :4], encoder.embedding(tokens))
    assert SNAILEncoder(28).features_dim == 32 + 9 * 32 + 16 + 9 * 32 + 16 == 640


# -- The contract ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("memory_length", [1, 2, 5, 13, 100])
def test_step_by_step_equals_the_whole_sequence(memory_length):
    encoder, tokens = make_encoder(memory_length), th.randn(3, 60, 3)
    th.testing.assert_close(steps(encoder, tokens), encoder(tokens, no_offsets(tokens)), atol=1e-5, rtol=0)


def test_step_by_step_equals_the_whole_sequence_at_full_size():
    th.manual_seed(0)
    encoder, tokens = SNAILEncoder(28, memory_length=96), th.randn(2, 400, 28)
    with th.no_grad():
        th.testing.assert_close(steps(encoder, tokens), encoder(tokens, no_offsets(tokens)), atol=1e-5, rtol=0)


def test_features_depend_on_what_is_in_reach_and_on_nothing_else():
    encoder = make_encoder(memory_length=5).double()
    assert encoder.context_length == 2 * (1 + 2 + 4) + 2 * 4 == 22
    tokens = th.randn(2, 40, 3, dtype=th.float64, requires_grad=True)
    features = encoder(tokens, no_offsets(tokens))
    for t in (0, 5, 12, 30, 39):
        (gradient,) = th.autograd.grad(features[0, t].pow(2).sum(), tokens, retain_graph=True)
        influence = gradient.abs().amax(dim=-1)
        assert not influence[1].any(), "another environment"
        assert (influence[0] > 0).nonzero().flatten().tolist() == list(range(max(0, t - 22), t + 1))


def test_number_of_parameters():
    n_parameters = sum(parameter.numel() for parameter in SNAILEncoder(28).parameters())
    expected, width = 28 * 32 + 32, 32
    for _ in range(2):
        for _ in range(9):
            expected += 2 * (2 * width * 32 + 32)  # two convolutions of kernel size 2
            width += 32
        expected += (width + 1) * (16 + 16 + 16)
        width += 16
    assert n_parameters == expected


def test_cache_grows_up_to_the_band_and_keeps_its_type():
    encoder = make_encoder(memory_length=11).double()
    state, slots = encoder.initial_state(2), []
    for _ in range(15):
        features, state = encoder.step(th.randn(2, 3, dtype=th.float64), state, th.zeros(2, dtype=th.bool))
        slots.append(state[1].shape[2])
    assert slots == [4] * 4 + [8] * 4 + [11] * 7
    assert features.dtype == state[0].dtype == state[1].dtype == th.float64 and state[2].tolist() == [15, 15]


@pytest.mark.parametrize("name", ["embed_dim", "filters", "key_dim", "value_dim", "memory_length"])
@pytest.mark.parametrize("size", [0, 2.5, True])
def test_bad_sizes_name_argument_value_and_rule(name, size):
    with pytest.raises(ValueError, match=rf"{name} must be an integer of at least 1, got {size}"):
        SNAILEncoder(3, **{name: size})

"""GTrXL: gate and relative attention in closed form, step by step against whole sequences, reach of the memory."""

import math

import pytest
import torch as th

from sb3_trmrl.memory_encoders import attention, gtrxl
from sb3_trmrl.memory_encoders.gtrxl import GRUGate, GTrXLEncoder, GTrXLLayer, RelativeSelfAttention
from sb3_trmrl.memory_encoders.positional_encoding import sinusoidal_encoding


def make_encoder(memory_length: int = 5, n_layers: int = 2, **kwargs) -> GTrXLEncoder:
    th.manual_seed(0)
    encoder = GTrXLEncoder(3, embed_dim=16, n_heads=4, n_layers=n_layers, memory_length=memory_length, **kwargs)
    with th.no_grad():
        for layer in encoder.layers:
            assert isinstance(layer, GTrXLLayer)
            # Zero at first, which would hide their effect
            layer.attention.content_bias.normal_()
            layer.attention.position_bias.normal_()
    return encoder


def steps(encoder: GTrXLEncoder, tokens: th.Tensor) -> th.Tensor:
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
def small_sizes(monkeypatch):
    """Blocks of queries and caches that sequences of a test are longer than."""
    monkeypatch.setattr(gtrxl, "QUERY_BLOCK", 7)
    monkeypatch.setattr(attention, "INITIAL_CACHE_SLOTS", 4)


# -- Gate ------------------------------------------------------------------------------------------------------------


def test_gate_with_hand_numbers():
    gate = GRUGate(1, bias=2.0)
    with th.no_grad():
        gate.from_output.weight.copy_(th.tensor([[0.5], [1.5], [-1.0]]))  # W_r, W_z, W_g
        gate.from_input.weight.copy_(th.tensor([[-0.25], [0.75]]))  # U_r, U_z
        gate.from_reset_input.weight.copy_(th.tensor([[2.0]]))  # U_g
    x, y = 0.8, 0.6

    def sigmoid(value: float) -> float:
        return 1 / (1 + math.exp(-value))

    reset = sigmoid(0.5 * y - 0.25 * x)  # sigmoid(0.1)
    update = sigmoid(1.5 * y + 0.75 * x - 2.0)  # sigmoid(-0.5)
    candidate = math.tanh(-1.0 * y + 2.0 * reset * x)
    expected = (1 - update) * x + update * candidate
    assert expected == pytest.approx(0.5869, abs=1e-4)
    assert gate(th.tensor([[x]]), th.tensor([[y]])).item() == pytest.approx(expected, abs=1e-6)


def test_gate_starts_almost_closed():
    th.manual_seed(0)
    x, y = th.randn(100, 16), th.zeros(100, 16)
    gate = GRUGate(16, bias=2.0)
    with th.no_grad():
        gate.from_input.weight.zero_()
        gate.from_reset_input.weight.zero_()
        # z = sigmoid(-2) = 0.12, h = 0
        th.testing.assert_close(gate(x, y), x * (1 - 1 / (1 + math.exp(2.0))))
        th.testing.assert_close(GRUGate(16, bias=30.0)(x, th.randn(100, 16)), x)


def test_larger_gate_bias_is_closer_to_the_embedding():
    tokens = th.randn(4, 12, 3)
    distances = []
    for bias in (0.0, 2.0, 6.0, 30.0):
        encoder = make_encoder(gate_bias=bias)
        with th.no_grad():
            distances.append((encoder(tokens, no_offsets(tokens)) - encoder.embedding(tokens)).norm().item())
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] < 1e-5


# -- Relative attention ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("memory_length", "seq_len"), [(1, 9), (4, 5), (5, 20), (8, 8), (7, 21), (50, 20)])
def test_relative_attention_equals_a_double_loop(memory_length, seq_len):
    th.manual_seed(0)
    attention = RelativeSelfAttention(6, 2, memory_length)
    with th.no_grad():
        attention.content_bias.normal_()
        attention.position_bias.normal_()
    x = th.randn(2, seq_len, 6)
    encodings = sinusoidal_encoding(th.arange(memory_length), 6)
    ours = attention(x, *attention.project(x), encodings)

    w_q, w_r = attention.query_proj.weight, attention.position_proj.weight
    w_k, w_v = attention.key_value_proj.weight.chunk(2)
    for b in range(2):
        for i in range(seq_len):
            heads = []
            for head in (slice(0, 3), slice(3, 6)):
                u, v = attention.content_bias[head.start // 3, 0], attention.position_bias[head.start // 3, 0]
                scores, values = [], []
                for j in range(max(0, i - memory_length + 1), i + 1):
                    query, key, r = w_q[head] @ x[b, i], w_k[head] @ x[b, j], w_r[head] @ encodings[i - j]
                    scores.append(((query + u) @ key + (query + v) @ r) / math.sqrt(3))
                    values.append(w_v[head] @ x[b, j])
                heads.append(th.stack(scores).softmax(0) @ th.stack(values))
            expected = attention.out_proj.weight @ th.cat(heads)
            th.testing.assert_close(ours[b, i], expected, atol=1e-5, rtol=0)


def test_residuals_add_the_input_that_is_not_normalised():
    encoder = make_encoder(n_layers=1)
    layer = encoder.layers[0]
    assert isinstance(layer, GTrXLLayer)
    x = 3.0 + 5.0 * th.randn(2, 6, 16)
    normed = layer.attention_norm(x)
    attended = layer.attention(normed, *layer.attention.project(normed), sinusoidal_encoding(th.arange(5), 16))
    behind_attention = layer.attention_gate(x, attended.relu())
    y = layer.feed_forward_2(layer.feed_forward_1(layer.feed_forward_norm(behind_attention)).relu()).relu()
    expected = layer.feed_forward_gate(behind_attention, y)
    th.testing.assert_close(layer.encode(x, sinusoidal_encoding(th.arange(5), 16))[0], expected)


# -- The contract ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("memory_length", [1, 2, 5, 13, 100])
def test_step_by_step_equals_the_whole_sequence(memory_length):
    encoder, tokens = make_encoder(memory_length), th.randn(3, 60, 3)
    th.testing.assert_close(steps(encoder, tokens), encoder(tokens, no_offsets(tokens)), atol=1e-5, rtol=0)


def test_step_by_step_equals_the_whole_sequence_at_full_size(monkeypatch):
    monkeypatch.undo()
    th.manual_seed(0)
    encoder, tokens = GTrXLEncoder(28, memory_length=96), th.randn(2, 300, 28)
    with th.no_grad():
        th.testing.assert_close(steps(encoder, tokens), encoder(tokens, no_offsets(tokens)), atol=1e-5, rtol=0)


def test_features_depend_on_what_is_in_reach_and_on_nothing_else():
    encoder = make_encoder(memory_length=4, n_layers=3).double()
    assert encoder.context_length == 9
    tokens = th.randn(2, 25, 3, dtype=th.float64, requires_grad=True)
    features = encoder(tokens, no_offsets(tokens))
    for t in (0, 5, 12, 24):
        (gradient,) = th.autograd.grad(features[0, t].pow(2).sum(), tokens, retain_graph=True)
        influence = gradient.abs().amax(dim=-1)
        assert not influence[1].any(), "another environment"
        assert (influence[0] > 0).nonzero().flatten().tolist() == list(range(max(0, t - 9), t + 1))


@pytest.mark.parametrize("segment_length", [1, 4, 6, 100])
def test_segments_cut_gradients_and_nothing_else(segment_length):
    whole, cut = make_encoder().double(), make_encoder(segment_length=segment_length).double()
    tokens = th.randn(2, 15, 3, dtype=th.float64, requires_grad=True)
    features = cut(tokens, no_offsets(tokens))
    th.testing.assert_close(features, whole(tokens, no_offsets(tokens)))
    for t in (0, 7, 14):
        (gradient,) = th.autograd.grad(features[0, t].pow(2).sum(), tokens, retain_graph=True)
        first = max(0, t - cut.context_length, t - t % segment_length)
        assert gradient[0].abs().amax(dim=-1).nonzero().flatten().tolist() == list(range(first, t + 1))


def test_keys_of_earlier_segments_still_train_their_weights():
    # Features of the second of two tokens: the first one's key and value train the matrix that made them, cut or not
    encoder = make_encoder(n_layers=1, segment_length=1)
    layer = encoder.layers[0]
    assert isinstance(layer, GTrXLLayer)
    tokens = th.randn(1, 2, 3)
    encoder(tokens, no_offsets(tokens))[0, 1].pow(2).sum().backward()
    cut = layer.attention.key_value_proj.weight.grad
    assert cut is not None
    whole = make_encoder(n_layers=1)
    whole(tokens, no_offsets(tokens))[0, 1].pow(2).sum().backward()
    whole_layer = whole.layers[0]
    assert isinstance(whole_layer, GTrXLLayer)
    th.testing.assert_close(cut, whole_layer.attention.key_value_proj.weight.grad)
    whole_embedding, cut_embedding = whole.embedding.weight.grad, encoder.embedding.weight.grad
    assert whole_embedding is not None and cut_embedding is not None and not th.allclose(whole_embedding, cut_embedding)


def test_number_of_parameters():
    n_parameters = sum(parameter.numel() for parameter in GTrXLEncoder(28, n_layers=3).parameters())
    d, ff = 128, 512
    attention, gate = 5 * d * d + 2 * d, 6 * d * d + d
    layer = attention + 2 * gate + 2 * d * ff + ff + d + 2 * 2 * d
    assert n_parameters == 28 * d + d + 3 * layer


def test_cache_grows_up_to_the_band_and_keeps_its_type():
    encoder = make_encoder(memory_length=11).double()
    state, slots = encoder.initial_state(2), []
    for _ in range(15):
        features, state = encoder.step(th.randn(2, 3, dtype=th.float64), state, th.zeros(2, dtype=th.bool))
        slots.append(state[0].shape[4])
    assert slots == [4] * 4 + [8] * 4 + [11] * 7
    assert features.dtype == state[0].dtype == th.float64 and state[1].tolist() == [15, 15]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(embed_dim=10, n_heads=4), r"embed_dim must be divisible by n_heads, got embed_dim=10 and n_heads=4"),
        (dict(n_heads=0), r"n_heads must be an integer of at least 1, got 0"),
        (dict(embed_dim=True), r"embed_dim must be an integer of at least 1, got True"),
        (dict(ff_dim=0), r"ff_dim must be an integer of at least 1, got 0"),
        (dict(n_layers=0), r"n_layers must be an integer of at least 1, got 0"),
        (dict(memory_length=2.5), r"memory_length must be an integer of at least 1, got 2.5"),
        (dict(segment_length=0), r"segment_length must be an integer of at least 1, got 0"),
    ],
)
def test_bad_sizes_name_argument_value_and_rule(kwargs, message):
    with pytest.raises(ValueError, match=message):
        GTrXLEncoder(3, **kwargs)

"""
Memory encoders: the contract that all of them keep (step by step equals whole sequences, causality, fresh starts, contexts),
T-Fixup by matrix, positions, the key/value cache, recurrent networks against their equations.
"""

import math
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from torch import nn

from sb3_trmrl.memory_encoders import (
    MEMORY_ENCODERS,
    MemoryEncoder,
    MemoryState,
    TFixupTransformerEncoder,
    attention,
    get_memory_encoder_class,
    gtrxl,
    register_memory_encoder,
)
from sb3_trmrl.memory_encoders.attention import INITIAL_CACHE_SLOTS, TransformerLayer
from sb3_trmrl.memory_encoders.base import oldest_first, window_indices
from sb3_trmrl.memory_encoders.rnn import GRUEncoder, LSTMEncoder, RecurrentEncoder
from sb3_trmrl.trmrl_ppo import TrMRLPolicy
from tests.families import ENCODERS

PAPER_HALF_CHEETAH: dict[str, Any] = dict(
    attention="window", embed_dim=128, n_heads=16, n_layers=4, ff_dim=512, memory_length=5
)


def make_window_encoder(memory_length: int = 4, n_layers: int = 2, **kwargs) -> TFixupTransformerEncoder:
    th.manual_seed(0)
    return TFixupTransformerEncoder(
        3, attention="window", embed_dim=16, n_heads=4, n_layers=n_layers, memory_length=memory_length, **kwargs
    )


# -- The contract ----------------------------------------------------------------------------------------------------

#: Also memories that are longer than a fresh cache and a block of queries
CONTRACT = {
    **ENCODERS,
    "gtrxl-long": ("gtrxl", {**ENCODERS["gtrxl-segments"][1], "memory_length": 13}),
    "snail-long": ("snail", {**ENCODERS["snail"][1], "memory_length": 9}),
}


@pytest.fixture
def small_sizes(monkeypatch):
    """Blocks of queries and caches that sequences of a test are longer than."""
    for module, name, size in (
        (attention, "INITIAL_CACHE_SLOTS", 4),
        (attention, "QUERY_BLOCK", 7),
        (gtrxl, "QUERY_BLOCK", 7),
    ):
        monkeypatch.setattr(module, name, size)


def every_encoder(test):
    return pytest.mark.usefixtures("small_sizes")(pytest.mark.parametrize("label", CONTRACT)(test))


def make_encoder(label: str, seed: int = 0, **kwargs: Any) -> MemoryEncoder:
    """:return: The small encoder of that label for tokens of width 3, with no parameter at zero."""
    name, small = CONTRACT[label]
    th.manual_seed(seed)
    encoder = MEMORY_ENCODERS[name](3, **{**small, **kwargs})
    with th.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.3 * th.randn_like(parameter))
    return encoder


def reach_of(encoder: MemoryEncoder) -> int | None:
    """:return: How many tokens before the current one influence it; None if all do."""
    return None if isinstance(encoder, RecurrentEncoder) else encoder.context_length


@th.no_grad()
def whole(encoder: MemoryEncoder, tokens: th.Tensor) -> th.Tensor:
    """:return: Features of memories that start with the rows of ``tokens``."""
    return encoder(tokens, th.zeros(len(tokens), dtype=th.int64))


@th.no_grad()
def play(
    encoder: MemoryEncoder, tokens: th.Tensor, state: MemoryState | None = None, starts: th.Tensor | None = None
) -> tuple[th.Tensor, MemoryState]:
    """:return: Features of acting token by token, (batch, seq_len, features_dim), and the memory behind the last one."""
    state = encoder.initial_state(len(tokens)) if state is None else state
    features = []
    for t in range(tokens.shape[1]):
        memory_starts = th.zeros(len(tokens), dtype=th.bool) if starts is None else starts[:, t]
        feature, state = encoder.step(tokens[:, t], state, memory_starts)
        features.append(feature)
    return th.stack(features, dim=1), state


def filled_memory(encoder: MemoryEncoder, n_envs: int, n_steps: int = 9) -> MemoryState:
    """:return: Memories full of something else."""
    return play(encoder, 3 * th.randn(n_envs, n_steps, 3))[1]


def assert_same(actual: th.Tensor, expected: th.Tensor) -> None:
    th.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


def test_every_encoder_of_the_package_is_tested_here():
    assert {name for name, _ in ENCODERS.values()} == set(MEMORY_ENCODERS)


@every_encoder
def test_step_by_step_equals_the_whole_sequence(label):
    # Environments whose memories start at times of their own, on top of memories that hold something else
    encoder = make_encoder(label)
    n_envs, n_steps = 4, 40
    tokens, starts = th.randn(n_envs, n_steps, 3), th.zeros(n_envs, n_steps, dtype=th.bool)
    starts[:, 0] = starts[1, ::9] = starts[2, 1:3] = starts[2, 31] = starts[3, 17] = True
    stepwise, _ = play(encoder, tokens, filled_memory(encoder, n_envs), starts)
    assert stepwise.shape == (n_envs, n_steps, encoder.features_dim)
    begun = [(env, int(t)) for env in range(n_envs) for t in starts[env].nonzero()]
    for env, first in begun:
        later = starts[env, first + 1 :].nonzero().flatten()
        last = first + 1 + int(later[0]) if len(later) else n_steps
        assert_same(stepwise[env, first:last], whole(encoder, tokens[env : env + 1, first:last])[0])


@every_encoder
def test_rows_padded_on_the_right_to_equal_length(label):
    encoder = make_encoder(label)
    tokens, lengths = th.randn(5, 23, 3), [1, 4, 5, 17, 23]
    padded = tokens.clone()
    for row, length in enumerate(lengths):
        padded[row, length:] = 100.0
    features = whole(encoder, padded)
    for row, length in enumerate(lengths):
        assert_same(features[row, :length], whole(encoder, tokens[row : row + 1, :length])[0])


@every_encoder
def test_a_token_changes_what_follows_within_reach_and_nothing_else(label):
    encoder = make_encoder(label)
    reach = reach_of(encoder)
    n_steps = 30
    tokens = th.randn(2, n_steps, 3)
    before = whole(encoder, tokens)
    for time in (0, 3, 11, n_steps - 1):
        changed = tokens.clone()
        changed[0, time] += 5.0
        difference = (whole(encoder, changed) - before).abs().amax(dim=-1)
        assert not difference[1].any(), "another environment changed"
        assert not difference[0, :time].any(), "the past changed"
        last = n_steps - 1 if reach is None else min(time + reach, n_steps - 1)
        # Recurrent networks forget bit by bit
        surely = min(last, time + 4) if reach is None else last
        assert (difference[0, time : surely + 1] > 1e-6).all(), "a token was not seen"
        assert not difference[0, last + 1 :].any(), "a token was seen from out of reach"


@every_encoder
def test_a_memory_that_was_emptied_is_a_fresh_one(label):
    encoder = make_encoder(label)
    tokens = th.randn(3, 12, 3)
    starts = th.zeros(3, 12, dtype=th.bool)
    starts[0, 0] = starts[1, 0] = True
    # What was in memory before, and how long it was, does not matter
    features = [play(encoder, tokens, filled_memory(encoder, 3, n_steps), starts)[0] for n_steps in (2, 70)]
    fresh, _ = play(encoder, tokens)
    for after_reset in features:
        assert_same(after_reset[:2], fresh[:2])
    if encoder.context_length > 0:
        assert (features[0][2, 0] - fresh[2, 0]).abs().max() > 1e-3, "without memory_starts it must go on"


@every_encoder
def test_environments_at_different_times_do_not_see_each_other(label):
    encoder = make_encoder(label)
    tokens, starts = th.randn(4, 25, 3), th.zeros(4, 25, dtype=th.bool)
    starts[:, 0] = starts[1, 3] = starts[1, 20] = starts[2, 7] = starts[3, 24] = True
    together, _ = play(encoder, tokens, filled_memory(encoder, 4), starts)
    for env in range(4):
        alone, _ = play(encoder, tokens[env : env + 1], None, starts[env : env + 1])
        assert_same(together[env : env + 1], alone)


@every_encoder
def test_the_state_is_all_there_is_and_its_first_axis_is_the_environment(label):
    encoder = make_encoder(label)
    n_steps = 8
    tokens = th.randn(3, 2 * n_steps, 3)
    features, _ = play(encoder, tokens)
    _, state = play(encoder, tokens[:, :n_steps])
    assert all(len(part) == 3 for part in (*state, *encoder.initial_state(3)))
    # As predict hands it out and takes it back, and as values behind a time limit are made: some slots, in any order
    slots = [2, 0]
    kept = tuple(th.as_tensor(np.array(part.numpy())) for part in state)
    resumed, _ = play(encoder, tokens[slots, n_steps:], tuple(part[slots] for part in kept))
    assert_same(resumed, features[slots, n_steps:])
    # A selection is a copy: using it up leaves the whole as it was
    assert all(th.equal(part, copy) for part, copy in zip(kept, state, strict=True))


@every_encoder
@pytest.mark.parametrize("longest", [1, 5, 30])
def test_state_from_context_equals_the_steps_that_led_there(label, longest):
    # Memories of many lengths, also longer than the context; a buffer hands out no more rows than some memory holds
    encoder = make_encoder(label)
    if reach_of(encoder) is None:
        encoder.context_length = min(encoder.context_length, 12)
    context = encoder.context_length
    lengths = th.tensor([0, min(1, longest), min(4, longest), min(context, longest), longest, context + longest])
    n_before, n_more = int(lengths.max()), 20
    tokens = th.randn(len(lengths), n_before + n_more, 3)
    expected = []
    for env, length in enumerate(lengths.tolist()):
        # What is out of reach of the context is forgotten: that matters to recurrent networks alone
        held = min(length, context) if reach_of(encoder) is None else length
        expected.append(play(encoder, tokens[env : env + 1, n_before - held :])[0][0, held:])
    with th.no_grad():
        rows = min(n_before, context)
        state = encoder.state_from_context(tokens[:, n_before - rows : n_before], lengths)
    features, _ = play(encoder, tokens[:, n_before:], state)
    assert_same(features, th.stack(expected))


@every_encoder
def test_a_slice_with_its_context_has_the_features_of_the_trial(label):
    # As a rollout that starts in mid-trial is trained on
    encoder = make_encoder(label)
    if reach_of(encoder) is None:
        encoder.context_length = 1000  # it has no bound
    tokens = th.randn(3, 30, 3)
    features = whole(encoder, tokens)
    for first in (1, 2, 9, 25):
        context = min(first, encoder.context_length)
        with th.no_grad():
            part = encoder(tokens[:, first - context :], th.full((3,), first - context))
        assert_same(part[:, context:], features[:, first:])


@every_encoder
def test_gradient_reaches_every_parameter_and_stays_finite(label):
    encoder = make_encoder(label)
    encoder(th.randn(3, 11, 3), th.zeros(3, dtype=th.int64)).pow(2).sum().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.abs().sum() > 0, name


@every_encoder
def test_no_memory_is_part_of_the_weights(label):
    encoder = make_encoder(label)
    play(encoder, th.randn(2, 9, 3))
    assert set(encoder.state_dict()) == {name for name, _ in encoder.named_parameters()}


@every_encoder
def test_a_copy_with_the_same_weights_is_the_same_function(label):
    encoder, other = make_encoder(label), make_encoder(label, seed=1)
    tokens = th.randn(2, 9, 3)
    assert not th.allclose(whole(encoder, tokens), whole(other, tokens))
    other.load_state_dict(encoder.state_dict())
    assert th.equal(whole(encoder, tokens), whole(other, tokens))


class Lazy(MemoryEncoder):
    """The mean of all tokens; leaves ``state_from_context`` to the base class."""

    def __init__(self, token_dim: int):
        super().__init__(token_dim, features_dim=token_dim, context_length=6)

    def initial_state(self, n_envs: int) -> MemoryState:
        return self._anchor.new_zeros(n_envs, self.token_dim), self._anchor.new_zeros(n_envs)

    def step(self, tokens: th.Tensor, state: MemoryState, memory_starts: th.Tensor) -> tuple[th.Tensor, MemoryState]:
        total, count = (part.masked_fill(memory_starts.view(-1, *[1] * (part.dim() - 1)), 0.0) for part in state)
        total, count = total + tokens, count + 1
        return total / count.unsqueeze(1), (total, count)

    def forward(self, tokens: th.Tensor, offsets: th.Tensor) -> th.Tensor:
        return tokens.cumsum(dim=1) / th.arange(1, tokens.shape[1] + 1).view(1, -1, 1)


def test_the_base_class_rebuilds_memories_step_by_step():
    encoder, tokens, lengths = Lazy(3), th.randn(4, 6, 3), th.tensor([0, 1, 4, 9])
    total, count = encoder.state_from_context(tokens, lengths)
    assert count.tolist() == [0, 1, 4, 6]
    for env, length in enumerate((0, 1, 4, 6)):
        th.testing.assert_close(total[env], tokens[env, 6 - length :].sum(dim=0))
    assert not any(part.any() for part in encoder.state_from_context(tokens, th.zeros(4, dtype=th.int64)))


# -- Names -----------------------------------------------------------------------------------------------------------


def test_registering_an_encoder(monkeypatch):
    monkeypatch.setattr("sb3_trmrl.memory_encoders.MEMORY_ENCODERS", MEMORY_ENCODERS := {"gru": GRUEncoder})
    register_memory_encoder("mean", Lazy)
    assert get_memory_encoder_class("mean") is Lazy
    register_memory_encoder("mean", Lazy)  # once more, as when a script is run again
    with pytest.raises(ValueError, match="name 'gru' is taken by GRUEncoder"):
        register_memory_encoder("gru", Lazy)
    for none in (nn.Linear, Lazy(3), "gru"):
        with pytest.raises(ValueError, match="memory_encoder must be a subclass of MemoryEncoder, got "):
            register_memory_encoder("none", none)  # type: ignore[arg-type]
    assert MEMORY_ENCODERS == {"gru": GRUEncoder, "mean": Lazy}


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


def test_a_word_is_no_flag():
    with pytest.raises(ValueError, match="scale_embedding must be True or False, got 'False'"):
        make_window_encoder(scale_embedding="False")


def test_scale_embedding_multiplies_by_sqrt_of_the_width():
    plain, scaled = make_window_encoder(), make_window_encoder(scale_embedding=True)
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


# -- Positions -------------------------------------------------------------------------------------------------------


def test_rotary_features_know_the_order_but_not_the_time():
    encoder = make_encoder("trial-rotary-none", memory_length=50)
    tokens, offsets = th.randn(2, 10, 3), th.tensor([0, 3000])
    with th.no_grad():
        th.testing.assert_close(encoder(tokens, offsets), encoder(tokens, 0 * offsets), atol=1e-4, rtol=0)
        swapped = encoder(tokens[:, [1, 0, *range(2, 10)]], 0 * offsets)
    assert (swapped[:, -1] - whole(encoder, tokens)[:, -1]).abs().max() > 1e-3


@pytest.mark.parametrize("positions", ["sinusoidal", "learned"])
def test_absolute_positions_know_the_time(positions):
    encoder = make_encoder(f"trial-{positions}-none")
    tokens = th.randn(1, 3, 3).repeat(3, 1, 1)
    with th.no_grad():
        features = encoder(tokens, th.tensor([0, 1, 3]))
    assert (features[0] - features[1]).abs().max() > 1e-3
    # Learned vectors are used again after memory_length (3) tokens
    assert th.allclose(features[0], features[2]) == (positions == "learned")


# -- The cache -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("positions", ["rotary", "sinusoidal", "learned"])
def test_the_cache_grows_by_doubling_then_goes_round(positions):
    assert INITIAL_CACHE_SLOTS == 64
    encoder = make_encoder(f"trial-{positions}-none", memory_length=150)
    tokens, starts = th.randn(3, 400, 3), th.zeros(3, 400, dtype=th.bool)
    starts[1, ::90] = True  # grows with the others, never goes round
    starts[2, 200] = True  # gone round, then a fresh start
    state, features, n_slots = encoder.initial_state(3), [], []
    with th.no_grad():
        for t in range(400):
            feature, state = encoder.step(tokens[:, t], state, starts[:, t])
            features.append(feature)
            n_slots.append(state[0].shape[4])
    assert n_slots == [64] * 64 + [128] * 64 + [150] * 272
    stepwise = th.stack(features, dim=1)
    assert_same(stepwise[0], whole(encoder, tokens[:1])[0])
    for first in range(0, 400, 90):
        assert_same(stepwise[1, first : first + 90], whole(encoder, tokens[1:2, first : first + 90])[0])
    assert_same(stepwise[2, 200:], whole(encoder, tokens[2:, 200:])[0])


@pytest.mark.parametrize(("longest", "n_slots"), [(0, 64), (64, 64), (65, 128), (149, 150), (999, 150)])
def test_a_rebuilt_cache_has_the_slots_that_it_needs(longest, n_slots):
    encoder = make_encoder("trial-rotary-none", memory_length=150)
    context = min(longest, encoder.context_length)
    with th.no_grad():
        cache, lengths = encoder.state_from_context(th.randn(2, context, 3), th.tensor([longest, 0]))
    assert cache.shape[4] == n_slots and lengths.tolist() == [longest, 0]


def test_n_layers_reach_back_n_layers_times():
    encoders = [make_encoder("trial-rotary-none", n_layers=n_layers) for n_layers in (1, 2, 3)]
    assert [encoder.context_length for encoder in encoders] == [2, 4, 6]  # memory_length 3


# -- Windows ---------------------------------------------------------------------------------------------------------


def test_window_indices_fill_from_the_left():
    indices = window_indices(th.tensor([7, 7]), th.tensor([2, 4]), 4)
    assert indices.tolist() == [[6, 7, 7, 7], [4, 5, 6, 7]]


def test_oldest_first_moves_what_is_remembered_to_the_left():
    tokens = th.arange(8.0).view(2, 4, 1)
    assert oldest_first(tokens, th.tensor([1, 3]))[:, :, 0].tolist() == [[3, 3, 3], [5, 6, 7]]


@pytest.mark.parametrize("memory_length", [1, 2, 5, 40])
def test_windows_of_any_length(memory_length):
    encoder = make_window_encoder(memory_length)
    assert encoder.context_length == memory_length - 1
    tokens = th.randn(3, 30, 3)
    features = whole(encoder, tokens)
    assert_same(play(encoder, tokens)[0], features)
    for t in (0, 7, 29):  # each window on its own, with positions by slot
        window = tokens[:, max(0, t - memory_length + 1) : t + 1]
        assert_same(features[:, t], whole(encoder, window)[:, -1])


def test_empty_slots_do_not_matter():
    encoder = make_window_encoder(memory_length=5)
    windows, lengths = th.randn(5, 5, 3), th.arange(1, 6)
    changed = windows.clone()
    for row, length in enumerate(lengths):
        changed[row, length:] = 1e3
    assert th.equal(encoder.encode_windows(windows, lengths), encoder.encode_windows(changed, lengths))


def test_the_trial_in_one_window_is_the_trial():
    # As long as the trial fits, the two ways of attention are one
    window = make_window_encoder(memory_length=12, positions="sinusoidal")
    trial = TFixupTransformerEncoder(3, embed_dim=16, n_heads=4, memory_length=12, positions="sinusoidal")
    trial.load_state_dict(window.state_dict())
    tokens = th.randn(3, 12, 3)
    assert_same(whole(window, tokens), whole(trial, tokens))
    assert (window.training_unit, trial.training_unit) == ("window", "sequence")


# -- Recurrent networks ----------------------------------------------------------------------------------------------


def gates_of(encoder: RecurrentEncoder, layer: int, n_gates: int) -> list[tuple[th.Tensor, ...]]:
    """:return: For each gate the matrices of input and hidden state, and their biases."""
    names = [f"{kind}_{source}_l{layer}" for kind in ("weight", "bias") for source in ("ih", "hh")]
    return list(zip(*(getattr(encoder.network, name).chunk(n_gates) for name in names), strict=True))


def embedded(encoder: RecurrentEncoder, token: th.Tensor) -> th.Tensor:
    for layer in encoder.embedding:
        token = th.tanh(token) if isinstance(layer, nn.Tanh) else layer.weight @ token + layer.bias  # type: ignore[operator]
    return token


@pytest.mark.parametrize("label", ["gru", "gru-embedding-truncated"])
def test_gru_against_its_equations(label):
    encoder = make_encoder(label)
    assert isinstance(encoder, GRUEncoder)
    tokens = th.randn(1, 10, 3)
    hidden, features = [th.zeros(8) for _ in range(encoder.n_layers)], []
    with th.no_grad():
        for token in tokens[0]:
            x = embedded(encoder, token)
            for layer in range(encoder.n_layers):
                reset, update, new = gates_of(encoder, layer, 3)
                h = hidden[layer]
                r, z = (th.sigmoid(w @ x + b + u @ h + c) for w, u, b, c in (reset, update))
                w, u, b, c = new
                hidden[layer] = (1 - z) * th.tanh(w @ x + b + r * (u @ h + c)) + z * h
                x = hidden[layer]
            features.append(x)
    assert_same(whole(encoder, tokens)[0], th.stack(features))


@pytest.mark.parametrize("label", ["lstm", "lstm-embedding-truncated"])
def test_lstm_against_its_equations(label):
    encoder = make_encoder(label)
    assert isinstance(encoder, LSTMEncoder)
    tokens = th.randn(1, 10, 3)
    hidden, cell = ([th.zeros(8) for _ in range(encoder.n_layers)] for _ in range(2))
    features = []
    with th.no_grad():
        for token in tokens[0]:
            x = embedded(encoder, token)
            for layer in range(encoder.n_layers):
                i, f, g, o = (w @ x + b + u @ hidden[layer] + c for w, u, b, c in gates_of(encoder, layer, 4))
                cell[layer] = th.sigmoid(f) * cell[layer] + th.sigmoid(i) * th.tanh(g)
                hidden[layer] = x = th.sigmoid(o) * th.tanh(cell[layer])
            features.append(x)
    assert_same(whole(encoder, tokens)[0], th.stack(features))


@pytest.mark.parametrize("name", ["gru", "lstm"])
def test_truncation_cuts_gradients_and_nothing_else(name):
    encoders = [make_encoder(name, truncation=truncation) for truncation in (None, 4, 100)]
    tokens = th.randn(2, 11, 3, requires_grad=True)
    gradients, features = [], []
    for encoder in encoders:
        features.append(encoder(tokens, th.zeros(2, dtype=th.int64)))
        # Of each step's features by each token: (11, 11), summed over environments and channels
        rows = [th.autograd.grad(features[-1][:, t].sum(), tokens, retain_graph=True)[0].abs().sum((0, 2)) for t in range(11)]
        gradients.append(th.stack(rows))
    for other in features[1:]:
        assert_same(other, features[0])
    time = th.arange(11)
    causal = time.unsqueeze(1) >= time
    assert th.equal(gradients[0] > 0, causal)
    assert th.equal(gradients[1] > 0, causal & (time.unsqueeze(1) // 4 == time // 4))
    th.testing.assert_close(gradients[2], gradients[0])


@pytest.mark.parametrize("name", ["gru", "lstm"])
def test_recurrent_matrices_start_orthogonal_gate_by_gate(name):
    th.manual_seed(0)
    encoder_class: Any = MEMORY_ENCODERS[name]
    encoder = encoder_class(6, hidden_size=6, n_layers=2)
    assert isinstance(encoder, RecurrentEncoder)
    n_gates = 3 if name == "gru" else 4
    for layer in range(2):
        for w, u, b, c in gates_of(encoder, layer, n_gates):
            for matrix in (w, u):
                th.testing.assert_close(matrix @ matrix.T, th.eye(6), atol=1e-5, rtol=0)
            assert not b.any() and not c.any()


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
        (dict(attention="full"), r"attention must be .* got 'full'"),
        (dict(positions="relative"), r"positions must be .* got 'relative'"),
        (dict(normalization="post"), r"normalization must be .* got 'post'"),
        (dict(attention="window", positions="rotary"), r"positions='rotary' needs attention='trial'"),
        (dict(embed_dim=12, n_heads=4), r"must be even, got embed_dim=12 and n_heads=4"),
        (dict(embed_dim=10, n_heads=3), r"embed_dim must be divisible by n_heads, got embed_dim=10 and n_heads=3"),
    ],
)
def test_bad_sizes_name_argument_value_and_rule(kwargs, message):
    with pytest.raises(ValueError, match=message):
        TFixupTransformerEncoder(3, **kwargs)


@pytest.mark.parametrize("name", ["gru", "lstm"])
@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(hidden_size=0), r"hidden_size must be an integer of at least 1, got 0"),
        (dict(n_layers=1.5), r"n_layers must be an integer of at least 1, got 1.5"),
        (dict(truncation=0), r"truncation must be an integer of at least 1, got 0"),
        (dict(embedding=[8, 0]), r"embedding\[1\] must be an integer of at least 1, got 0"),
        (dict(context_length=-1), r"context_length must be an integer of at least 0, got -1"),
    ],
)
def test_bad_sizes_of_recurrent_networks(name, kwargs, message):
    with pytest.raises(ValueError, match=message):
        MEMORY_ENCODERS[name](3, **kwargs)

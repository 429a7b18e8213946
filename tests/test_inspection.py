"""Attention and embeddings are those of the acting forward: against the outputs used, against another computation."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3 import PPO
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from sb3_trmrl import TrMRLPPO, evaluate_adaptation
from sb3_trmrl.common.env_util import make_meta_vec_env
from sb3_trmrl.common.policies import MemoryActorCriticPolicy
from sb3_trmrl.inspection import (
    Inspection,
    attention_summary,
    attention_weights,
    inspect_trials,
    project,
    record,
)
from sb3_trmrl.memory_encoders import TFixupTransformerEncoder
from sb3_trmrl.memory_encoders import attention as attention_module
from tests.families import ENCODERS

WITH_ATTENTION = [label for label, (name, _) in ENCODERS.items() if name in ("tfixup", "gtrxl", "snail")]
WITHOUT = [label for label in ENCODERS if label not in WITH_ATTENTION]
HORIZON, N_TASKS, N_EPISODES = 5, 3, 2
N_STEPS = HORIZON * N_EPISODES


def make_model(label: str, memory_reset: str = "trial", **kwargs: Any) -> TrMRLPPO:
    encoder, encoder_kwargs = ENCODERS[label]
    model = TrMRLPPO(
        "TrMRLPolicy",
        "PointRobot-v0",
        seed=0,
        device="cpu",
        policy_kwargs=dict(
            memory_encoder=encoder, memory_encoder_kwargs={**encoder_kwargs, **kwargs}, memory_reset=memory_reset
        ),
    )
    generator = th.Generator().manual_seed(0)
    with th.no_grad():  # as it is initialised, attention is nearly even
        for parameter in model.policy.actor_memory.parameters():
            parameter.add_(0.2 * th.randn(parameter.shape, generator=generator))
    return model


def inspect(model: TrMRLPPO, **kwargs: Any) -> Inspection:
    return inspect_trials(
        model, "PointRobot-v0", N_TASKS, N_EPISODES, env_kwargs=dict(horizon=HORIZON), n_attention=N_TASKS, **kwargs
    )


class OutputsUsed(TorchFunctionMode):
    """Compares what attention returned with the recorded weights times the values."""

    def __init__(self) -> None:
        super().__init__()
        self.n_calls = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if func is F.scaled_dot_product_attention:
            query, key, value = args
            weights = attention_weights(query, key, **(kwargs or {}))
            th.testing.assert_close(weights @ value, output, atol=1e-5, rtol=1e-5)
            self.n_calls += 1
        return output


@pytest.mark.parametrize("label", WITH_ATTENTION)
def test_weights_times_values_are_the_output_used(label):
    with OutputsUsed() as used:
        inspect(make_model(label))
    assert used.n_calls == N_STEPS * 2  # two layers each


@pytest.mark.parametrize("memory_reset", ["trial", "episode"])
@pytest.mark.parametrize("label", WITH_ATTENTION)
def test_rows_sum_to_one_and_nothing_attends_to_the_future_or_beyond_the_memory(label, memory_reset):
    model = make_model(label, memory_reset)
    attention = inspect(model).attention
    n_heads = 1 if label == "snail" else 2
    assert attention.shape == (2, N_TASKS, n_heads, N_STEPS, N_STEPS)
    np.testing.assert_allclose(attention.sum(axis=-1), 1.0, atol=1e-5)
    age = np.arange(N_STEPS)[:, None] - np.arange(N_STEPS)
    visible = (age >= 0) & (age < model.policy.actor_memory.memory_length)  # type: ignore[operator]
    if memory_reset == "episode":
        visible &= (np.arange(N_STEPS)[:, None] // HORIZON) == (np.arange(N_STEPS) // HORIZON)
    assert (attention[..., ~visible] == 0).all() and (attention[..., visible] > 0).all()
    # Heads and tasks differ: nothing was recorded twice
    if visible.sum() > N_STEPS:
        assert np.abs(attention[:, 0] - attention[:, 1]).max() > 1e-3
        assert n_heads == 1 or np.abs(attention[:, :, 0] - attention[:, :, 1]).max() > 1e-3


@pytest.mark.parametrize("label", [label for label in WITH_ATTENTION if label.startswith("trial")])
def test_acting_attends_as_one_pass_over_the_whole_trial(label):
    # Another computation: all tokens at once, no cache, the mask written down
    model = make_model(label)
    policy = model.policy
    tokens: list[np.ndarray] = []

    class Recorder:
        def predict(
            self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
        ) -> tuple[np.ndarray, Any]:
            tokens.append(observation.copy())
            return model.predict(observation, state, episode_start, deterministic)

    recorded = inspect(model)
    evaluate_adaptation(Recorder(), "PointRobot-v0", N_TASKS, N_EPISODES, env_kwargs=dict(horizon=HORIZON))
    encoder = policy.actor_memory
    assert isinstance(encoder, TFixupTransformerEncoder)
    with th.no_grad():
        sequence = policy._token_sequences(th.as_tensor(np.stack(tokens, axis=1)))
        positions = th.arange(N_STEPS).expand(N_TASKS, -1)
        x, rotation = encoder._embed(sequence, positions), encoder._rotation(positions)
        age = th.arange(N_STEPS).unsqueeze(1) - th.arange(N_STEPS)
        mask = (age >= 0) & (age < encoder.memory_length)
        for index, layer in enumerate(encoder._transformer_layers()):
            query, key, _ = layer.attention._project(layer.attention_norm(x), rotation)
            expected = attention_weights(query, key, mask)
            np.testing.assert_allclose(recorded.attention[index], expected, atol=1e-5)
            x = layer(x, encoder.memory_length, rotation)
        np.testing.assert_allclose(recorded.embeddings, encoder.final_norm(x), atol=1e-4)


@pytest.mark.parametrize("label", ["window", "window-learned-pre"])
def test_windows_attend_as_each_window_by_itself(label):
    model = make_model(label)
    recorded = inspect(model)
    encoder = model.policy.actor_memory
    assert isinstance(encoder, TFixupTransformerEncoder)
    seen: list[tuple[th.Tensor, th.Tensor]] = []
    original = encoder.encode_windows

    def encode_windows(windows: th.Tensor, lengths: th.Tensor) -> th.Tensor:
        seen.append((windows.clone(), lengths.clone()))
        return original(windows, lengths)

    encoder.encode_windows = encode_windows  # type: ignore[method-assign]
    evaluate_adaptation(model, "PointRobot-v0", N_TASKS, N_EPISODES, env_kwargs=dict(horizon=HORIZON))
    with th.no_grad():
        for t, (windows, lengths) in enumerate(seen):
            x = encoder._embed(windows, th.arange(4))
            for index, layer in enumerate(encoder._transformer_layers()):
                query, key, _ = layer.attention._project(layer.attention_norm(x), None)
                weights = attention_weights(query, key, is_causal=True)
                for task in range(N_TASKS):
                    n = int(lengths[task])
                    row = recorded.attention[index, task, :, t]
                    np.testing.assert_allclose(row[:, t - n + 1 : t + 1], weights[task, :, n - 1, :n], atol=1e-5)
                x = layer(x)


@pytest.mark.parametrize("memory_length", [65, 200])
def test_windows_longer_than_a_block_of_queries(memory_length, monkeypatch):
    # The same in one block: a window of as many slots, whose attention is not cut
    model = make_model("window", memory_length=memory_length)
    cut = inspect(model).attention
    monkeypatch.setattr(attention_module, "QUERY_BLOCK", 256)
    whole = inspect(model).attention
    assert cut.shape == (2, N_TASKS, 2, N_STEPS, N_STEPS)
    np.testing.assert_allclose(cut.sum(axis=-1), 1.0, atol=1e-5)
    np.testing.assert_allclose(cut, whole, atol=1e-6)


def test_weights_by_hand():
    query, key = th.tensor([[1.0, 0.0]]), th.tensor([[0.0, 0.0], [2.0**0.5 * float(np.log(3.0)), 5.0]])
    # Scores 0 and log 3
    th.testing.assert_close(attention_weights(query, key), th.tensor([[0.25, 0.75]]))
    th.testing.assert_close(attention_weights(query, key, th.tensor([[True, False]])), th.tensor([[1.0, 0.0]]))
    th.testing.assert_close(
        attention_weights(query, key, th.tensor([[np.log(3.0), 0.0]], dtype=th.float32)), th.tensor([[0.5] * 2])
    )
    th.testing.assert_close(attention_weights(query, key, scale=0.0), th.tensor([[0.5, 0.5]]))


@pytest.mark.parametrize("label", [*WITHOUT, "window", "trial-rotary-none", "gtrxl", "snail"])
def test_recording_changes_no_action_and_leaves_nothing_behind(label):
    model = make_model(label)
    kwargs: dict[str, Any] = dict(n_tasks=N_TASKS, n_episodes=N_EPISODES, env_kwargs=dict(horizon=HORIZON))
    before = evaluate_adaptation(model, "PointRobot-v0", **kwargs)
    inspection = inspect(model)
    np.testing.assert_array_equal(inspection.result.returns, before.returns)
    assert "step" not in vars(model.policy.actor_memory)
    with pytest.raises(RuntimeError), record(model):
        raise RuntimeError
    assert "step" not in vars(model.policy.actor_memory)
    if label in WITHOUT:
        assert inspection.attention.shape[0] == 0 and attention_summary(inspection) == []


def test_embeddings_are_the_features_that_act():
    model = make_model("gru")
    inspection = inspect(model)
    policy = model.policy
    env = gym.make("PointRobot-v0", episodes_per_trial=N_EPISODES, horizon=HORIZON, split="test")
    slot_seed = int(np.random.SeedSequence(0).generate_state(1)[0] % 2**31)
    token, _ = env.reset(seed=slot_seed + 1, options={"task": inspection.result.tasks[1]})
    state = policy.actor_memory.initial_state(1)
    for t in range(N_STEPS):
        with th.no_grad():
            tokens = policy._tokens(th.as_tensor(token[None]))
            features, state = policy.actor_memory.step(tokens, state, th.tensor([t == 0]))
            action = policy._get_action_dist_from_latent(policy._latent_pi(features, tokens)).mode()
        np.testing.assert_allclose(inspection.embeddings[1, t], features[0], atol=1e-5)
        token, *_ = env.step(action[0].numpy())


def test_trials_of_unequal_length_end_in_nan():
    from sb3_trmrl.envs.trial import TrialWrapper
    from tests.families import Counter

    def trials(render_mode: str | None = None, **kwargs: Any) -> TrialWrapper:
        return TrialWrapper(Counter(horizon=4), **kwargs)

    model = TrMRLPPO(
        "TrMRLPolicy", trials(), device="cpu", policy_kwargs=dict(memory_encoder_kwargs=ENCODERS["trial-long"][1])
    )
    tasks = [{"reward": 1.0, "length": 2.0}, {"reward": 1.0, "length": 4.0}]
    inspection = inspect_trials(model, trials, n_episodes=2, tasks=tasks, n_attention=2)
    assert inspection.embeddings.shape == (2, 8, 8)
    np.testing.assert_array_equal(np.isnan(inspection.embeddings).any(axis=-1).sum(axis=1), [4, 0])
    np.testing.assert_array_equal([starts.tolist() for starts in inspection.episode_starts], [[0, 2], [0, 4]])
    assert np.isnan(inspection.attention[:, 0, :, 4:]).all() and np.isfinite(inspection.attention[:, 0, :, :4, :4]).all()
    assert np.isfinite(inspection.attention[:, 1]).all()
    # Shares of a head add up
    for row in attention_summary(inspection):
        assert row["current_episode"] + row["earlier_episodes"] == pytest.approx(1.0, abs=1e-5)
        assert 1.0 <= row["effective_steps"] <= 8.0


def test_summary_by_hand():
    result = evaluate_adaptation(lambda tokens: np.zeros((len(tokens), 2)), "PointRobot-v0", 1, 2, env_kwargs=dict(horizon=2))
    weights = np.array([[1.0, 0, 0, 0], [0.5, 0.5, 0, 0], [0.25, 0.25, 0.5, 0], [0.25, 0.25, 0.25, 0.25]])
    (row,) = attention_summary(Inspection(result, np.zeros((1, 4, 2)), weights[None, None, None]))
    assert (row["layer"], row["head"]) == (1, 1)
    # Steps 3 and 4 are the last episode
    assert row["current_step"] == 0.375 and row["current_episode"] == 0.5 and row["earlier_episodes"] == 0.5
    assert row["effective_steps"] == pytest.approx((2**1.5 + 4.0) / 2)


def test_projection_finds_the_plane():
    rng = np.random.default_rng(0)
    plane = rng.normal(size=(50, 4, 2)) * [3.0, 1.0]
    turned, _ = np.linalg.qr(rng.normal(size=(5, 5)))
    embeddings = 7.0 + plane @ turned[:2]
    embeddings[0, 0] = np.nan
    coordinates, shares = project(embeddings)
    assert coordinates.shape == (50, 4, 2) and np.isnan(coordinates[0, 0]).all()
    assert shares.sum() == pytest.approx(1.0) and shares[0] > shares[1]
    # Distances are kept
    expected = np.linalg.norm(plane[1:, 0] - plane[1:, 1], axis=-1)
    np.testing.assert_allclose(np.linalg.norm(coordinates[1:, 0] - coordinates[1:, 1], axis=-1), expected)
    with pytest.raises(ValueError, match="two vectors"):
        project(np.full((3, 4), np.nan))


def test_saved_and_loaded(tmp_path):
    inspection = inspect(make_model("trial-rotary-none"))
    inspection.save(tmp_path / "inspection.npz")
    loaded = Inspection.load(tmp_path / "inspection.npz")
    np.testing.assert_array_equal(loaded.attention, inspection.attention)
    np.testing.assert_array_equal(loaded.embeddings, inspection.embeddings)
    assert loaded.result.tasks == inspection.result.tasks
    with pytest.raises(ValueError, match=r"must end in \.npz"):
        inspection.save(tmp_path / "inspection.json")
    inspection.result.save(tmp_path / "result.npz")
    with pytest.raises(ValueError, match=r"result\.npz is no saved Inspection"):
        Inspection.load(tmp_path / "result.npz")


def test_attention_that_is_not_recorded_is_not_kept():
    model = make_model(WITH_ATTENTION[0])
    tokens = np.zeros((50, *model.observation_space.shape), dtype=np.float32)  # type: ignore[misc]
    with record(model, n_attention=2) as recording:
        model.predict(tokens)
    for layer in recording.attention[0]:
        for part in layer:
            assert len(part) == 2 and (part.base is None or part.base.nbytes == part.nbytes)


@pytest.mark.parametrize("label", WITH_ATTENTION)
def test_state_none_starts_a_memory_as_episode_start_does(label):
    model = make_model(label)
    tokens = np.random.default_rng(0).normal(size=(7, 2, *model.observation_space.shape)).astype(np.float32)  # type: ignore[misc]
    recordings = []
    for tell_starts in (True, False):
        with record(model) as recording:
            for trial in (tokens[:4], tokens[4:]):
                state = None
                for t, token in enumerate(trial):
                    _, state = model.predict(token, state, np.full(2, t == 0) if tell_starts else None)
        recordings.append(recording)
    for told, untold in zip(*(recording.attention for recording in recordings), strict=True):
        assert len(told) > 0
        for (weights, ages), (weights_untold, ages_untold) in zip(told, untold, strict=True):
            np.testing.assert_array_equal(ages, ages_untold)
            np.testing.assert_array_equal(weights, weights_untold)
    # The second trial has seen three tokens
    if label != "trial-one":
        assert recordings[1].attention[-1][0][1].max() == 2


def test_a_memory_that_does_not_count_its_tokens_has_no_layers():
    model = make_model("gru")
    original = model.policy.actor_memory.step

    def step(tokens: th.Tensor, state: Any, memory_starts: th.Tensor) -> Any:
        query = tokens.unsqueeze(1)
        F.scaled_dot_product_attention(query, query, query)
        return original(tokens, state, memory_starts)

    model.policy.actor_memory.step = step  # type: ignore[method-assign]
    with record(model) as recording:
        model.predict(np.zeros((2, *model.observation_space.shape), dtype=np.float32))  # type: ignore[misc]
    assert recording.attention == [[]] and len(recording.embeddings) == 1


def test_made_environments_need_a_slot_for_each_task():
    model = make_model("trial-rotary-none")
    env = make_meta_vec_env("PointRobot-v0", 2, env_kwargs=dict(split="test", episodes_per_trial=2))
    assert inspect_trials(model, env, n_tasks=2).embeddings.shape[0] == 2
    with pytest.raises(ValueError, match="env_id has 2 slots for 3 tasks: give the environment's id"):
        inspect_trials(model, env, n_tasks=3)


def test_models_without_memory():
    with pytest.raises(ValueError, match=r"model must have a memory.*got PPO"):
        inspect_trials(PPO("MlpPolicy", "PointRobot-v0", device="cpu"), "PointRobot-v0")


def test_policy_instead_of_model():
    model = make_model("trial-rotary-none")
    assert isinstance(model.policy, MemoryActorCriticPolicy)
    np.testing.assert_array_equal(inspect(model.policy).attention, inspect(model).attention)  # type: ignore[arg-type]

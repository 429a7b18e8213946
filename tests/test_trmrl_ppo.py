"""TrMRLPPO: advantages at trial ends, windows in predict, seeds, logging, the paper's update, bad input."""

import copy
import warnings
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback, StopTrainingOnMaxEpisodes
from stable_baselines3.common.torch_layers import FlattenExtractor, NatureCNN
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecNormalize

from sb3_trmrl import TrMRLPolicy, TrMRLPPO
from sb3_trmrl.common.buffers import WorkingMemoryRolloutBuffer
from sb3_trmrl.envs.trial import TrialWrapper
from tests.families import Counter, ForeverOne, NoisyForever, counter_vec_env
from tests.test_memory_algorithms import CheckRatio

SMALL = dict(embed_dim=16, n_heads=4, n_layers=2, ff_dim=32, memory_length=5)


def make_model(env, n_steps: int = 13, batch_size: int = 8, memory=None, **kwargs) -> Any:
    policy_kwargs = dict(net_arch=[16], memory_encoder_kwargs={**SMALL, **(memory or {})})
    policy_kwargs.update(kwargs.pop("policy_kwargs", {}))
    return TrMRLPPO(
        "TrMRLPolicy",
        env,
        n_steps=n_steps,
        batch_size=batch_size,
        n_epochs=2,
        learning_rate=3e-3,
        seed=0,
        device="cpu",
        policy_kwargs=policy_kwargs,
        **kwargs,
    )


@pytest.mark.parametrize("critic", ["shared", "separate", "memoryless"])
@pytest.mark.parametrize("head_input", ["latest", "mixed"])
@pytest.mark.parametrize("normalize_observations", [True, False])
@pytest.mark.parametrize("attention", ["window", "trial"])
def test_values_of_training_are_those_of_acting(critic, head_input, normalize_observations, attention):
    options = dict(critic=critic, head_input=head_input, normalize_observations=normalize_observations)
    env = counter_vec_env(2, episodes_per_trial=3, noise=1.0)
    model = make_model(env, memory=dict(attention=attention), policy_kwargs=options)

    class CheckValues(BaseCallback):
        compared = 0

        def _on_step(self) -> bool:
            return True

        def _on_rollout_end(self) -> None:
            for batch in model.rollout_buffer.get():
                with th.no_grad():
                    values, _, _ = model.policy.evaluate_actions(batch.observations, batch.actions)
                    alone = model.policy.evaluate_values(batch.observations)
                th.testing.assert_close(values, alone)
                th.testing.assert_close(values.flatten(), batch.old_values, atol=1e-5, rtol=1e-4)
                self.compared += len(values)

    check = CheckValues()
    model.learn(4 * 26, callback=check)
    assert check.compared == 4 * 26


def test_the_clip_of_values_starts_where_they_are():
    # The unit of value changes between rollout and update; a clip around old values in the new one has no gradient at all
    model = make_model(counter_vec_env(2, episodes_per_trial=3, noise=1.0), clip_range_vf=0.01)
    check = CheckRatio()
    model.learn(4 * 26, callback=check)
    assert check.worst_value < 1e-5 and check.n_steps == 4 * 26


def test_weights_that_a_callback_changes_before_the_rollout_are_those_of_its_memory():
    # Moving averages, population-based training, a return to the best weights
    class Shake(CheckRatio):
        def _on_rollout_start(self) -> None:
            with th.no_grad():
                for parameter in model.policy.parameters():
                    parameter.add_(0.05 * th.randn_like(parameter))

    model = make_model(counter_vec_env(2, episodes_per_trial=3, noise=1.0))
    check = Shake()
    model.learn(4 * 26, callback=check)
    assert check.worst < 1e-5 and check.reached_back > 0


def test_an_environment_that_is_refused_does_not_stay():
    env = counter_vec_env(2, episodes_per_trial=3)
    model = make_model(env)
    with pytest.raises(ValueError, match="VecNormalize"):
        model.set_env(VecNormalize(counter_vec_env(2, episodes_per_trial=3)))
    assert model.env is env


def test_images_in_dict_observations():
    env = counter_vec_env(2, episodes_per_trial=2, image=True)
    model = make_model(
        env, n_steps=6, memory=dict(memory_length=3), policy_kwargs=dict(features_extractor_kwargs=dict(cnn_output_dim=8))
    )
    check = CheckRatio()
    model.learn(36, callback=check)
    assert check.worst < 1e-5 and check.reached_back > 0
    normalized = set(model.policy.normalizer.moments)
    assert normalized == {"count", "prev_reward"}
    action, state = model.predict(env.reset(), deterministic=True)
    assert action.shape == (2, 2) and all(len(part) == 2 for part in state)


@pytest.mark.parametrize("use_sde", [False, True])
def test_plain_environments_get_a_transformer_memory(use_sde):
    model = make_model(gym.make("Pendulum-v1"), use_sde=use_sde)
    check = CheckRatio()
    model.learn(5 * 13, callback=check)
    assert check.worst < 1e-5 and check.reached_back > 0


def test_training_uses_the_statistics_of_acting():
    # One epoch of one minibatch: if anything had changed since the rollout, the ratio would not be exactly 1 in train()
    env = counter_vec_env(2, episodes_per_trial=3, noise=1.0)
    model = TrMRLPPO("TrMRLPolicy", env, n_steps=13, batch_size=26, n_epochs=1, seed=0, device="cpu")
    for _ in range(4):
        model.learn(26, reset_num_timesteps=False)
        assert abs(model.logger.name_to_value["train/approx_kl"]) < 1e-6
        assert model.logger.name_to_value["train/clip_fraction"] == 0.0
    # Each step was taken into the statistics once, the context of a rollout not again
    state = model.policy.state_dict()
    assert int(state["normalizer.moments.token.count"]) == 4 * 26
    assert not np.allclose(state["normalizer.shift_token"][:2], 0.0)


def test_heads_see_the_current_token_when_mixed():
    for head_input, n_inputs in (("latest", 16), ("mixed", 16 + 6)):
        model = make_model(counter_vec_env(1), policy_kwargs=dict(head_input=head_input))
        assert model.policy.mlp_extractor.policy_net.layers[0].in_features == n_inputs
    policy = model.policy
    with th.no_grad():
        for layer in policy.actor_memory.layers:  # the encoder's output no longer depends on the token
            layer.attention.out_proj.weight.zero_()
            layer.feed_forward_2.weight.zero_()
        policy.actor_memory.embedding.weight.zero_()
    actions = [model.predict(np.full((1, 6), value, np.float32), deterministic=True)[0] for value in (0.0, 1.0)]
    assert not np.array_equal(*actions)


@pytest.mark.parametrize("ortho_init", [True, False])
def test_initial_weights_of_the_heads(ortho_init):
    model = make_model(counter_vec_env(1), policy_kwargs=dict(net_arch=[64], ortho_init=ortho_init, output_scale=0.5))
    action, value, hidden = model.policy.action_net, model.policy.value_net, model.policy.mlp_extractor.policy_net.layers[0]
    if ortho_init:
        for layer, gain in ((action, 0.5), (value, 1.0), (hidden, np.sqrt(2))):
            singular_values = th.linalg.svdvals(layer.weight.detach())
            th.testing.assert_close(singular_values, th.full_like(singular_values, gain), atol=1e-4, rtol=0)
    else:
        for layer, gain in ((action, 0.5), (value, 1.0), (hidden, 1.0)):
            bound = gain * np.sqrt(6 / sum(layer.weight.shape))
            assert 0.9 * bound < layer.weight.abs().max().item() <= bound
    assert not any(layer.bias.any() for layer in (action, value, hidden))


def test_image_observations_get_a_cnn():
    policy = TrMRLPolicy(spaces.Box(0, 255, (3, 36, 36), np.uint8), spaces.Discrete(2), lambda _: 1e-3)
    assert isinstance(policy.features_extractor, NatureCNN)


# -- Advantages ------------------------------------------------------------------------------------------------------


def constant_value_(model: TrMRLPPO, value: float) -> None:
    with th.no_grad():
        model.policy.value_net.weight.zero_()
        model.policy.value_net.bias.fill_(value)


def collect(model: TrMRLPPO, callback: BaseCallback | None = None) -> None:
    _, callback = model._setup_learn(10**6, callback)
    assert model.env is not None
    assert model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)


@pytest.mark.parametrize("bootstrap_episode_end", [True, False])
@pytest.mark.parametrize("bootstrap_trial_end", [True, False])
@pytest.mark.parametrize("ends", ["terminated", "truncated"])
def test_advantages_by_hand_across_episodes_and_at_trial_ends(ends, bootstrap_trial_end, bootstrap_episode_end):
    # Trials of 2 episodes of 3 steps, reward 1, every value is 10; episodes end really (length 3) or by the horizon
    task = {"reward": 1.0, "length": 3.0 if ends == "terminated" else 99.0}
    env = counter_vec_env(1, tasks=[task], horizon=3)
    gamma, lam, value = 0.9, 0.8, 10.0
    model = make_model(
        env,
        n_steps=8,
        batch_size=3,
        gamma=gamma,
        gae_lambda=lam,
        bootstrap_trial_end=bootstrap_trial_end,
        bootstrap_episode_end=bootstrap_episode_end,
        policy_kwargs=dict(normalize_observations=False),
    )
    constant_value_(model, value)
    collect(model)
    # Steps 0-5 are the first trial: the inner boundary after step 2 is an ordinary transition, unless its episode really ended
    # and that is to be an end for the return, too. Step 5 ends the trial.
    end_value = value if ends == "truncated" and bootstrap_trial_end else 0.0
    inner = 0 if ends == "terminated" and not bootstrap_episode_end else 1
    deltas = [
        1 + gamma * following - value for following in [value, value, inner * value, value, value, end_value, value, value]
    ]
    continues = [1, 1, inner, 1, 1, 0, 1, 0]
    expected, advantage = [], 0.0
    for delta, go_on in zip(reversed(deltas), reversed(continues), strict=True):
        advantage = delta + gamma * lam * go_on * advantage
        expected.append(advantage)
    np.testing.assert_allclose(model.rollout_buffer.advantages[:, 0], expected[::-1], rtol=1e-5)
    np.testing.assert_allclose(model.rollout_buffer.returns[:, 0], np.array(expected[::-1]) + value, rtol=1e-5)


@pytest.mark.parametrize("bootstrap_episode_end", [True, False])
def test_advantages_by_hand_where_an_episode_ends_with_the_rollout(bootstrap_episode_end):
    env = counter_vec_env(1, tasks=[{"reward": 1.0, "length": 3.0}], horizon=3)
    settings: dict[str, Any] = dict(gamma=0.9, gae_lambda=0.0, bootstrap_episode_end=bootstrap_episode_end)
    model = make_model(env, n_steps=3, batch_size=3, policy_kwargs=dict(normalize_observations=False), **settings)
    constant_value_(model, 10.0)
    collect(model)
    expected = [1 + 0.9 * 10 - 10, 1 + 0.9 * 10 - 10, (1 + 0.9 * 10 if bootstrap_episode_end else 1) - 10]
    np.testing.assert_allclose(model.rollout_buffer.advantages[:, 0], expected, rtol=1e-5)


def test_values_are_predicted_in_the_root_mean_square_of_all_targets():
    # Whole trials of 6 steps that pay 10, lambda = 1 and nothing behind: what the targets are is known, whatever is predicted
    env = counter_vec_env(1, tasks=[{"reward": 10.0, "length": 99.0}], horizon=3)
    model = make_model(env, n_steps=6, batch_size=6, gamma=0.5, gae_lambda=1.0, bootstrap_trial_end=False)
    targets = np.array([10 * (2 - 0.5 ** (5 - step)) for step in range(6)])
    found = []

    class Look(BaseCallback):
        def _on_step(self) -> bool:
            return True

        def _on_rollout_end(self) -> None:
            found.append(model.policy.value_scale)
            np.testing.assert_allclose(model.rollout_buffer.returns[:, 0] * model.policy.value_scale, targets, rtol=1e-4)

    model.learn(18, callback=Look())
    np.testing.assert_allclose(found, 3 * [np.sqrt(np.mean(targets**2))], rtol=1e-5)


def test_terminal_token_that_starts_an_episode_enters_an_empty_memory():
    # The time limit cuts between two episodes of a trial: the terminal token is the first of an episode
    def make() -> "gym.Env[Any, Any]":
        trials = TrialWrapper(Counter(noise=1.0), 3, tasks=[{"reward": 1.0, "length": 3.0}])
        return gym.wrappers.TimeLimit(trials, 6)

    options = dict(memory_reset="episode", normalize_observations=False)
    model = make_model(DummyVecEnv([make]), n_steps=6, batch_size=6, policy_kwargs=options)
    with th.no_grad():
        model.policy.value_net.weight.normal_()
    ended: list[np.ndarray] = []

    class Look(BaseCallback):
        def _on_step(self) -> bool:
            ended.extend(info["terminal_observation"] for info in self.locals["infos"] if "terminal_observation" in info)
            return True

    with pytest.warns(UserWarning, match=r"outside of the trials ended one.*`horizon`; max_episode_steps"):
        collect(model, Look())
    (token,) = ended
    assert token[-1] == 1.0, "prev_done"
    token[2:] = 0.0  # nothing has been done yet in this episode
    with th.no_grad():
        starts, state = th.ones(1, dtype=th.bool), model.policy.initial_state(1)
        value = model.policy.predict_values(th.as_tensor(token[None]), state, starts).item()
    assert abs(value) > 1e-3
    assert model.rollout_buffer.rewards[-1, 0] == pytest.approx(1.0 + model.gamma * value, rel=1e-5)


def limited(n_steps: int) -> gym.Env[Any, Any]:
    return gym.wrappers.TimeLimit(NoisyForever(), n_steps)


def test_terminal_value_of_a_time_limit_continues_the_memory_of_its_episode():
    env = DummyVecEnv([partial(limited, n_steps) for n_steps in (99, 6, 6)])
    model = make_model(env, n_steps=6, batch_size=5, policy_kwargs=dict(normalize_observations=False))
    with th.no_grad():
        model.policy.value_net.weight.normal_()
    seen: list[np.ndarray] = []

    class Record(BaseCallback):
        def _on_step(self) -> bool:
            if not seen:
                assert isinstance(model._last_obs, np.ndarray)
                seen.append(model._last_obs.copy())
            infos = self.locals["infos"]
            ended = [info.get("terminal_observation", obs) for info, obs in zip(infos, self.locals["new_obs"], strict=True)]
            seen.append(np.stack(ended))
            return True

    collect(model, Record())
    # The whole episode again, token by token, with the terminal token as the last one
    state = model.policy.initial_state(3)
    with th.no_grad():
        for t, tokens in enumerate(seen):
            starts = th.full((3,), t == 0)
            values = model.policy.predict_values(th.as_tensor(tokens), state, starts)
            _, _, _, state = model.policy(th.as_tensor(tokens), state, starts)
    assert len(seen) == 7 and values.abs().min() > 1e-3
    values[0] = 0.0  # the first slot goes on
    np.testing.assert_allclose(model.rollout_buffer.rewards[-1], 1.0 + model.gamma * values.numpy().flatten(), rtol=1e-5)


def counter_trials(horizon: int) -> TrialWrapper:
    return TrialWrapper(Counter(horizon, noise=1.0), 2, tasks=[{"reward": 1.0, "length": 99.0}])


def test_the_value_goes_on_behind_a_trial_as_it_was_at_its_last_step():
    env = DummyVecEnv([partial(counter_trials, horizon) for horizon in (9, 3, 3)])
    model = make_model(env, n_steps=6, batch_size=5, policy_kwargs=dict(normalize_observations=False))
    with th.no_grad():
        model.policy.value_net.weight.normal_()
    collect(model)
    buffer = model.rollout_buffer
    np.testing.assert_array_equal(buffer.rewards[:5], 1.0)
    np.testing.assert_allclose(buffer.rewards[5], 1.0 + model.gamma * buffer.values[5] * [0, 1, 1], rtol=1e-6)


def test_constant_reward_is_worth_the_geometric_series():
    model = TrMRLPPO(
        "TrMRLPolicy",
        DummyVecEnv([lambda: gym.wrappers.TimeLimit(ForeverOne(), 8) for _ in range(8)]),
        n_steps=32,
        batch_size=128,
        gamma=0.9,
        learning_rate=3e-3,
        seed=0,
        device="cpu",
        policy_kwargs=dict(memory_encoder_kwargs=SMALL),
    )
    model.learn(6_000)
    obs, starts = th.zeros(1, 1), th.ones(1, dtype=th.bool)
    with th.no_grad():
        value = model.policy.predict_values(obs, model.policy.initial_state(1), starts).item() * model.policy.value_scale
    # sum_t gamma^t = 1 / (1 - 0.9), although every episode is cut after 8 steps
    assert value == pytest.approx(10.0, rel=0.05)


# -- Acting ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("sde_sample_freq", "draws"), [(-1, [0]), (4, [0, 0, 4, 8])])
def test_when_the_noise_of_gsde_is_drawn(sde_sample_freq, draws, monkeypatch):
    model = make_model(gym.make("Pendulum-v1"), n_steps=12, use_sde=True, sde_sample_freq=sde_sample_freq)
    drawn = []
    monkeypatch.setattr(model.policy, "reset_noise", lambda n_envs: drawn.append(model.num_timesteps))
    for n_rollouts in (1, 2):
        collect(model)
        assert drawn == n_rollouts * draws


@pytest.mark.parametrize("squash_output", [False, True])
def test_actions_beyond_the_bounds(squash_output):
    # Pendulum's are 2, the mean is 5
    options = dict(log_std_init=-9.0, squash_output=squash_output)
    model = make_model(gym.make("Pendulum-v1"), use_sde=squash_output, policy_kwargs=options)
    with th.no_grad():
        model.policy.action_net.weight.zero_()
        model.policy.action_net.bias.fill_(5.0)
    collect(model)
    np.testing.assert_allclose(model.rollout_buffer.actions, np.tanh(5.0) if squash_output else 5.0, rtol=1e-3)
    np.testing.assert_allclose(model.env.actions, 2.0, rtol=1e-3)
    np.testing.assert_allclose(model.predict(np.zeros(3, np.float32))[0], 2.0, rtol=1e-3)


class NotesMode(FlattenExtractor):
    """Notes whether it is in training mode when it is used, as dropout would."""

    def __init__(self, observation_space: spaces.Space):
        super().__init__(observation_space)
        self.modes: list[bool] = []

    def forward(self, observations: th.Tensor) -> th.Tensor:
        self.modes.append(self.training)
        return super().forward(observations)


@pytest.mark.parametrize("two_phase_update", [None, dict(value_learning_rate=1e-3)])
def test_training_mode_is_for_the_update_alone(two_phase_update):
    options = dict(features_extractor_class=NotesMode)
    model = make_model(counter_vec_env(2), two_phase_update=two_phase_update, policy_kwargs=options)
    modes = model.policy.features_extractor.modes
    act = partial(model.predict, np.zeros((2, 6), np.float32))
    for call, training in ((partial(collect, model), False), (model.train, True), (act, False), (model.train, True)):
        modes.clear()
        call()
        assert set(modes) == {training}
    collect(model)
    assert not modes[-1]


# -- predict ---------------------------------------------------------------------------------------------------------


def test_predict_encodes_the_window_of_each_environment():
    env = counter_vec_env(3, episodes_per_trial=2, noise=1.0)
    model = make_model(env, memory=dict(attention="window"), policy_kwargs=dict(memory_reset="episode"))
    model.learn(5 * 13 * 3)
    obs, starts, state = env.reset(), np.ones(3, dtype=bool), None
    assert isinstance(obs, np.ndarray)
    memories: list[list[np.ndarray]] = [[] for _ in range(3)]
    n_inner_starts = 0
    for _ in range(25):  # several trials, each environment at a time of its own
        actions, state = model.predict(obs, state, starts, deterministic=True)
        for slot in range(3):
            token = obs[slot].copy()
            if starts[slot] or token[-1] == 1.0:  # prev_done: a later episode starts, and forgets what happened before
                n_inner_starts += int(not starts[slot])
                memories[slot], token[2:] = [], 0.0
            memories[slot] = [*memories[slot], token][-5:]
            length = len(memories[slot])
            window = np.zeros((1, 5, 6), dtype=np.float32)
            window[0, :length] = memories[slot]
            with th.no_grad():
                tokens = model.policy._token_sequences(th.as_tensor(window))
                features = model.policy.actor_memory.encode_windows(tokens, th.tensor([length]))
                latent = model.policy.mlp_extractor.policy_net.layers(th.cat([features, tokens[:, length - 1]], dim=1))
                expected = model.policy.action_net(latent)
            np.testing.assert_allclose(actions[slot], np.clip(expected.numpy()[0], -1, 1), atol=1e-6)
        obs, _, starts, _ = env.step(actions)
        assert isinstance(obs, np.ndarray)
    assert n_inner_starts > 3


def test_infos_of_other_environments_end_no_episode():
    infos: list[dict[str, Any]] = [{}, {"inner_episode": 3}, {"inner_episode": {}}, {"inner_episode": {"terminated": True}}]
    assert TrMRLPPO._real_ends(infos).tolist() == [False, False, False, True]


@pytest.mark.parametrize("image", [False, True])
def test_memory_reset_episode_forgets_at_inner_episodes(image):
    # Trials of 2 episodes of 3 steps: the memory is emptied every 3 steps, previous action, reward and done with it
    env = counter_vec_env(1, tasks=[{"reward": 1.0, "length": 3.0}], image=image)
    features = dict(features_extractor_kwargs=dict(cnn_output_dim=8)) if image else {}
    model = make_model(env, n_steps=9, policy_kwargs=dict(memory_reset="episode", **features))
    collect(model)
    buffer = model.rollout_buffer
    first = buffer.context_length
    assert buffer.memory_lengths[first:, 0].tolist() == [1, 2, 3] * 3
    if image:
        rewards, dones, actions = (buffer.tokens[key][first:, 0] for key in ("prev_reward", "prev_done", "prev_action"))
    else:
        rewards, dones, actions = (buffer.tokens["token"][first:, 0, part] for part in (4, 5, slice(2, 4)))
    assert rewards.flatten().tolist() == [0, 1, 1] * 3
    assert not dones.any()
    assert (actions == 0).all(axis=-1).tolist() == [True, False, False] * 3


def test_a_token_whose_parts_are_hidden_cannot_be_forgotten_by_episodes():
    def hidden() -> gym.Env:
        trials = TrialWrapper(Counter(), 2)
        return gym.wrappers.TransformObservation(trials, lambda token: token, spaces.Box(-np.inf, np.inf, (6,)))

    with pytest.raises(ValueError, match=r"memory_reset='episode' needs the token's prev_done.*use memory_reset='trial'"):
        TrMRLPPO("TrMRLPolicy", DummyVecEnv([hidden]), policy_kwargs=dict(memory_reset="episode"))
    with pytest.warns(UserWarning, match="previous action, reward and done like observations"):
        TrMRLPPO("TrMRLPolicy", DummyVecEnv([hidden]))


def test_one_environment_in_a_batch_acts_as_it_does_alone():
    model = make_model(counter_vec_env(2, noise=1.0))
    model.learn(26)
    rng = np.random.default_rng(0)
    observations = rng.normal(size=(8, 3, 6)).astype(np.float32)
    batch_state, alone_state = None, None
    for observation in observations:
        batch_actions, batch_state = model.predict(observation, batch_state, deterministic=True)
        action, alone_state = model.predict(observation[1], alone_state, deterministic=True)
        assert action.shape == (2,)
        np.testing.assert_allclose(batch_actions[1], action, atol=1e-6)


def test_deterministic_is_not_overwritten_by_a_stochastic_call():
    model = make_model(counter_vec_env(1))
    obs = np.ones((1, 6), dtype=np.float32)
    first, _ = model.predict(obs, deterministic=True)
    sampled = [model.predict(obs, deterministic=False)[0] for _ in range(5)]
    second, _ = model.predict(obs, deterministic=True)
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(sampled[0], sampled[1])


# -- Seeds, saving, continuing ---------------------------------------------------------------------------------------


def weights(model: TrMRLPPO) -> dict[str, th.Tensor]:
    return {name: tensor.clone() for name, tensor in model.policy.state_dict().items()}


def test_same_seed_same_weights_bit_for_bit():
    runs = []
    for seed in (0, 0, 1):
        model = make_model(counter_vec_env(2, noise=1.0))
        model.set_random_seed(seed)
        model.learn(4 * 26)
        runs.append(weights(model))
    assert all(th.equal(runs[0][name], runs[1][name]) for name in runs[0])
    assert not all(th.equal(runs[0][name], runs[2][name]) for name in runs[0])


@pytest.mark.parametrize("two_phase", [False, True])
def test_save_and_load_with_another_number_of_environments(tmp_path, two_phase):
    options: dict[str, Any] = dict(two_phase_update=dict(value_learning_rate=1e-3)) if two_phase else {}
    model = make_model(counter_vec_env(3, noise=1.0), **options)
    model.learn(4 * 39)
    model.save(tmp_path / "model.zip")
    loaded = TrMRLPPO.load(tmp_path / "model.zip", env=counter_vec_env(2, noise=1.0), device="cpu")
    assert all(th.equal(tensor, loaded.policy.state_dict()[name]) for name, tensor in weights(model).items())
    observations = np.random.default_rng(0).normal(size=(10, 3, 6)).astype(np.float32)
    state, loaded_state = None, None
    for observation in observations:
        actions, state = model.predict(observation, state, deterministic=True)
        loaded_actions, loaded_state = loaded.predict(observation, loaded_state, deterministic=True)
        np.testing.assert_array_equal(actions, loaded_actions)
    if two_phase:
        saved, restored = model.value_optimizer.state_dict(), loaded.value_optimizer.state_dict()
        assert saved["state"].keys() == restored["state"].keys()
        assert th.equal(saved["state"][0]["exp_avg"], restored["state"][0]["exp_avg"])
    before = loaded.num_timesteps
    check = CheckRatio()
    loaded.learn(52, callback=check, reset_num_timesteps=False)
    assert loaded.num_timesteps == before + 52
    assert check.worst < 1e-5


def test_a_policy_that_is_saved_alone_keeps_its_options(tmp_path):
    options: dict[str, Any] = dict(
        memory_encoder="gru",
        memory_encoder_kwargs=dict(hidden_size=8),
        memory_reset="episode",
        head="hypernetwork",
        head_input="latest",
        critic="separate",
        output_scale=0.5,
        normalize_observations=False,
        value_log_std_init=0.3,
    )
    env = counter_vec_env(2)
    policy = TrMRLPolicy(env.observation_space, env.action_space, lambda _: 1e-3, **options)
    policy.save(tmp_path / "policy.pth")
    loaded = TrMRLPolicy.load(tmp_path / "policy.pth", device="cpu")
    found = loaded._get_constructor_parameters()
    assert {name: found[name] for name in options} == options
    obs = np.ones((2, 6), dtype=np.float32)
    actions = [one.predict(obs, deterministic=True)[0] for one in (policy, loaded)]
    np.testing.assert_array_equal(actions[0], actions[1])


def test_a_new_training_starts_to_count_anew():
    model = make_model(counter_vec_env(1, tasks=[{"reward": 1.0, "length": 3.0}]))  # trials of 6 steps, rollouts of 13
    for reset, n_iterations, n_trials in ((True, 1, 2), (False, 2, 4), (True, 1, 2)):
        model.learn(13, reset_num_timesteps=reset)
        assert model.n_iterations == n_iterations and len(model.trial_info_buffer) == n_trials


def test_continue_in_mid_trial_keeps_the_memory():
    model = make_model(counter_vec_env(2, episodes_per_trial=50, noise=1.0))
    model.learn(26)
    check = CheckRatio()
    model.learn(26, callback=check, reset_num_timesteps=False)
    assert check.worst < 1e-5
    assert check.reached_back == 2


def test_a_callback_that_stops_at_a_trials_end_leaks_nothing_into_the_next():
    model = make_model(counter_vec_env(1, tasks=[{"reward": 1.0, "length": 3.0}]))  # trials of 6 steps
    model.learn(100, callback=StopTrainingOnMaxEpisodes(max_episodes=1))
    assert model.num_timesteps == 6 and model.rollout_buffer.pos == 6
    check = CheckRatio()
    model.learn(13, callback=check, reset_num_timesteps=False)
    lengths = model.rollout_buffer.memory_lengths[model.rollout_buffer.context_length :, 0]
    assert lengths.tolist() == [1, 2, 3, 4, 5, 6, 1, 2, 3, 4, 5, 6, 1]
    assert model.rollout_buffer.episode_starts[:, 0].tolist() == [1, 0, 0, 0, 0, 0] * 2 + [1]
    assert check.worst < 1e-5


def test_set_env_starts_afresh():
    model = make_model(counter_vec_env(2, noise=1.0))
    model.learn(26)
    model.set_env(counter_vec_env(2, noise=2.0))
    check = CheckRatio()
    model.learn(26, callback=check, reset_num_timesteps=False)
    assert check.worst < 1e-5 and check.reached_back == 0


# -- Logging ---------------------------------------------------------------------------------------------------------


def test_logged_keys_and_their_numbers():
    tasks = [{"reward": 2.0, "length": 3.0}]
    model = make_model(DummyVecEnv([lambda: gym.wrappers.TimeLimit(TrialWrapper(Counter(), 2, tasks=tasks), 100)]))
    _, callback = model._setup_learn(10**6)
    model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)
    recorded: dict[str, float] = {}
    model.logger.dump = lambda step: recorded.update(model.logger.name_to_value)
    model.dump_logs(1)
    assert recorded["meta/return_episode_1"] == recorded["meta/return_episode_2"] == 6.0
    assert recorded["meta/adaptation_gain"] == 0.0
    assert "meta/return_episode_3" not in recorded
    assert recorded["time/total_timesteps"] == 13


def test_trials_of_different_lengths_are_logged_by_episode():
    task = [{"reward": 1.0, "length": 2.0}]
    model = make_model(counter_vec_env(1, episodes_per_trial=2, tasks=task))
    model.learn(13)
    model.set_env(counter_vec_env(1, episodes_per_trial=3, tasks=task))
    model.learn(13, reset_num_timesteps=False)
    values = model.logger.name_to_value
    model.logger.dump = lambda step=0: None
    model.dump_logs()
    assert [values[f"meta/return_episode_{i}"] for i in (1, 2, 3)] == [2.0, 2.0, 2.0]
    assert values["meta/adaptation_gain"] == 0.0


# -- Bad input -------------------------------------------------------------------------------------------------------


def test_wrong_pairs_of_policy_and_algorithm():
    with pytest.raises(ValueError, match=r"TrMRLPPO needs a policy with a memory, got policy='MlpPolicy'.*TrMRLPolicy"):
        TrMRLPPO("MlpPolicy", "CartPole-v1")
    with pytest.raises(ValueError, match="TrMRLPPO needs a policy with a memory, got policy='ActorCriticPolicy'"):
        TrMRLPPO(PPO.policy_aliases["MlpPolicy"], "CartPole-v1")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"called without its state.*TrMRLPPO"):
        PPO(TrMRLPolicy, "CartPole-v1", n_steps=8, batch_size=8, device="cpu").learn(8)


@pytest.mark.parametrize(
    ("policy_kwargs", "message"),
    [
        (dict(memory_encoder="transformer"), "memory_encoder must be one of .* got 'transformer'"),
        (dict(memory_encoder_kwargs=dict(embed_dim=10, n_heads=4)), "embed_dim=10 and n_heads=4"),
        (dict(memory_encoder_kwargs=dict(memory_length=0)), "memory_length must be an integer of at least 1, got 0"),
        (dict(memory_reset="never"), "memory_reset must be one of .* got 'never'"),
        (dict(head_input="full"), "head_input must be one of .* got 'full'"),
        (dict(head="hyper"), "head must be one of .* got 'hyper'"),
        (dict(head="hypernetwork", net_arch=[]), "head='hypernetwork' generates hidden layers, and net_arch has none"),
        (dict(head="hypernetwork", net_arch=dict(pi=[8])), "net_arch has none, of actor or critic"),
        (dict(memory_encoder="gtrxl", memory_encoder_kwargs=dict(gate_bias=float("nan"))), "gate_bias must be .* nan"),
        (dict(net_arch=[64, 0]), r"net_arch\[1\] must be an integer of at least 1, got 0"),
        (dict(critic="none"), "critic must be one of .* got 'none'"),
        (dict(net_arch=dict(actor=[64])), "net_arch .* 'pi' and 'vf'"),
        (dict(value_log_std_init=0.0), "value_log_std_init.*two_phase_update"),
    ],
)
def test_bad_policy_options(policy_kwargs, message):
    with pytest.raises(ValueError, match=message):
        TrMRLPPO("TrMRLPolicy", "CartPole-v1", policy_kwargs=policy_kwargs)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(two_phase_update=dict(value_learning_rate=0.0)), "value_learning_rate must be positive, got 0.0"),
        (dict(two_phase_update=dict(value_learning_rate=1e-3), clip_range_vf=0.2), "clip_range_vf=0.2 has no effect"),
        (
            dict(two_phase_update=dict(value_learning_rate=1e-3, value_decay=dict(start=5, end=5, factor=0.1))),
            "start=5, end=5",
        ),
        (
            dict(two_phase_update=dict(value_learning_rate=1e-3, value_decay=dict(start=0, end=5, factor=0.0))),
            "factor .* must be positive, got 0.0",
        ),
        (dict(clip_range_vf=-1.0), "clip_range_vf must be positive, got -1.0"),
        (dict(clip_range=0.0), "clip_range must be a positive number, got 0.0"),
        (dict(max_grad_norm=float("nan")), "max_grad_norm must be a positive number, got nan: pass float"),
        (dict(target_kl=-0.1), "target_kl must be a positive number, got -0.1: pass None"),
        (dict(stats_window_size=0), "stats_window_size must be an integer of at least 1, got 0"),
        (dict(rollout_buffer_class=RolloutBuffer), "must be a subclass of TrialSliceRolloutBuffer.* got RolloutBuffer"),
        (
            dict(rollout_buffer_class=WorkingMemoryRolloutBuffer),
            "must be a subclass of TrialSliceRolloutBuffer, .*TFixupTransformerEncoder .*got WorkingMemoryRolloutBuffer",
        ),
    ],
)
def test_bad_algorithm_options(kwargs, message):
    with pytest.raises(ValueError, match=message):
        TrMRLPPO("TrMRLPolicy", "CartPole-v1", **kwargs)


def test_vec_normalize_would_distort_the_token():
    with pytest.raises(ValueError, match=r"VecNormalize\(norm_obs=True\).*normalize_observations=True"):
        make_or_set = VecNormalize(counter_vec_env(1))
        TrMRLPPO("TrMRLPolicy", make_or_set, n_steps=8, batch_size=8)
    model = make_model(VecNormalize(counter_vec_env(1), norm_obs=False))
    model.learn(13)
    with pytest.raises(ValueError, match="VecNormalize"):
        model.set_env(VecNormalize(counter_vec_env(1)))
    # A plain environment has no token to distort
    TrMRLPPO("TrMRLPolicy", VecNormalize(DummyVecEnv([lambda: gym.make("Pendulum-v1")])), n_steps=8, batch_size=8)


def test_vec_normalize_makes_fractions_of_integers():
    class Dice(gym.Env[Any, Any]):
        observation_space = spaces.Box(1, 6, (2,), np.int64)
        action_space = spaces.Discrete(2)

    env = DummyVecEnv([Dice])
    with pytest.raises(ValueError, match=r"makes fractions of Box\(1, 6, \(2,\), int64\).*norm_obs=False"):
        TrMRLPPO("TrMRLPolicy", VecNormalize(env), n_steps=8, batch_size=8)
    TrMRLPPO("TrMRLPolicy", VecNormalize(env, norm_obs=False), n_steps=8, batch_size=8)


def test_distributions_are_of_a_memory():
    policy = make_model(counter_vec_env(2)).policy
    with pytest.raises(ValueError, match="called without its state"):
        policy.get_distribution(th.zeros(2, 6))


def test_predict_names_what_does_not_fit():
    model = make_model(counter_vec_env(2))
    obs = np.zeros((2, 6), dtype=np.float32)
    with pytest.raises(ValueError, match=r"shape.*\(5,\).*\(6,\)|\(6,\).*\(5,\)"):
        model.predict(obs[0, :5])
    _, state = model.predict(obs)
    with pytest.raises(
        ValueError, match=r"state must hold 2 arrays whose first axis is 1 environment\(s\), got.*\(2, .*\), \(2,\)\]"
    ):
        model.predict(obs[:1], state)
    with pytest.raises(ValueError, match=r"state must hold 2 arrays whose first axis is 2 environment\(s\), got shapes"):
        model.predict(obs, state[:1])
    with pytest.raises(ValueError, match=r"episode_start must have one entry per environment \(2\), got shape \(3,\)"):
        model.predict(obs, state, np.zeros(3))
    with pytest.raises(ValueError, match=r"observation must be an array or a dict.*got a tuple"):
        model.predict((obs, {}))


class Broken(gym.Wrapper):
    """Returns ``value`` as reward or observation at its fifth step, or as its first or last observation of 6 steps."""

    def __init__(self, env, where: str, value: float):
        super().__init__(env)
        self.where, self.value, self.steps = where, value, 0

    def reset(self, **kwargs):
        obs, info = self.env.reset(**kwargs)
        return (obs * self.value if self.where == "first observation" else obs), info

    def step(self, action):
        obs, reward, terminated, truncated, info = self.env.step(action)
        self.steps += 1
        if (self.steps == 5 and self.where == "observation") or (self.steps == 6 and self.where == "terminal observation"):
            obs = obs * self.value
        if self.steps == 5 and self.where == "reward":
            reward = self.value
        return obs, reward, terminated, self.steps == 6, info


@pytest.mark.parametrize("where", ["observation", "reward", "first observation", "terminal observation"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_refused_and_poisons_nothing(where, value):
    def broken() -> gym.Env:
        return Broken(gym.make("Pendulum-v1"), where, value)

    model = make_model(DummyVecEnv([lambda: gym.make("Pendulum-v1"), broken]), n_steps=3)
    with pytest.raises(ValueError, match=f"slot 1 returned a {where.removeprefix('first ')} that is not finite"):
        model.learn(60)
    # Only the clipping limits of parts that are not normalised are infinite
    assert all(t.isfinite().all() for name, t in model.policy.state_dict().items() if "limit" not in name)


@pytest.mark.parametrize("two_phases", [False, True])
@pytest.mark.parametrize("copied", [False, True])
def test_a_gradient_that_is_not_finite_is_refused(copied, two_phases, monkeypatch):
    model = make_model(counter_vec_env(1), two_phase_update=dict(value_learning_rate=1e-3) if two_phases else None)
    model = copy.deepcopy(model) if copied else model
    model.learn(13)
    before = weights(model)
    for optimizer in model.optimizers().values():

        def update(optimizer: th.optim.Optimizer = optimizer) -> None:
            optimizer.zero_grad()
            for parameter in model.policy.parameters():
                parameter.grad = th.full_like(parameter, float("nan"))
            optimizer.step()

        monkeypatch.setattr(model, "_update", update)
        with pytest.raises(FloatingPointError, match="gradient is not finite"):
            model.train()
    assert all(th.equal(tensor, before[name]) for name, tensor in weights(model).items())


class Clock(gym.Env[np.ndarray, np.ndarray]):
    """Observations as large as timestamps or prices."""

    observation_space = spaces.Box(-np.inf, np.inf, (1,), np.float64)
    action_space = spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, start: float):
        self.start, self.n_steps = start, 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        self.n_steps = 0
        return np.array([self.start]), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.n_steps += 1
        return np.array([self.start + self.n_steps]), -float(action[0] ** 2), False, self.n_steps == 100, {}


def test_huge_observations_cost_the_first_update_only():
    model = TrMRLPPO("TrMRLPolicy", Clock(1e7), n_steps=128, batch_size=128, seed=0, device="cpu")
    with pytest.warns(
        UserWarning, match=r"Observations \(or rewards\) of 1e\+07 are too large .* From the next rollout on they are"
    ):
        model.learn(128)
    before = weights(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.learn(256, reset_num_timesteps=False)
    assert model.n_iterations == 3 and not th.equal(weights(model)["action_net.weight"], before["action_net.weight"])
    assert all(tensor.isfinite().all() for tensor in model.policy.parameters())


def test_a_vec_env_that_answers_every_question_with_none_plays_no_trials():
    class AnswersNone(DummyVecEnv):
        def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
            return [None] * self.num_envs

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_model(AnswersNone([NoisyForever])).learn(13)
        make_model(VecNormalize(AnswersNone([NoisyForever])), policy_kwargs=dict(normalize_observations=False)).learn(13)


def test_what_else_is_not_finite_in_the_first_update_is_no_matter_of_observations():
    model = TrMRLPPO("TrMRLPolicy", Clock(2e4), n_steps=128, batch_size=128, seed=0, device="cpu")
    model.lr_schedule = lambda remaining: float("nan")
    with pytest.raises(FloatingPointError, match="learning rate is not finite"):
        model.learn(128)


class TellsTrials(NoisyForever):
    """A plain environment with infos under names of ours (as NeuroGym's), cut after four steps."""

    def __init__(self, told: Any) -> None:
        self.told, self.n_steps = told, 0

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.n_steps += 1
        observation, reward, *_ = super().step(action)
        info = {} if self.told is None else {"trial": self.told}
        return observation, reward, False, self.n_steps % 4 == 0, info


def test_trials_of_other_environments_are_not_taken_for_ours():
    returns = []
    for told in (None, {"coherence": 1}, 7, {"returns": 3.0}):
        model = make_model(DummyVecEnv([partial(TellsTrials, told)]), n_steps=9)
        model.learn(27, log_interval=1)
        returns.append(model.rollout_buffer.returns.copy())
    for others in returns[1:]:
        np.testing.assert_array_equal(others, returns[0])


def test_stacked_ends_of_episodes_cannot_be_forgotten_by():
    env = VecFrameStack(counter_vec_env(1, image=True), 2)
    with pytest.raises(ValueError, match=r"memory_reset='episode' needs the token's prev_done"):
        make_model(env, policy_kwargs=dict(memory_reset="episode"))


def test_a_wrapper_that_hides_the_parts_of_tokens_is_told():
    env = VecFrameStack(counter_vec_env(1), 2)
    with pytest.warns(UserWarning, match="previous action, reward and done like observations"):
        make_model(env)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_model(env, policy_kwargs=dict(normalize_observations=False))
    with pytest.raises(ValueError, match=r"VecNormalize\(norm_obs=True\).*a wrapper around the trial environment hides"):
        make_model(VecNormalize(env))


def test_a_loaded_model_is_checked_with_its_own_settings(tmp_path):
    env = VecFrameStack(counter_vec_env(1), 2)
    make_model(env, policy_kwargs=dict(normalize_observations=False)).save(tmp_path / "model")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        TrMRLPPO.load(tmp_path / "model", env=env, device="cpu")

    def plain() -> gym.Env:
        return gym.wrappers.TransformObservation(Counter(), lambda obs: np.resize(obs, 12), env.observation_space)

    make_model(DummyVecEnv([plain]), policy_kwargs=dict(memory_reset="episode")).save(tmp_path / "plain")
    with pytest.raises(ValueError, match=r"memory_reset='episode' needs the token's prev_done"):
        TrMRLPPO.load(tmp_path / "plain", env=env, device="cpu")


def test_parts_of_the_token_that_a_wrapper_left_out_are_not_forgotten():
    def filtered() -> gym.Env:
        return gym.wrappers.FilterObservation(TrialWrapper(Counter(image=True), 2), ["count", "prev_done", "prev_reward"])

    model = make_model(DummyVecEnv([filtered]), policy_kwargs=dict(memory_reset="episode"))
    model.learn(model.n_steps)
    obs = {key: th.ones(2, *part.shape) for key, part in model.observation_space.spaces.items()}
    obs["prev_done"][1] = 0
    entered, starts = model.policy.enter_memory(obs, th.zeros(2, dtype=th.bool))
    assert starts.tolist() == [True, False]
    assert entered["prev_reward"].flatten().tolist() == [0, 1] and entered["count"].eq(1).all()


@pytest.mark.parametrize(
    "kwargs, message",
    [
        (dict(gamma=1.5), r"gamma must be a number in \[0, 1\], got 1.5"),
        (dict(gae_lambda=-0.1), r"gae_lambda must be a number in \[0, 1\], got -0.1"),
        (dict(gamma="x"), r"gamma must be a number in \[0, 1\], got 'x'"),
        (dict(bootstrap_trial_end="no"), "bootstrap_trial_end must be True or False, got 'no'"),
        (dict(bootstrap_episode_end=None), "bootstrap_episode_end must be True or False, got None"),
        (
            dict(policy_kwargs=dict(normalize_observations="False")),
            "normalize_observations must be True or False, got 'False'",
        ),
        (dict(n_epochs=0), r"n_epochs must be an integer of at least 1, got 0"),
        (dict(n_steps=0), r"n_steps must be an integer of at least 1, got 0"),
        (dict(batch_size=1.5), r"batch_size must be an integer of at least 1, got 1.5"),
    ],
)
def test_settings_are_in_their_range(kwargs, message):
    with pytest.raises(ValueError, match=message):
        TrMRLPPO("TrMRLPolicy", counter_vec_env(1), **kwargs)


def test_the_layout_of_an_image_in_memory_changes_nothing():
    model = make_model(counter_vec_env(2, image=True), policy_kwargs=dict(features_extractor_kwargs=dict(cnn_output_dim=8)))
    obs = {key: np.stack([part.sample() for _ in range(2)]) for key, part in model.observation_space.spaces.items()}
    transposed = {**obs, "camera": np.ascontiguousarray(obs["camera"].transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)}
    assert transposed["camera"].strides != obs["camera"].strides
    entered = [model._enter_memory(tokens, np.ones(2, dtype=bool))[0]["camera"] for tokens in (obs, transposed)]
    assert th.equal(*entered) and entered[0].stride() == entered[1].stride()


def test_spaces_and_rewards_that_are_not_for_it_are_named():
    class Pairs(ForeverOne):
        observation_space = spaces.Tuple([spaces.Discrete(2), spaces.Discrete(2)])  # type: ignore[assignment]

        def observe(self) -> Any:
            return 0, 0

    with pytest.raises(NotImplementedError, match="observation space is not supported"):
        make_model(Pairs())
    with pytest.raises(FloatingPointError, match=r"Returns of about .* are too large.*make the rewards smaller"):
        make_model(gym.wrappers.TransformReward(ForeverOne(), lambda reward: 1e20 * float(reward)), n_steps=9).learn(9)


@pytest.mark.parametrize("two_phase_update", [None, dict(value_learning_rate=1e-3)])
@pytest.mark.parametrize("attention", ["window", "trial"])
def test_a_last_minibatch_of_one_step_makes_no_nan(attention, two_phase_update):
    task = {"reward": 1.0, "length": 2.0}  # trials of 4 steps: the ninth is a slice alone
    env = counter_vec_env(1, noise=1.0, tasks=[task])
    model = make_model(env, n_steps=9, batch_size=4, memory=dict(attention=attention), two_phase_update=two_phase_update)
    model.learn(27)
    assert all(tensor.isfinite().all() for tensor in model.policy.parameters())


@pytest.mark.parametrize("bad", [np.nan, 0.0])
def test_rates_that_are_no_numbers(bad):
    for settings in (
        dict(two_phase_update=dict(value_learning_rate=bad)),
        dict(two_phase_update=dict(value_learning_rate=1e-3, policy_decay=dict(start=0, end=5, factor=bad))),
        dict(clip_range_vf=bad),
    ):
        with pytest.raises(ValueError, match="positive"):
            make_model(counter_vec_env(1), **settings)


def test_a_learning_rate_that_is_not_finite_is_refused():
    model = make_model(counter_vec_env(1))
    model.lr_schedule = lambda remaining: float("nan")
    before = weights(model)
    with pytest.raises(FloatingPointError, match="learning rate is not finite"):
        model.learn(13)
    assert all(th.equal(parameter, before[name]) for name, parameter in model.policy.named_parameters())


def test_actions_of_an_integer_box_keep_their_probabilities(monkeypatch):
    class Integers(NoisyForever):
        action_space: Any = gym.spaces.Box(-5, 5, (2,), np.int64)

        def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
            return super().step(np.int64(0))

    model = make_model(DummyVecEnv([Integers]))
    monkeypatch.setattr(model, "train", lambda: None)
    model.learn(13)
    batch = next(model.rollout_buffer.get())
    _, log_prob, _ = model.policy.evaluate_actions(batch.observations, batch.actions)
    th.testing.assert_close(log_prob, batch.old_log_prob, rtol=0, atol=1e-4)

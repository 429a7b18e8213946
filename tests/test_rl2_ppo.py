"""RL2PPO: its default memory, equality with TrMRLPPO of the same memory, plain environments, what it refuses."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common import logger, utils
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_trmrl import RL2PPO, RL2Policy, TrMRLPPO
from sb3_trmrl.common.buffers import TrialSliceRolloutBuffer
from sb3_trmrl.memory_encoders import GRUEncoder, LSTMEncoder
from tests.families import NoisyForever, counter_vec_env
from tests.test_memory_algorithms import CheckRatio


def make_model(env: Any, algorithm: Any = RL2PPO, **kwargs: Any) -> Any:
    policy = next(iter(algorithm.policy_aliases))
    return algorithm(policy, env, **{"n_steps": 12, "batch_size": 12, "n_epochs": 2, "seed": 0, "device": "cpu", **kwargs})


def test_a_gru_over_the_trial_is_the_default():
    model = make_model(counter_vec_env(2))
    memory = model.policy.actor_memory
    assert isinstance(model.policy, RL2Policy) and isinstance(memory, GRUEncoder)
    assert memory.features_dim == 128 and memory.n_layers == 1 and memory.truncation is None
    assert model.policy.memory_reset == "trial"
    assert isinstance(model.rollout_buffer, TrialSliceRolloutBuffer)


@pytest.mark.parametrize("name", ["gru", "lstm"])
def test_it_is_the_same_algorithm_as_with_the_other_memories(name):
    trained = []
    for algorithm in (RL2PPO, TrMRLPPO):
        kwargs = dict(net_arch=[8], memory_encoder=name, memory_encoder_kwargs=dict(hidden_size=8))
        model = make_model(counter_vec_env(2, noise=1.0), algorithm, policy_kwargs=kwargs)
        model.learn(48)
        trained.append(model.policy.state_dict())
    assert trained[0].keys() == trained[1].keys()
    assert all(th.equal(trained[0][key], trained[1][key]) for key in trained[0])


@pytest.mark.parametrize("encoder_class", [GRUEncoder, LSTMEncoder])
def test_the_hidden_state_is_zeroed_at_trials_and_kept_over_episodes(encoder_class):
    env = counter_vec_env(1, tasks=[{"reward": 1.0, "length": 3.0}])  # trials of 2 episodes of 3 steps
    name = "gru" if encoder_class is GRUEncoder else "lstm"
    model = make_model(env, policy_kwargs=dict(memory_encoder=name, memory_encoder_kwargs=dict(hidden_size=4)))
    assert isinstance(model.policy.actor_memory, encoder_class)
    obs, starts, state = env.reset(), np.ones(1, dtype=bool), None
    firsts, states = [], []
    for _ in range(18):
        firsts.append(bool(starts[0]))
        actions, state = model.predict(obs, state, starts, deterministic=True)
        states.append(np.concatenate([part.flatten() for part in state]))
        obs, _, starts, _ = env.step(actions)
    assert firsts == [True, False, False, False, False, False] * 3
    # Everything is deterministic: each trial is the one before, each step of it has a state of its own
    for t in range(12):
        np.testing.assert_allclose(states[t], states[t + 6], atol=1e-6)
    distances = [np.abs(states[i] - states[j]).max() for i in range(6) for j in range(i)]
    assert min(distances) > 1e-4, "the second episode is not the first"


def test_a_plain_environment_gets_a_recurrent_memory(tmp_path):
    env = DummyVecEnv([lambda: gym.wrappers.TimeLimit(NoisyForever(), 20) for _ in range(2)])
    model = make_model(env)
    check = CheckRatio()
    model.learn(5 * 24, callback=check)
    assert check.worst < 1e-5 and check.reached_back > 0
    model.save(tmp_path / "model.zip")
    loaded = RL2PPO.load(tmp_path / "model.zip", env=env, device="cpu")
    obs, states = np.ones((2, 1), dtype=np.float32), [None, None]
    for _ in range(3):
        results = [m.predict(obs, s, deterministic=True) for m, s in zip((model, loaded), states, strict=True)]
        np.testing.assert_array_equal(results[0][0], results[1][0])
        states = [state for _, state in results]


def test_images_go_through_a_cnn_into_the_recurrent_network():
    env = counter_vec_env(2, image=True)
    kwargs = dict(features_extractor_kwargs=dict(cnn_output_dim=8), memory_encoder_kwargs=dict(hidden_size=8))
    model = make_model(env, n_steps=6, policy_kwargs=kwargs)
    check = CheckRatio()
    model.learn(36, callback=check)
    assert check.worst < 1e-5 and check.reached_back > 0


def test_generalized_state_dependent_exploration():
    model = make_model(gym.make("Pendulum-v1"), use_sde=True, sde_sample_freq=4)
    check = CheckRatio()
    model.learn(4 * 12, callback=check)
    assert check.worst < 1e-5 and check.reached_back > 0


def test_logged_under_its_own_name(monkeypatch):
    names = []

    def configure_logger(verbose: int, log: str | None, tb_log_name: str, reset: bool) -> logger.Logger:
        names.append(tb_log_name)
        return logger.Logger(folder=None, output_formats=[])

    monkeypatch.setattr(utils, "configure_logger", configure_logger)
    make_model(counter_vec_env(2)).learn(24)
    assert names == ["RL2PPO"]


# -- Bad input -------------------------------------------------------------------------------------------------------


def test_wrong_pairs_of_policy_and_algorithm():
    for policy in ("MlpPolicy", "TrMRLPolicy"):
        with pytest.raises(ValueError, match=rf"RL2PPO needs a policy with a memory, got policy='{policy}'.*'RL2Policy'"):
            RL2PPO(policy, "CartPole-v1")
    with pytest.raises(ValueError, match="RL2PPO needs a policy with a memory, got policy='ActorCriticPolicy'"):
        RL2PPO(PPO.policy_aliases["MlpPolicy"], "CartPole-v1")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="called without its state"):
        PPO(RL2Policy, "CartPole-v1", n_steps=8, batch_size=8, device="cpu").learn(8)


@pytest.mark.parametrize(
    ("policy_kwargs", "message"),
    [
        (dict(memory_encoder="gruu"), "got 'gruu'. Did you mean 'gru'"),
        (dict(memory_encoder_kwargs=dict(hidden_size=0)), "hidden_size must be an integer of at least 1, got 0"),
        (dict(head="hypernetwork", net_arch=dict(pi=[8])), "net_arch has none"),
    ],
)
def test_bad_policy_options(policy_kwargs, message):
    with pytest.raises(ValueError, match=message):
        RL2PPO("RL2Policy", "CartPole-v1", policy_kwargs=policy_kwargs)


def test_the_value_of_the_papers_update_is_not_an_option():
    with pytest.raises(ValueError, match="value_log_std_init"):
        RL2PPO("RL2Policy", "CartPole-v1", policy_kwargs=dict(value_log_std_init=0.0))


def test_unknown_encoder_options_are_named():
    space = spaces.Box(-1, 1, (3,))
    with pytest.raises(TypeError, match="embed_dim"):
        RL2Policy(space, spaces.Discrete(2), lambda _: 1e-3, memory_encoder_kwargs=dict(embed_dim=8))


@pytest.mark.parametrize("name", ["gru", "lstm"])
def test_multi_discrete_observations(name):
    class Cells(NoisyForever):
        observation_space = spaces.MultiDiscrete([3, 4])  # type: ignore[assignment]

        def observe(self) -> np.ndarray:
            return self.observation_space.sample()

    model = make_model(DummyVecEnv([Cells]), policy_kwargs=dict(memory_encoder=name)).learn(12)
    assert model.policy.actor_memory.token_dim == 7

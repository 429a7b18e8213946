"""Learning: what a memory is for, against the exact return of agents without one."""

from functools import partial
from typing import Any

import numpy as np
import pytest
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_trmrl import RL2PPO, TrMRLPPO, evaluate_adaptation
from tests.families import Cue, cue_trials

#: Trials of 4 steps, and of 10: the answer is asked for at the last one, the cue was shown at the first
short_trials, long_trials = cue_trials, partial(cue_trials, horizon=5)

TRANSFORMER: dict[str, Any] = dict(embed_dim=32, n_heads=4, n_layers=1)


def train(
    trials: Any, algorithm: Any = TrMRLPPO, memory_reset: str = "trial", total_timesteps: int = 8_000, **kwargs: Any
) -> Any:
    n_steps = 16 if trials is short_trials else 20
    options: dict[str, Any] = dict(n_epochs=4, batch_size=128) if trials is short_trials else dict(batch_size=320)
    policy_kwargs = dict(memory_reset=memory_reset, **kwargs.pop("policy_kwargs"))
    model = algorithm(
        next(iter(algorithm.policy_aliases)),
        DummyVecEnv([lambda: trials(episodes_per_trial=2) for _ in range(16)]),
        n_steps=n_steps,
        **{"learning_rate": 1e-3, "ent_coef": 0.01, "gamma": 0.95, "seed": 0, "device": "cpu", **options, **kwargs},
        policy_kwargs=policy_kwargs,
    )
    return model.learn(total_timesteps)


def second_episode(model: Any, trials: Any) -> float:
    return float(evaluate_adaptation(model, trials, n_tasks=400, n_episodes=2, deterministic=False).curve[1])


# -- Windows ---------------------------------------------------------------------------------------------------------


def train_window(memory_reset: str = "trial", memory_length: int = 4, trials: Any = short_trials, **kwargs: Any) -> float:
    encoder_kwargs = dict(TRANSFORMER, attention="window", memory_length=memory_length)
    return second_episode(
        train(trials, memory_reset=memory_reset, policy_kwargs=dict(memory_encoder_kwargs=encoder_kwargs), **kwargs), trials
    )


def test_memory_over_episodes_beats_every_agent_that_forgets():
    # The best return without a memory over episodes is Cue.chance == 0.25, see the tests below
    assert train_window() > Cue.chance + 0.65


def test_the_papers_update_learns_too():
    assert train_window(two_phase_update=dict(value_learning_rate=1e-3)) > Cue.chance + 0.65


@pytest.mark.parametrize(
    ("memory_reset", "memory_length", "trials"),
    [("episode", 4, short_trials), ("trial", 1, short_trials), ("trial", 3, short_trials), ("trial", 5, long_trials)],
    ids=["episode", "1-of-4", "3-of-4", "5-of-10"],
)
def test_agents_that_forget_stay_at_chance(memory_reset, memory_length, trials):
    # Binomial standard deviation over 400 tasks: 0.02
    np.testing.assert_allclose(train_window(memory_reset, memory_length, trials), Cue.chance, atol=0.1)


class Relay:
    """Without memory: names the cue that it sees, else what it said last."""

    def predict(self, observation, state=None, episode_start=None, deterministic=False):
        cue, said = observation[:, :4], observation[:, 5:9]
        return np.where(cue.any(axis=1), cue.argmax(axis=1), said.argmax(axis=1)), state


@pytest.mark.parametrize("trials", [short_trials, long_trials], ids=["short", "long"])
def test_no_one_can_pass_the_cue_on_to_itself(trials):
    np.testing.assert_allclose(second_episode(Relay(), trials), Cue.chance, atol=0.1)


# -- Memories of the whole trial -------------------------------------------------------------------------------------


#: Algorithm, encoder, its keyword arguments, learning rate
MEMORIES: dict[str, tuple[Any, str, dict[str, Any], float]] = {
    "tfixup": (TrMRLPPO, "tfixup", TRANSFORMER, 1e-3),
    "gru": (RL2PPO, "gru", dict(hidden_size=32), 2e-3),
    "gtrxl": (TrMRLPPO, "gtrxl", TRANSFORMER, 1e-3),
    "snail": (TrMRLPPO, "snail", dict(memory_length=16, filters=8), 1e-3),
}


def train_memory(label: str, total_timesteps: int, memory_reset: str = "trial", **memory_encoder_kwargs: Any) -> float:
    algorithm, name, kwargs, learning_rate = MEMORIES[label]
    policy_kwargs = dict(memory_encoder=name, memory_encoder_kwargs={**kwargs, **memory_encoder_kwargs})
    model = train(
        long_trials, algorithm, memory_reset, total_timesteps, learning_rate=learning_rate, policy_kwargs=policy_kwargs
    )
    return second_episode(model, long_trials)


@pytest.mark.parametrize("label", MEMORIES)
def test_a_memory_of_the_trial_knows_at_its_end_what_was_shown_at_its_start(label):
    assert train_memory(label, 12_000) > Cue.chance + 0.5


# After 8,000 steps those who can remember win 0.5 to 0.9


def test_a_band_as_long_as_the_trial_is_enough_and_one_step_less_is_not():
    assert train_memory("tfixup", 12_000, memory_length=10) > Cue.chance + 0.5
    np.testing.assert_allclose(train_memory("tfixup", 8_000, memory_length=9), Cue.chance, atol=0.1)


@pytest.mark.parametrize("label", ["tfixup", "gru"])
def test_memories_that_are_emptied_at_every_episode_stay_at_chance(label):
    np.testing.assert_allclose(train_memory(label, 8_000, memory_reset="episode"), Cue.chance, atol=0.1)

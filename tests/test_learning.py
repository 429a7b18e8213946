"""Learning: what a memory is for, against the exact return of agents without one."""

from typing import Any

import numpy as np
import pytest
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_trmrl import TrMRLPPO, evaluate_adaptation
from tests.families import Cue, cue_trials


def train(memory_reset: str = "trial", memory_length: int = 4, **kwargs: Any) -> TrMRLPPO:
    model = TrMRLPPO(
        "TrMRLPolicy",
        DummyVecEnv([lambda: cue_trials(episodes_per_trial=2) for _ in range(16)]),
        n_steps=16,
        batch_size=128,
        n_epochs=4,
        learning_rate=1e-3,
        ent_coef=0.01,
        gamma=0.95,
        seed=0,
        device="cpu",
        policy_kwargs=dict(
            memory_reset=memory_reset,
            memory_encoder_kwargs=dict(embed_dim=32, n_heads=4, n_layers=1, memory_length=memory_length),
        ),
        **kwargs,
    )
    return model.learn(16_000)


def second_episode(model: Any) -> float:
    return float(evaluate_adaptation(model, cue_trials, n_tasks=400, n_episodes=2, deterministic=False).curve[1])


def test_memory_over_episodes_beats_every_agent_that_forgets():
    # The best return without a memory over episodes is Cue.chance == 0.25, see the tests below
    assert second_episode(train()) > Cue.chance + 0.65


def test_the_papers_update_learns_too():
    assert second_episode(train(two_phase_update=dict(value_learning_rate=1e-3))) > Cue.chance + 0.65


@pytest.mark.parametrize(("memory_reset", "memory_length"), [("episode", 4), ("trial", 1), ("trial", 3)])
def test_agents_that_forget_stay_at_chance(memory_reset, memory_length):
    # Binomial standard deviation over 400 tasks: 0.02
    np.testing.assert_allclose(second_episode(train(memory_reset, memory_length)), Cue.chance, atol=0.1)


class Relay:
    """Without memory: names the cue that it sees, else what it said last."""

    def predict(self, observation, state=None, episode_start=None, deterministic=False):
        cue, said = observation[:, :4], observation[:, 5:9]
        return np.where(cue.any(axis=1), cue.argmax(axis=1), said.argmax(axis=1)), state


def test_no_one_can_pass_the_cue_on_to_itself():
    np.testing.assert_allclose(second_episode(Relay()), Cue.chance, atol=0.1)

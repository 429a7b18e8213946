"""Learning: what a memory is for, against the exact return of agents without one."""

import numpy as np
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_trmrl import TrMRLPPO
from sb3_trmrl.common.evaluation import evaluate_adaptation
from sb3_trmrl.envs.trial import TrialWrapper
from tests.families import Cue


def cue_trials(**trial_kwargs) -> TrialWrapper:
    trial_kwargs.pop("render_mode", None)
    return TrialWrapper(Cue(), **trial_kwargs)


def train(memory_reset: str) -> TrMRLPPO:
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
            memory_encoder_kwargs=dict(embed_dim=32, n_heads=4, n_layers=1, memory_length=4),
        ),
    )
    return model.learn(16_000)


def second_episode(model: TrMRLPPO) -> float:
    return float(evaluate_adaptation(model, cue_trials, n_tasks=400, n_episodes=2, deterministic=False).curve[1])


def test_memory_over_episodes_beats_every_agent_that_forgets():
    assert second_episode(train("trial")) > 0.9  # the best return of agents that forget is Cue.chance == 0.25


def test_an_agent_that_forgets_at_episodes_stays_at_chance():
    # Binomial standard deviation over 400 tasks: 0.02
    np.testing.assert_allclose(second_episode(train("episode")), Cue.chance, atol=0.1)

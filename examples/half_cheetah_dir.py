"""
Real physics: a cheetah that must find out whether to run forward or backward (HalfCheetahDir, MuJoCo).

Meta-trains TrMRL, then tests it on both directions for 6 episodes with frozen weights, and prints and draws its adaptation
curve between two references:

- blind: the best that an agent can do who never learns the direction. Forward and backward are equally likely, so whatever it
  gains in one it loses in the other, and torque costs: it stands still.
- oracle: the same algorithm and number of steps, but it sees the direction in its observation and needs no memory.

Run: python examples/half_cheetah_dir.py                  (800,000 steps each for TrMRL and the oracle; about 10 minutes)
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from sb3_trmrl import TrMRLPPO
from sb3_trmrl.common.env_util import make_meta_vec_env
from sb3_trmrl.common.evaluation import adaptation_table, evaluate_adaptation
from sb3_trmrl.envs import HalfCheetahDir, TrialWrapper
from sb3_trmrl.plots import plot_adaptation_curve

ENV_ID = "HalfCheetahDir-v0"


class SeeDirection(gym.ObservationWrapper):
    """Appends the task's direction to the observation."""

    def __init__(self, env: gym.Env):
        super().__init__(env)
        assert isinstance(env.observation_space, spaces.Box)
        low, high = (
            np.append(bound, limit)
            for bound, limit in zip((env.observation_space.low, env.observation_space.high), (-1, 1), strict=True)
        )
        self.observation_space = spaces.Box(low, high, dtype=np.float64)

    def observation(self, observation: np.ndarray) -> np.ndarray:
        family = self.unwrapped
        assert isinstance(family, HalfCheetahDir)
        return np.append(observation, family.get_task()["direction"])


def make_oracle_env(horizon: int = 200, render_mode: str | None = None, **trial_kwargs: Any) -> TrialWrapper:
    return TrialWrapper(SeeDirection(HalfCheetahDir(horizon=horizon, render_mode=render_mode)), **trial_kwargs)


class StandStill:
    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[np.ndarray, Any]:
        return np.zeros((len(observation), 6), dtype=np.float32), state


def train(env_id: str | Callable[..., TrialWrapper], memory_length: int, args: argparse.Namespace) -> TrMRLPPO:
    env = make_meta_vec_env(env_id, n_envs=20, seed=args.seed, env_kwargs=dict(episodes_per_trial=2))
    model = TrMRLPPO(
        "TrMRLPolicy",
        env,
        n_steps=400,
        batch_size=500,
        n_epochs=10,
        learning_rate=3e-4,
        gamma=0.97,
        gae_lambda=0.9,
        target_kl=0.03,
        seed=args.seed,
        device="cpu",
        policy_kwargs=dict(
            log_std_init=-0.5,
            # A window of few steps is enough: every reward tells the direction
            memory_encoder_kwargs=dict(attention="window", embed_dim=128, n_heads=4, n_layers=2, memory_length=memory_length),
        ),
    )
    start = time.perf_counter()
    model.learn(args.timesteps, progress_bar=True)
    print(f"Trained in {time.perf_counter() - start:.0f} s.")
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description="Meta-train TrMRL on HalfCheetahDir, adapt, show.")
    parser.add_argument("--timesteps", type=int, default=800_000, help="steps of meta-training, for TrMRL and for the oracle")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("half_cheetah_dir.png"), help="where the picture goes")
    args = parser.parse_args()

    print(f"TrMRL: {args.timesteps:,} steps of {ENV_ID}, 20 tasks at a time, 2 episodes of 200 steps per trial")
    model = train(ENV_ID, memory_length=5, args=args)
    print(f"Oracle: {args.timesteps:,} steps, direction visible, no memory")
    oracle_model = train(make_oracle_env, memory_length=1, args=args)

    print("Testing on 20 tasks (10 in each direction), 6 episodes each, weights frozen ...")
    tasks = [{"direction": direction} for direction in (-1.0, 1.0) for _ in range(10)]
    agent, blind = (evaluate_adaptation(m, ENV_ID, n_episodes=6, seed=args.seed, tasks=tasks) for m in (model, StandStill()))
    oracle = evaluate_adaptation(oracle_model, make_oracle_env, n_episodes=6, seed=args.seed, tasks=tasks)

    print("\nReturn per episode, mean and 95 % bootstrap interval over tasks")
    print(adaptation_table({"blind": blind, "TrMRL": agent, "oracle": oracle}))
    for direction, name in ((-1.0, "backward"), (1.0, "forward")):
        chosen = [i for i, task in enumerate(tasks) if task["direction"] == direction]
        print(f"{name:>9}: TrMRL {agent.returns[chosen].mean():8.1f}   oracle {oracle.returns[chosen].mean():8.1f}")
    plot_adaptation_curve(
        {"TrMRL": agent, "oracle (sees the direction)": oracle},
        args.output,
        references={"blind": float(blind.curve.mean())},
        title=f"{ENV_ID}: adaptation with frozen weights",
    )
    print(f"Picture: {args.output}")


if __name__ == "__main__":
    main()

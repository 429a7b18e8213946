"""
Quickstart: meta-train a small TrMRL agent in a minute or two and watch it adapt to tasks that it has never seen.

A point robot must reach a goal in the plane that nobody tells it: all it gets is minus its distance to the goal, after
each step. From these the agent works out where the goal is, and in the next episodes it goes straight there. Its weights
stay the same: what adapts is its memory.

Run: make quickstart  (or: python examples/quickstart.py)
"""

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch as th

from sb3_trmrl import TrMRLPPO
from sb3_trmrl.common.env_util import make_meta_vec_env
from sb3_trmrl.common.evaluation import adaptation_table, evaluate_adaptation
from sb3_trmrl.envs import Task
from sb3_trmrl.plots import plot_adaptation_curve

ENV_ID = "PointRobot-v0"


class GoTo:
    """
    Scripted policy: walk straight to a target, one for each environment. With the goals as targets it is the *oracle*; with
    the middle of the goal region it is the best that a *blind* agent can do (the goals are uniform in a square around it).

    :param targets: Shape (n_envs, 2), metres
    """

    def __init__(self, targets: np.ndarray):
        self.targets = targets

    def predict(
        self, observation: np.ndarray, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[np.ndarray, Any]:
        # A full action moves 0.1 m along an axis; the first two entries of the token are the position
        return np.clip((self.targets - observation[:, :2]) / 0.1, -1.0, 1.0), state


def goals(tasks: list[Task]) -> np.ndarray:
    return np.array([task["goal"] for task in tasks])


def main() -> None:
    parser = argparse.ArgumentParser(description="Meta-train, adapt, show.")
    parser.add_argument("--timesteps", type=int, default=250_000, help="steps of meta-training")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("quickstart.png"), help="where the picture goes")
    args = parser.parse_args()
    # What is wrong with it shows before the training
    if args.timesteps < 1:
        parser.error(f"argument --timesteps: must be at least 1, got {args.timesteps}")
    if args.output.suffix not in (".png", ".svg", ".pdf"):
        parser.error(f"argument --output: must end in .png, .svg or .pdf, got {args.output}")
    args.output.parent.mkdir(parents=True, exist_ok=True)

    # The matrices are too small to be shared between threads
    th.set_num_threads(1)
    # 16 tasks at a time, 3 episodes of 20 steps on each, a new task for every trial
    env = make_meta_vec_env(ENV_ID, n_envs=16, seed=args.seed, env_kwargs=dict(episodes_per_trial=3))
    model = TrMRLPPO(
        "TrMRLPolicy",
        env,
        learning_rate=1e-3,
        n_steps=120,
        batch_size=480,
        n_epochs=10,
        gamma=0.9,
        gae_lambda=0.9,
        target_kl=0.1,
        seed=args.seed,
        device="cpu",
        policy_kwargs=dict(
            log_std_init=-0.5,
            # A small transformer over all that happened in the trial
            memory_encoder_kwargs=dict(embed_dim=32, n_heads=4, n_layers=1),
        ),
    )
    print(f"Meta-training on {ENV_ID} for {args.timesteps:,} steps ...")
    start = time.perf_counter()
    model.learn(args.timesteps, progress_bar=True)
    print(f"Trained in {time.perf_counter() - start:.0f} s. Testing on 100 unseen tasks, 6 episodes each, weights frozen ...")

    agent = evaluate_adaptation(model, ENV_ID, n_tasks=100, n_episodes=6, split="test", seed=args.seed)
    oracle = evaluate_adaptation(GoTo(goals(agent.tasks)), ENV_ID, n_episodes=6, seed=args.seed, tasks=agent.tasks)
    blind = evaluate_adaptation(GoTo(0 * goals(agent.tasks)), ENV_ID, n_episodes=6, seed=args.seed, tasks=agent.tasks)

    print("\nReturn per episode on unseen tasks, mean and 95 % bootstrap interval (0 is best)")
    print(adaptation_table({"blind": blind, "TrMRL": agent, "oracle": oracle}))
    gain = agent.returns[:, -1] - agent.returns[:, 0]
    print(f"\nLast episode minus first: {gain.mean():+.2f} on average, better on {np.mean(gain > 0):.0%} of the tasks")
    plot_adaptation_curve(
        {"TrMRL (100 unseen tasks)": agent},
        args.output,
        references={"blind": float(blind.curve.mean()), "oracle": float(oracle.curve.mean())},
        title=f"{ENV_ID}: adaptation with frozen weights",
    )
    print(f"Picture: {args.output}")


if __name__ == "__main__":
    main()

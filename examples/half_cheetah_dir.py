"""
Real physics: a cheetah that must find out whether to run forward or backward (HalfCheetahDir, MuJoCo).

Meta-trains TrMRL, then tests it on both directions for 6 episodes with frozen weights, and prints and draws its adaptation
curve beside what comes with the package: the returns of agents that see the direction (oracle), that see the last reward but
remember nothing (reactive), and that see neither (blind). A score of 0 is blind's return, 1 is the oracle's.

Run: python examples/half_cheetah_dir.py                                         (1,000,000 steps, 5 minutes on 2 cores)
"""

import argparse
import time
from pathlib import Path

import torch as th
from stable_baselines3.common.utils import LinearSchedule

from sb3_trmrl import TrMRLPPO, evaluate_adaptation
from sb3_trmrl.common.env_util import make_meta_vec_env
from sb3_trmrl.common.references import load_references
from sb3_trmrl.common.statistics import adaptation_score
from sb3_trmrl.plots import plot_adaptation_curve

ENV_ID = "HalfCheetahDir-v0"


def main() -> None:
    parser = argparse.ArgumentParser(description="Meta-train TrMRL on HalfCheetahDir, adapt, show.")
    parser.add_argument("--timesteps", type=int, default=1_000_000, help="steps of meta-training, more than 8,000")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("half_cheetah_dir.png"), help="where the picture goes")
    args = parser.parse_args()
    # What is wrong with it shows before the training
    if args.timesteps < 1:
        parser.error(f"argument --timesteps: must be at least 1, got {args.timesteps}")
    if args.output.suffix not in (".png", ".svg", ".pdf"):
        parser.error(f"argument --output: must end in .png, .svg or .pdf, got {args.output}")
    args.output.parent.mkdir(parents=True, exist_ok=True)

    # The matrices are too small to be shared between threads
    th.set_num_threads(1)
    # 20 tasks at a time, 2 episodes of 200 steps on each, a new task for every trial
    env = make_meta_vec_env(ENV_ID, n_envs=20, seed=args.seed, env_kwargs=dict(episodes_per_trial=2, horizon=200))
    # The settings of hyperparams/trmrl.yml
    model = TrMRLPPO(
        "TrMRLPolicy",
        env,
        learning_rate=LinearSchedule(1e-3, 0.0, 1.0),
        n_steps=400,
        batch_size=1600,
        n_epochs=5,
        gamma=0.97,
        gae_lambda=0.9,
        seed=args.seed,
        device="cpu",
        policy_kwargs=dict(
            log_std_init=-1.0,
            # A transformer that sees the last 64 steps
            memory_encoder_kwargs=dict(embed_dim=128, n_heads=4, n_layers=2, memory_length=64),
        ),
    )
    print(f"Meta-training on {ENV_ID} for {args.timesteps:,} steps ...")
    start = time.perf_counter()
    model.learn(args.timesteps, progress_bar=True)
    print(f"Trained in {time.perf_counter() - start:.0f} s. Testing: 10 trials per direction, 6 episodes, weights frozen ...")

    agent = evaluate_adaptation(model, ENV_ID, n_tasks=20, n_episodes=6, split="test", seed=args.seed)
    references = load_references(agent)
    assert references is not None, "they come with the package"
    curves = references.curves()
    lower, upper = agent.interval()
    score = adaptation_score(agent.returns, references.returns["blind"], references.returns["oracle"])
    print("\nReturn per episode, mean and 95 % bootstrap interval over tasks")
    print(f"episode {'TrMRL':>22} {'oracle':>8} {'reactive':>8} {'blind':>8} {'score':>8}")
    for i in range(agent.n_episodes):
        own = f"{agent.curve[i]:.0f} [{lower[i]:.0f}, {upper[i]:.0f}]"
        others = " ".join(f"{curves[name][i]:>8.0f}" for name in ("oracle", "reactive", "blind"))
        print(f"{i + 1:>7} {own:>22} {others} {score[i]:>8.2f}")
    for direction, name in ((-1.0, "backward"), (1.0, "forward")):
        chosen = [i for i, task in enumerate(agent.tasks) if task["direction"] == direction]
        print(f"{name:>9}: TrMRL {agent.returns[chosen].mean():.0f}, oracle {references.returns['oracle'][chosen].mean():.0f}")
    plot_adaptation_curve(
        {"TrMRL": agent}, args.output, references=references.drawn_curves(), title=f"{ENV_ID}: adaptation with frozen weights"
    )
    print(f"Picture: {args.output}")


if __name__ == "__main__":
    main()

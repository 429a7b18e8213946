"""
What a memory is worth: return against steps of experience for each memory encoder, the same PPO around all of them.

    python benchmarks/memory_learning.py --output results.json
    python benchmarks/memory_learning.py --families SparsePointRobot-v0 --agents trial gru --seeds 0 1 2 3
    python benchmarks/memory_learning.py --output results.json --report docs/images     # table and pictures, no training

Runs that are in the output file already are not run again, so that a broken-off campaign goes on where it was. Each run has
one thread; ``--jobs`` of them run at once.
"""

import argparse
import json
import multiprocessing
import os
import time
from pathlib import Path
from typing import Any

# Set before torch starts its own threads
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch as th
from campaign import facts
from campaign_report import of_usual_length
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor

from sb3_trmrl import RL2PPO, TrMRLPPO, evaluate_adaptation
from sb3_trmrl.common.env_util import make_meta_vec_env
from sb3_trmrl.common.statistics import bootstrap_interval, interquartile_mean
from sb3_trmrl.envs import TokenSpace

FAMILIES: dict[str, dict[str, Any]] = {
    "HalfCheetahDir-v0": dict(
        timesteps=320_000,
        env_kwargs=dict(episodes_per_trial=2),
        ppo=dict(n_steps=400, batch_size=800, n_epochs=10, gamma=0.97, gae_lambda=0.9, target_kl=0.03),
        n_envs=20,
        log_std_init=-0.5,
        width=128,
    ),
    "SparsePointRobot-v0": dict(
        timesteps=500_000,
        env_kwargs=dict(episodes_per_trial=5),
        ppo=dict(n_steps=100, batch_size=800, n_epochs=10, gamma=0.99, gae_lambda=0.95, target_kl=0.03),
        n_envs=32,
        log_std_init=0.0,
        width=64,
    ),
}
"""Settings of each family, the same for all agents."""


class ObservationOnly(BaseFeaturesExtractor):
    """
    The blind agent's view: the observation, without the previous action, reward and done.

    :param observation_space: Tokens.
    """

    def __init__(self, observation_space: spaces.Space[Any]):
        assert isinstance(observation_space, TokenSpace)
        self.part = observation_space.observation_slice
        super().__init__(observation_space, features_dim=self.part.stop - self.part.start)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        """
        :param observations: Tokens ``(batch, token_dim)``.
        :return: Their observations ``(batch, observation_dim)``.
        """
        return observations[:, self.part]


def agents(width: int) -> dict[str, dict[str, Any]]:
    """
    :param width: Width of the memory's features.
    :return: Policy keywords of each agent, by its name.
    """
    transformer = dict(embed_dim=width, n_heads=4, n_layers=2)
    window = dict(transformer, attention="window")
    return {
        "window": dict(memory_encoder_kwargs=dict(window, memory_length=5), memory_reset="episode"),
        "trial": dict(memory_encoder_kwargs=transformer),
        "gru": dict(memory_encoder="gru", memory_encoder_kwargs=dict(hidden_size=width)),
        "gtrxl": dict(memory_encoder="gtrxl", memory_encoder_kwargs=transformer),
        "snail": dict(memory_encoder="snail"),
        "reactive": dict(memory_encoder_kwargs=dict(window, memory_length=1)),
        "blind": dict(memory_encoder_kwargs=dict(window, memory_length=1), features_extractor_class=ObservationOnly),
        "trial-pre-norm": dict(memory_encoder_kwargs=dict(transformer, normalization="pre")),
        "trial-scaled": dict(memory_encoder_kwargs=dict(transformer, scale_embedding=True)),
        "trial-sinusoidal": dict(memory_encoder_kwargs=dict(transformer, positions="sinusoidal")),
        "trial-latest": dict(memory_encoder_kwargs=transformer, head_input="latest"),
        "trial-xavier": dict(memory_encoder_kwargs=dict(transformer, initialization="xavier")),
        "trial-1-layer": dict(memory_encoder_kwargs=dict(transformer, n_layers=1)),
        "trial-4-layers": dict(memory_encoder_kwargs=dict(transformer, n_layers=4)),
        "trial-4-layers-xavier": dict(memory_encoder_kwargs=dict(transformer, n_layers=4, initialization="xavier")),
    }


LABELS = {
    "window": "window of 5, per episode (paper)",
    "trial": "full-trial transformer",
    "gru": "GRU (RL2)",
    "gtrxl": "GTrXL",
    "snail": "SNAIL",
    "reactive": "reactive (token, no memory)",
    "blind": "blind (observation, no memory)",
}


VARIANTS = {
    "trial": "full-trial transformer: T-Fixup, embedding as it is, rotary positions, heads on features and token",
    "trial-pre-norm": "... with pre-norm",
    "trial-scaled": "... with the embedding scaled by sqrt(d), as in the T-Fixup paper",
    "trial-sinusoidal": "... with sinusoidal positions",
    "trial-latest": "... with heads on the features alone",
    "trial-xavier": "... without T-Fixup (Xavier)",
    "trial-1-layer": "... with 1 layer",
    "trial-4-layers": "... with 4 layers",
    "trial-4-layers-xavier": "... with 4 layers, without T-Fixup",
}
"""One factor at a time. They are run with ``--agents``."""


class LearningCurve(BaseCallback):
    """Mean return of each episode of the trials that ended in each iteration."""

    def __init__(self) -> None:
        super().__init__()
        self.points: list[list[Any]] = []
        self.trials: list[list[float]] = []

    def _on_step(self) -> bool:
        self.trials += [info["trial"]["returns"] for info in self.locals["infos"] if "trial" in info]
        return True

    def _on_rollout_end(self) -> None:
        if self.trials:
            self.points.append([self.num_timesteps, np.mean(self.trials, axis=0).tolist()])
            self.trials = []


def train(
    family: str, agent: str, seed: int, timesteps: int | None = None, ppo: dict[str, Any] | None = None, **policy_kwargs: Any
) -> dict[str, Any]:
    """
    Meta-train one agent and evaluate it on unseen tasks.

    :param family: Key of ``FAMILIES``.
    :param agent: Key of ``agents``.
    :param seed: Seed of everything.
    :param timesteps: Steps of training; the family's if None.
    :param ppo: Settings of PPO other than the family's.
    :param policy_kwargs: Settings of the policy other than the agent's.
    :return: The learning curve, the evaluation and the time.
    """
    th.set_num_threads(1)
    settings = FAMILIES[family]
    env = make_meta_vec_env(family, n_envs=settings["n_envs"], seed=seed, env_kwargs=settings["env_kwargs"])
    algorithm, policy = (RL2PPO, "RL2Policy") if agent == "gru" else (TrMRLPPO, "TrMRLPolicy")
    options = {"log_std_init": settings["log_std_init"], **agents(settings["width"])[agent], **policy_kwargs}
    ppo = {"learning_rate": 3e-4, **settings["ppo"], **(ppo or {})}
    model = algorithm(policy, env, seed=seed, device="cpu", policy_kwargs=options, **ppo)
    curve, start = LearningCurve(), time.perf_counter()
    model.learn(timesteps or settings["timesteps"], callback=curve)
    seconds = time.perf_counter() - start
    env.close()
    result = evaluate_adaptation(model, family, n_tasks=40, n_episodes=6, split="test", seed=seed)
    return dict(
        family=family,
        agent=agent,
        seed=seed,
        curve=curve.points,
        evaluation=result.returns.tolist(),
        seconds=round(seconds, 1),
        parameters=sum(parameter.numel() for parameter in model.policy.parameters()),
    )


def final_returns(run: dict[str, Any]) -> float:
    """
    :param run: Result of ``train``.
    :return: Return per episode at the end: mean over the last tenth of the training's iterations and the trial's episodes.
    """
    last = run["curve"][-max(1, len(run["curve"]) // 10) :]
    return float(np.mean([returns for _, returns in last]))


def mean_returns(run: dict[str, Any]) -> float:
    """
    :param run: Result of ``train``.
    :return: Return per episode over the whole training: the area under the learning curve, per step of experience.
    """
    return float(np.mean([np.mean(returns) for _, returns in run["curve"]]))


def print_table(runs: list[dict[str, Any]], title: str, labels: dict[str, str]) -> None:
    """
    :param runs: Results of ``train`` on one family.
    :param title: Title of the table.
    :param labels: Agents and what they are called.
    """
    print(f"\n{title}\n")
    print("| agent | seeds | end of training | whole training | test, episode 1 | test, episode 6 | parameters | minutes |")
    print("|---|---|---|---|---|---|---|---|")
    for agent, label in labels.items():
        chosen = [run for run in runs if run["agent"] == agent]
        if not chosen:
            continue
        cells = []
        test = [np.mean(run["evaluation"], axis=0) for run in chosen]
        for values in (
            [final_returns(run) for run in chosen],
            [mean_returns(run) for run in chosen],
            [float(curve[0]) for curve in test],
            [float(curve[-1]) for curve in test],
        ):
            # With three seeds nothing is cut off: the interquartile mean is the mean, the interval about the seeds' range
            scores = np.array(values)[:, None]
            middle, (lower, upper) = float(interquartile_mean(scores)), map(float, bootstrap_interval(scores))
            digits = 0 if abs(upper) > 50 else 2
            cells.append(f"{middle:.{digits}f} [{lower:.{digits}f}, {upper:.{digits}f}]")
        minutes = np.mean([run["seconds"] for run in chosen]) / 60
        print(f"| {label} | {len(chosen)} | " + " | ".join(cells) + f" | {chosen[0]['parameters']:,} | {minutes:.1f} |")


def report(runs: list[dict[str, Any]], family: str, folder: Path) -> None:
    """
    Print the table of one family and draw its learning curves.

    :param runs: Results of ``train``.
    :param family: Which family.
    :param folder: Where the picture goes.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    of_family = [run for run in runs if run["family"] == family]
    runs = list(of_usual_length(of_family))
    if len(runs) < len(of_family):
        print(f"\n{family}: {len(of_family) - len(runs)} trainings of other lengths than most are left out")
    print_table(runs, f"{family}, all memories", LABELS)
    print_table(runs, f"{family}, one factor at a time", VARIANTS)
    runs = [run for run in runs if run["agent"] in LABELS]
    if not runs:
        return
    figure = Figure(figsize=(7.2, 4.2), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    styles = ["-", "-", "-", "--", "-.", ":", (0, (1, 3))]
    for (agent, label), style in zip(LABELS.items(), styles, strict=True):
        chosen = [run for run in runs if run["agent"] == agent]
        if not chosen:
            continue
        steps = [point[0] for point in min((run["curve"] for run in chosen), key=len)]
        curves = np.array([[np.mean(returns) for _, returns in run["curve"]][: len(steps)] for run in chosen])
        # A mean over 20 iterations at most: single iterations are noisy
        width = max(1, min(20, len(steps) // 20))
        smooth = np.array([np.convolve(curve, np.ones(width) / width, mode="valid") for curve in curves])
        (line,) = axes.plot(steps[width - 1 :], smooth.mean(axis=0), linestyle=style, linewidth=1.8, label=label)
        axes.fill_between(steps[width - 1 :], smooth.min(axis=0), smooth.max(axis=0), color=line.get_color(), alpha=0.15)
    axes.set_xlabel("steps of experience")
    axes.set_ylabel("return per episode, in training")
    axes.set_title(f"{family}: mean and range of the seeds")
    axes.grid(alpha=0.25)
    axes.legend(framealpha=0.9, fontsize=8)
    path = folder / f"memory_learning_{family.removesuffix('-v0').lower()}.png"
    figure.savefig(path)
    print(f"\nPicture: {path}")


def parse_arguments() -> argparse.Namespace:
    """:return: The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--agents", nargs="+", choices=[*LABELS, *VARIANTS], default=list(LABELS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--timesteps", type=int, help="steps of training, default: the family's")
    parser.add_argument("--jobs", type=int, default=2, help="runs at once")
    parser.add_argument("--output", type=Path, default=Path("memory_learning.json"), help="one line per finished run")
    parser.add_argument("--report", type=Path, metavar="FOLDER", help="only print tables and draw pictures to this folder")
    return parser.parse_args()


def main() -> None:
    """Run what is missing, one line of output per run, then report."""
    arguments = parse_arguments()
    runs = [json.loads(line) for line in arguments.output.read_text().splitlines()] if arguments.output.exists() else []
    if arguments.report is None:
        # A training ends with the iteration in which it has enough
        done = {
            (run["family"], run["agent"], run["seed"])
            for run in runs
            if (wanted := arguments.timesteps or FAMILIES[run["family"]]["timesteps"])
            <= run["curve"][-1][0]
            < max(1.1 * wanted, wanted + 20_000)
        }
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        missing = [
            (family, agent, seed, arguments.timesteps)
            for family in arguments.families
            for seed in arguments.seeds
            for agent in arguments.agents
            if (family, agent, seed) not in done
        ]
        origin = facts()
        with multiprocessing.get_context("spawn").Pool(arguments.jobs, maxtasksperchild=1) as pool:
            for run in pool.imap_unordered(_train, missing):
                run.update(origin)
                with arguments.output.open("a") as file:
                    file.write(json.dumps(run) + "\n")
                runs.append(run)
                print(
                    f"[{len(runs)}] {run['family']} {run['agent']} seed {run['seed']}: {final_returns(run):.2f} at the end, "
                    f"{mean_returns(run):.2f} on the whole, {run['seconds']:.0f} s",
                    flush=True,
                )
    folder = arguments.report or arguments.output.parent
    folder.mkdir(parents=True, exist_ok=True)
    for family in arguments.families:
        report(runs, family, folder)


def _train(job: tuple[str, str, int, int | None]) -> dict[str, Any]:
    return train(*job)


if __name__ == "__main__":
    main()

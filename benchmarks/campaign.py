"""
How well and how fast do agents adapt? Trains agents, evaluates them on unseen tasks, keeps the results.

    python benchmarks/campaign.py --families HalfCheetahVel-v0 --agents trmrl rl2 --seeds 0 1 2    # what is missing of these
    python benchmarks/campaign_report.py                                                           # docs/results.md

Agents have the settings of ``hyperparams/*.yml``. A finished run is a line in ``--results`` and is not run again; a broken-off
one goes on from its last checkpoint in ``--folder`` (sb3-contrib's RecurrentPPO and the references start again). Each run has
``--threads`` threads; ``--jobs`` of them run at once.
"""

import argparse
import importlib.metadata
import json
import multiprocessing
import os
import platform
import signal
import subprocess
import sys
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

# Set before torch starts its own threads
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch as th
from sb3_contrib import RecurrentPPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecNormalize

from sb3_trmrl import evaluate_adaptation, load
from sb3_trmrl.common import argument_types
from sb3_trmrl.common.env_util import make_meta_vec_env
from sb3_trmrl.common.evaluation import AdaptationResult, make_trials
from sb3_trmrl.common.references import RandomAgent, SeesTasks, train_reference
from sb3_trmrl.common.safe_write import replace_file
from sb3_trmrl.hub import PretrainedCheckpointCallback, latest_checkpoint, save_pretrained
from sb3_trmrl.hub.description import describe_hyperparameters
from sb3_trmrl.zoo import ALGORITHMS
from sb3_trmrl.zoo import settings as zoo_settings

RESULTS = Path(__file__).resolve().parent / "results" / "campaign.jsonl"
SPEED_RESULTS = RESULTS.with_name("speed.jsonl")
"""Short runs, one after another on a quiet machine, for their seconds alone."""
N_TASKS, N_EPISODES = 20, 6
EVAL_SEEDS = {"returns": 0, "fresh_returns": 1000}
"""Every agent meets the same tasks and starts of episodes: those of seed 0, on which settings were chosen, and fresh ones."""

SETTINGS = {"trmrl": "trmrl", "paper": "trmrl_paper", "rl2": "rl2"}
"""Files of ``hyperparams/``, by the name of the agent."""
REFERENCES = ("oracle", "reactive", "blind")
CHANGES: dict[str, tuple[str, dict[str, Any]]] = {
    "rl2-lstm": ("rl2", {"policy_kwargs.memory_encoder": "lstm"}),
    "trmrl-window": (
        "trmrl",
        {
            "policy_kwargs.memory_encoder_kwargs.attention": "window",
            "policy_kwargs.memory_encoder_kwargs.memory_length": 5,
            "policy_kwargs.memory_reset": "episode",
        },
    ),
    "trmrl-64-steps-reset-trial": (
        "trmrl",
        {"policy_kwargs.memory_encoder_kwargs.memory_length": 64, "policy_kwargs.memory_reset": "trial"},
    ),
    "trmrl-whole-trial": ("trmrl", {"policy_kwargs.memory_encoder_kwargs.memory_length": 1024}),
    "trmrl-16-steps": ("trmrl", {"policy_kwargs.memory_encoder_kwargs.memory_length": 16}),
    "trmrl-64-steps": ("trmrl", {"policy_kwargs.memory_encoder_kwargs.memory_length": 64}),
    "trmrl-256-steps": ("trmrl", {"policy_kwargs.memory_encoder_kwargs.memory_length": 256}),
    "trmrl-64-steps-1-layer": (
        "trmrl",
        {"policy_kwargs.memory_encoder_kwargs.memory_length": 64, "policy_kwargs.memory_encoder_kwargs.n_layers": 1},
    ),
    "trmrl-64-steps-ff-256": (
        "trmrl",
        {"policy_kwargs.memory_encoder_kwargs.memory_length": 64, "policy_kwargs.memory_encoder_kwargs.ff_dim": 256},
    ),
    "trmrl-constant-lr": ("trmrl", {"learning_rate": 3e-4}),
    "trmrl-batch-800": ("trmrl", {"batch_size": 800}),
    "trmrl-10-epochs": ("trmrl", {"n_epochs": 10}),
    "trmrl-std-0.6": ("trmrl", {"policy_kwargs.log_std_init": -0.5}),
    "trmrl-gamma-0.95": ("trmrl", {"gamma": 0.95}),
    "trmrl-bootstrap-episode-end": ("trmrl", {"bootstrap_episode_end": True}),
    "trmrl-batch-1600-5-epochs": ("trmrl", {"batch_size": 1600, "n_epochs": 5}),
    "trmrl-batch-1600-5-epochs-bootstrap-episode-end": (
        "trmrl",
        {"batch_size": 1600, "n_epochs": 5, "bootstrap_episode_end": True},
    ),
    "rl2-batch-800-10-epochs": ("rl2", {"batch_size": 800, "n_epochs": 10}),
    "trmrl-xavier": ("trmrl", {"policy_kwargs.memory_encoder_kwargs.initialization": "xavier"}),
    "trmrl-4-layers": ("trmrl", {"policy_kwargs.memory_encoder_kwargs.n_layers": 4}),
    "trmrl-ff-256": ("trmrl", {"policy_kwargs.memory_encoder_kwargs.ff_dim": 256}),
    "trmrl-1-layer": ("trmrl", {"policy_kwargs.memory_encoder_kwargs.n_layers": 1}),
    "paper-xavier": ("paper", {"policy_kwargs.memory_encoder_kwargs.initialization": "xavier"}),
    "paper-window-1": ("paper", {"policy_kwargs.memory_encoder_kwargs.memory_length": 1}),
    "paper-window-10": ("paper", {"policy_kwargs.memory_encoder_kwargs.memory_length": 10}),
    "paper-1-layer": ("paper", {"policy_kwargs.memory_encoder_kwargs.n_layers": 1}),
}
"""One factor at a time: which agent, and what of its settings is other."""
RECURRENT_PPO = {
    "recurrent_ppo": dict(shared_lstm=True, enable_critic_lstm=False),
    "recurrent_ppo-two-lstms": dict(shared_lstm=False, enable_critic_lstm=True),
}
"""sb3-contrib's ways of having an LSTM: one for actor and critic, and its default, one for each."""
AGENTS = (*SETTINGS, *RECURRENT_PPO, *REFERENCES, *CHANGES)


def read_settings(file: str, env_id: str, changes: dict[str, Any] | None = None) -> dict[str, Any]:
    """
    :param file: Name of a file in ``hyperparams/``, without suffix.
    :param env_id: Its block.
    :param changes: Other values, by names like ``"policy_kwargs.memory_reset"``.
    :return: The block as RL Zoo reads it.
    """
    block = zoo_settings.read_settings(file, env_id)
    for name, value in (changes or {}).items():
        *path, last = name.split(".")
        place = block
        for part in path:
            place = place.setdefault(part, {})
        place[last] = value
    return block


def make_model(file: str, env_id: str, seed: int, changes: dict[str, Any] | None = None, device: str = "cpu") -> BaseAlgorithm:
    """
    :param file: Name of a file in ``hyperparams/``, without suffix.
    :param env_id: Its block.
    :param seed: Seed of everything.
    :param changes: See :func:`read_settings`.
    :param device: Where the agent is trained.
    :return: The agent that RL Zoo makes of the block, with its environments.
    """
    block = read_settings(file, env_id, changes)
    del block["n_timesteps"]
    env = make_meta_vec_env(env_id, block.pop("n_envs"), seed, env_kwargs=block.pop("env_kwargs"))
    algorithm = ALGORITHMS[file.removesuffix("_paper")].algorithm
    return algorithm(block.pop("policy"), env, seed=seed, device=device, **block)


def make_recurrent_ppo(agent: str, env_id: str, seed: int, device: str) -> RecurrentPPO:
    """
    :param agent: One of ``RECURRENT_PPO``.
    :param env_id: A block of ``hyperparams/trmrl.yml``, whose settings of PPO it gets.
    :param seed: Seed of everything.
    :param device: Where it is trained.
    :return: sb3-contrib's RecurrentPPO, as wide as our transformer, behind ``VecNormalize`` since it does not normalise.
    """
    block = read_settings("trmrl", env_id)
    policy_kwargs = block.pop("policy_kwargs")
    for name in ("n_timesteps", "policy", "bootstrap_episode_end"):
        block.pop(name, None)
    env = make_meta_vec_env(env_id, block.pop("n_envs"), seed, env_kwargs=block.pop("env_kwargs"))
    return RecurrentPPO(
        "MlpLstmPolicy",
        VecNormalize(env, gamma=block["gamma"]),
        seed=seed,
        device=device,
        policy_kwargs=dict(
            lstm_hidden_size=policy_kwargs["memory_encoder_kwargs"]["embed_dim"],
            **RECURRENT_PPO[agent],
            log_std_init=policy_kwargs.get("log_std_init", 0.0),
        ),
        **block,
    )


class Progress(BaseCallback):
    """
    Learning curve and time, in a file after every iteration so that a resumed run has the whole of it.

    :param path: The file.
    """

    def __init__(self, path: Path):
        super().__init__()
        self.path = path
        self.points: list[list[Any]] = []
        self._trials: list[list[float]] = []
        self._start, self._before = 0.0, 0.0

    def _on_training_start(self) -> None:
        steps = self.model.num_timesteps
        if steps > 0:  # resumed: what came after the checkpoint is done again
            self.points = [point for point in json.loads(self.path.read_text()) if point[0] <= steps]
            self._before = self.points[-1][1]
        self._start = time.perf_counter()

    def _on_step(self) -> bool:
        self._trials += [info["trial"]["returns"] for info in self.locals["infos"] if "trial" in info]
        return True

    def _on_rollout_end(self) -> None:
        if self._trials:
            means = np.mean(self._trials, axis=0).round(2).tolist()
            self.points.append([self.num_timesteps, round(self.seconds, 1), means])
            self._trials = []
            replace_file(self.path, lambda path: path.write_text(json.dumps(self.points)))

    @property
    def seconds(self) -> float:
        """Seconds of training, those before a resumption included."""
        return self._before + time.perf_counter() - self._start


def train(agent: str, env_id: str, seed: int, timesteps: int, folder: Path, device: str) -> tuple[BaseAlgorithm, Progress]:
    """
    :param agent: One of ``AGENTS``.
    :param env_id: The family.
    :param seed: Seed of everything.
    :param timesteps: Steps of training.
    :param folder: For checkpoints, and for the trained agent.
    :param device: Where it is trained; references always on the CPU.
    :return: The agent, and the course of its training.
    """
    folder.mkdir(parents=True, exist_ok=True)
    progress = Progress(folder / "progress.json")
    if agent in REFERENCES:
        reference = train_reference(agent, env_id, seed, timesteps, callback=progress)
        reference.save(folder / "final")  # its features are code of its own, so with pickle
        return reference, progress
    if agent in RECURRENT_PPO:
        return make_recurrent_ppo(agent, env_id, seed, device).learn(timesteps, callback=progress), progress
    base, changes = CHANGES.get(agent, (agent, {}))
    checkpoint = latest_checkpoint(folder)
    model: Any = make_model(SETTINGS[base], env_id, seed, changes, device)
    if checkpoint is not None:
        settings = describe_hyperparameters(model)
        model = load(checkpoint, device=device)
        if describe_hyperparameters(model) != settings:
            raise ValueError(
                f"{checkpoint} was trained with other settings than those of now: remove it, or give another --folder."
            )
    saving = PretrainedCheckpointCallback(max(1, timesteps // 20), folder, keep_last=1, score=lambda model: None)
    # None left: only the evaluation was broken off
    model.learn(max(0, timesteps - model.num_timesteps), callback=[progress, saving], reset_num_timesteps=False)
    what = f"--families {env_id} --agents {agent} --seeds {seed} --timesteps {timesteps}"
    what += "" if device == "cpu" else f" --device {device}"
    model.train_command = f"OMP_NUM_THREADS=1 python benchmarks/campaign.py {what}"
    save_pretrained(model, folder / "final", training_state=False)
    return model, progress


def evaluate(agent: str, model: BaseAlgorithm, env_id: str, split: str, seed: int) -> AdaptationResult:
    """
    :param agent: One of ``AGENTS``.
    :param model: The trained agent.
    :param env_id: The family.
    :param split: Where tasks are drawn from.
    :param seed: Which tasks and starts; one of ``EVAL_SEEDS``.
    :return: Its returns.
    """
    player: Any = model
    settings: dict[str, Any] = dict(n_tasks=N_TASKS, n_episodes=N_EPISODES, split=split, seed=seed)
    if agent == "oracle":
        # Which tasks these are, it has to be told before
        anyone = RandomAgent(make_trials(env_id, {}).action_space, seed=0)
        tasks = evaluate_adaptation(anyone, env_id, **{**settings, "n_episodes": 1}).tasks
        player = SeesTasks(model, tasks)
    return evaluate_adaptation(player, env_id, **settings)


def run(agent: str, env_id: str, seed: int, timesteps: int, folder: Path, threads: int, device: str) -> dict[str, Any]:
    """
    Train, evaluate.

    :param agent: One of ``AGENTS``.
    :param env_id: The family.
    :param seed: Seed of everything.
    :param timesteps: Steps of training.
    :param folder: For checkpoints, and for the trained agent.
    :param threads: Of torch.
    :param device: Where it is trained and evaluated.
    :return: The line of the file of results.
    """
    th.set_num_threads(threads)
    warnings.simplefilter("ignore")
    model, progress = train(agent, env_id, seed, timesteps, folder, device)
    splits = [split for split in ("test", "ood") if split in make_trials(env_id, {}).meta_env.splits]
    return dict(
        family=env_id,
        agent=agent,
        seed=seed,
        timesteps=model.num_timesteps,
        threads=threads,
        device=str(model.device) if model.device.type == "cpu" else th.cuda.get_device_name(model.device),
        seconds=round(progress.seconds, 1),
        parameters=sum(parameter.numel() for parameter in model.policy.parameters()),
        curve=thinned(progress.points),
        # (n_tasks, n_episodes) each
        **{
            name: {split: evaluate(agent, model, env_id, split, eval_seed).returns.round(2).tolist() for split in splits}
            for name, eval_seed in EVAL_SEEDS.items()
        },
    )


def thinned(points: list[list[Any]], at_most: int = 100) -> list[list[Any]]:
    """
    :param points: Steps, seconds and mean return of each episode, for each iteration.
    :param at_most: How many are wanted.
    :return: As many or fewer points: means over equally many neighbours, which end at the last one's steps and seconds.
    """
    together = -(-len(points) // at_most)
    parts = [points[start : start + together] for start in range(0, len(points), together)]
    return [[*part[-1][:2], np.mean([point[2] for point in part], axis=0).round(2).tolist()] for part in parts]


def facts() -> dict[str, Any]:
    """:return: What a number depends on, beside the settings."""
    here = Path(__file__).parent
    command = ["git", "rev-parse", "--short", "HEAD"]
    try:
        commit = subprocess.run(command, capture_output=True, text=True, cwd=here, check=False).stdout.strip()
    except OSError:  # no git
        commit = ""
    packages = ("sb3_trmrl", "stable_baselines3", "sb3_contrib", "rl_zoo3", "torch", "gymnasium", "mujoco", "numpy")
    return dict(
        commit=commit,
        versions={name: importlib.metadata.version(name) for name in packages},
        machine=f"{platform.machine()}, {os.cpu_count()} cores",
        date=time.strftime("%Y-%m-%d"),
    )


def read_results(path: Path) -> list[dict[str, Any]]:
    """
    :param path: File of results.
    :return: Its runs; none if there is no file.
    """
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def main() -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", required=True, metavar="ID", help="blocks of hyperparams/*.yml")
    parser.add_argument("--agents", nargs="+", choices=AGENTS, required=True)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--timesteps", type=int, default=2_000_000)
    parser.add_argument("--threads", type=int, default=1, help="of each run; what an agent learns depends on it")
    parser.add_argument(
        "--device",
        type=argument_types.device,
        default="cpu",
        help="cpu or cuda, whose runs belong into --results of their own",
    )
    parser.add_argument("--jobs", type=int, default=1, help="runs at once")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--folder", type=Path, default=Path("runs/campaign"), help="for checkpoints and trained agents")
    arguments = parser.parse_args()
    for name in ("timesteps", "threads", "jobs"):
        if getattr(arguments, name) < 1:
            parser.error(f"argument --{name}: must be at least 1, got {getattr(arguments, name)}")
    for family in arguments.families:
        if "env_kwargs" not in zoo_settings.read_settings("trmrl", family):
            parser.error(f"argument --families: {family} has no block in hyperparams/trmrl.yml")
    if arguments.device != "cpu" and arguments.results == RESULTS:
        parser.error(f"argument --device: runs on {arguments.device} belong into --results of their own")
    timesteps = arguments.timesteps
    # A training ends with the iteration in which it has enough: of at most 20,000 steps
    done = {
        (line["family"], line["agent"], line["seed"])
        for line in read_results(arguments.results)
        if timesteps <= line["timesteps"] < max(1.1 * timesteps, timesteps + 20_000) and line["threads"] == arguments.threads
    }
    threads = "" if arguments.threads == 1 else f"_{arguments.threads}_threads"
    device = "" if arguments.device == "cpu" else f"_{arguments.device}"
    missing = [
        (
            agent,
            family,
            seed,
            timesteps,
            arguments.folder / f"{family}_{agent}_seed{seed}_{timesteps}_steps{threads}{device}",
            arguments.threads,
            arguments.device,
        )
        for family in arguments.families
        for seed in arguments.seeds
        for agent in arguments.agents
        if (family, agent, seed) not in done
    ]
    print(f"{len(missing)} runs of {timesteps:,} steps to do")
    arguments.results.parent.mkdir(parents=True, exist_ok=True)
    origin = facts()
    # Killed, the pool ends its runs; or they would go on alone
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    failed = 0
    with multiprocessing.get_context("spawn").Pool(arguments.jobs, maxtasksperchild=1) as pool:
        for number, line in enumerate(pool.imap_unordered(_run, missing), start=1):
            if isinstance(line, str):
                failed += 1
                print(f"[{number}/{len(missing)}] {line}", file=sys.stderr, flush=True)
                continue
            with arguments.results.open("a") as file:
                file.write(json.dumps({**line, **origin}) + "\n")
            curve = np.mean(line["returns"]["test"], axis=0)
            print(
                f"[{number}/{len(missing)}] {line['family']} {line['agent']} seed {line['seed']}: return per episode "
                f"{curve.round(1).tolist()} on unseen tasks, {line['seconds'] / 60:.0f} minutes",
                flush=True,
            )
    if failed:
        sys.exit(f"{failed} of {len(missing)} runs failed")


def _run(job: tuple[str, str, int, int, Path, int, str]) -> dict[str, Any] | str:
    agent, family, seed, *_ = job
    try:
        return run(*job)
    except Exception:  # the other runs go on
        return f"{family} {agent} seed {seed} failed:\n{traceback.format_exc()}"


if __name__ == "__main__":
    main()

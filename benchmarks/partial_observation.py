"""
PPO with a memory where velocities are hidden: ours against sb3-contrib's RecurrentPPO, which has RL Zoo's own tuned settings.

    python benchmarks/partial_observation.py                         # what is missing, then the table of docs/guide/memory.md
    python benchmarks/partial_observation.py --agents trmrl rl2 --results mine.jsonl    # prints its table

One environment without tasks per run, trained and evaluated by RL Zoo (``python -m rl_zoo3.train --algo AGENT --env ID``),
with ``hyperparams/trmrl.yml`` and ``rl2.yml``, and with the zoo's ``ppo_lstm.yml``. A finished run is a line in ``--results``.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from campaign import RESULTS, facts, read_results
from campaign_report import DOCS, origin, page_of, returned, write_sections

PUBLISHED = RESULTS.with_name("partial_observation.jsonl")
ENVIRONMENTS = {"CartPoleNoVel-v1": 100_000, "PendulumNoVel-v1": 100_000}
"""Steps of training of each, the zoo's for ``ppo_lstm``."""
AGENTS = {
    "trmrl": "TrMRL (`trmrl.yml`)",
    "rl2": "RL2 (`rl2.yml`)",
    "ppo_lstm": "RecurrentPPO (sb3-contrib, the zoo's `ppo_lstm.yml`)",
}
N_EVALUATIONS, N_EPISODES = 10, 20


def run(agent: str, env_id: str, seed: int) -> dict[str, Any]:
    """
    Train and evaluate with RL Zoo.

    :param agent: One of ``AGENTS``.
    :param env_id: One of ``ENVIRONMENTS``.
    :param seed: Seed of everything.
    :return: The line of the file of results; ``evaluations`` are returns, ``(N_EVALUATIONS, N_EPISODES)``.
    """
    timesteps = ENVIRONMENTS[env_id]
    command = [sys.executable, "-m", "rl_zoo3.train", "--algo", agent, "--env", env_id, "--seed", str(seed)]
    command += ["--n-timesteps", str(timesteps), "--device", "cpu", "--verbose", "0"]
    command += ["--eval-freq", str(timesteps // N_EVALUATIONS), "--eval-episodes", str(N_EPISODES)]
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        subprocess.run(
            [*command, "--log-folder", folder],
            check=True,
            stdout=subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        seconds = time.perf_counter() - start
        with np.load(next(Path(folder).glob("*/*/evaluations.npz"))) as file:
            steps, returns = file["timesteps"], file["results"]
    return dict(
        env=env_id,
        agent=agent,
        seed=seed,
        timesteps=timesteps,
        threads=1,
        seconds=round(seconds, 1),
        steps=steps.tolist(),
        evaluations=returns.round(2).tolist(),
    )


def table(runs: list[dict[str, Any]]) -> str:
    """
    :param runs: Lines of the file of results.
    :return: Return of the last evaluation, mean over all of them, minutes; in Markdown.
    """
    lines = [
        "| environment | agent | seeds | return at the end | over the whole training | minutes |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for env_id in ENVIRONMENTS:
        for agent, label in AGENTS.items():
            of_agent = [run for run in runs if (run["env"], run["agent"]) == (env_id, agent)]
            if of_agent:
                # Returns, (n_seeds, N_EVALUATIONS)
                returns = np.array([np.mean(run["evaluations"], axis=-1) for run in of_agent])
                cells = [returned(returns[:, -1:]), returned(returns.mean(axis=-1, keepdims=True))]
                minutes = np.mean([run["seconds"] for run in of_agent]) / 60
                lines.append(f"| {env_id} | {label} | {len(of_agent)} | {' | '.join(cells)} | {minutes:.1f} |")
    return "\n".join(lines)


def main() -> None:
    """Run what is missing, write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--environments", nargs="+", choices=ENVIRONMENTS, default=list(ENVIRONMENTS))
    parser.add_argument("--agents", nargs="+", choices=AGENTS, default=list(AGENTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--results", type=Path, default=PUBLISHED)
    parser.add_argument("--page", type=Path, help="where the table goes; the published results: docs/guide/memory.md")
    arguments = parser.parse_args()
    runs = read_results(arguments.results)
    done = {(line["env"], line["agent"], line["seed"]) for line in runs}
    origin_of_new = facts()
    page = arguments.page or page_of(arguments.results, PUBLISHED, DOCS / "guide" / "memory.md")
    arguments.results.parent.mkdir(parents=True, exist_ok=True)
    for seed in arguments.seeds:
        for env_id in arguments.environments:
            for agent in arguments.agents:
                if (env_id, agent, seed) not in done:
                    line = {**run(agent, env_id, seed), **origin_of_new}
                    with arguments.results.open("a") as file:
                        file.write(json.dumps(line) + "\n")
                    runs.append(line)
                    curve = np.mean(line["evaluations"], axis=-1).round().tolist()
                    print(f"{env_id} {agent} seed {seed}: {curve}, {line['seconds']:.0f} s", flush=True)
    write_sections(page, {"partial observation": f"{table(runs)}\n\n{origin(runs)}"})


if __name__ == "__main__":
    main()

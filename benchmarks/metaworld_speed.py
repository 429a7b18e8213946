"""
Steps per second and start-up of Meta-World's ML1 in our vectorised environments, SB3's and gymnasium's, and the limits.

A measurement is one whole episode of every slot (500 steps and the reset after them), with the same random actions. All rows
take turns for ``--rounds`` rounds, so that a machine whose speed drifts treats them alike; the median counts. Everything runs
on the cores that the process may use: give it a quiet machine, since rows of one process suffer less from other work.

- gymnasium: ``SyncVectorEnv`` and ``AsyncVectorEnv`` as Meta-World itself makes them (``metaworld.make_ml_envs``, with numbers
  of tasks that do not trip its assertion), over its own environments.
- SB3's ``DummyVecEnv`` and ``SubprocVecEnv`` and our ``ProcessVecEnv`` over the trial environments of this package.
- Limits: environments that step by themselves in the processes of a ``ProcessVecEnv``, without any crossing; one environment
  in one process, times the number of cores; raw ``mj_step``, times the number of cores.

    python benchmarks/metaworld_speed.py
    python benchmarks/metaworld_speed.py --task push-v3 --slots 20 --rounds 5
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from typing import Any, Protocol

# Set before numpy and torch start their own threads
os.environ.setdefault("OMP_NUM_THREADS", "1")

import gymnasium as gym
import metaworld
import mujoco
import numpy as np
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv

import sb3_trmrl  # noqa: F401 (registers the environments)
from sb3_trmrl.common.env_util import make_meta_vec_env
from sb3_trmrl.common.vec_env import ProcessVecEnv
from sb3_trmrl.common.vec_env.work_sharing import n_usable_cores

HORIZON = 500
"""Steps of an episode."""
N_ACTIONS = 100
"""Random actions are drawn once and repeated."""


def parse_arguments() -> argparse.Namespace:
    """:return: The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="reach-v3", help="name in Meta-World")
    parser.add_argument("--slots", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    return parser.parse_args()


def random_actions(n_envs: int) -> np.ndarray:
    """:return: Actions ``(N_ACTIONS, n_envs, 4)``."""
    return np.random.default_rng(0).uniform(-1.0, 1.0, (N_ACTIONS, n_envs, 4)).astype(np.float32)


class Candidate(Protocol):
    """What is measured."""

    def play(self) -> int:
        """:return: Number of environment steps: one episode of every slot."""

    def close(self) -> None:
        """End it."""


class Vectorised:
    """
    A vectorised environment, SB3's or gymnasium's.

    :param env: The environment.
    """

    def __init__(self, env: Any):
        self.env = env
        self.actions = random_actions(env.num_envs)
        self.env.reset()

    def play(self) -> int:
        """:return: Number of steps."""
        for step in range(HORIZON):
            self.env.step(self.actions[step % N_ACTIONS])
        return HORIZON * int(self.env.num_envs)

    def close(self) -> None:
        """End it."""
        self.env.close()


def make_trials(task: str, n_envs: int, vec_env_cls: Any) -> VecEnv:
    """:return: A VecEnv of the trial environments."""
    return make_meta_vec_env(f"ML1-{task}", n_envs=n_envs, seed=0, vec_env_cls=vec_env_cls)


def make_gymnasium(task: str, n_envs: int, strategy: str) -> gym.vector.VectorEnv[Any, Any, Any]:
    """:return: Meta-World's own vector env, with a new task at each reset."""
    env = metaworld.make_ml_envs(
        task,
        seed=0,
        meta_batch_size=n_envs,
        total_tasks_per_cls=50 // n_envs * n_envs,
        split="train",
        vector_strategy=strategy,
        terminate_on_success=False,
        task_select="pseudorandom",
    )
    env.call("toggle_sample_tasks_on_reset", True)
    return env


class PlaysByItself(gym.Wrapper[Any, Any, Any, Any]):
    """Steps itself, where it is."""

    def play(self) -> int:
        """:return: Number of steps."""
        for action in np.resize(random_actions(1)[:, 0], (HORIZON, 4)):
            _, _, terminated, truncated, _ = self.step(action)
            if terminated or truncated:
                self.reset()
        return HORIZON


class WithoutCrossing:
    """
    The slots of a ProcessVecEnv, which step by themselves.

    :param task: Name in Meta-World.
    :param n_envs: Slots.
    """

    def __init__(self, task: str, n_envs: int):
        def make() -> gym.Env[Any, Any]:
            return PlaysByItself(Monitor(gym.make(f"ML1-{task}")))

        self.env = ProcessVecEnv([make] * n_envs)
        self.env.seed(0)
        self.env.reset()

    def play(self) -> int:
        """:return: Number of steps."""
        return sum(self.env.env_method("play"))

    def close(self) -> None:
        """End it."""
        self.env.close()


class Alone:
    """
    One environment.

    :param env: The environment.
    """

    def __init__(self, env: gym.Env[Any, Any]):
        self.env = PlaysByItself(env)
        self.env.reset()

    def play(self) -> int:
        """:return: Number of steps."""
        return self.env.play()

    def close(self) -> None:
        """End it."""
        self.env.close()


def make_metaworld_env(task: str) -> gym.Env[Any, Any]:
    """:return: One environment of Meta-World's own vector env, with its wrappers."""
    vector_env = make_gymnasium(task, 1, "sync")
    assert isinstance(vector_env, gym.vector.SyncVectorEnv)
    return vector_env.envs[0]


class RawPhysics:
    """
    ``mj_step`` and nothing else on the clock, for one of Meta-World's environments.

    :param task: Name in Meta-World.
    """

    def __init__(self, task: str):
        self.env = make_metaworld_env(task)
        self.actions = random_actions(1)[:, 0]

    def speed(self) -> float:
        """:return: Environment steps per second (each is ``frame_skip`` physics steps)."""
        self.env.reset()
        simulation: Any = self.env.unwrapped
        on_the_clock = 0.0
        for step in range(HORIZON):
            action = self.actions[step % N_ACTIONS]
            simulation.set_xyz_action(action[:3])
            simulation.data.ctrl[:] = action[-1], -action[-1]
            start = time.perf_counter()
            mujoco.mj_step(simulation.model, simulation.data, nstep=simulation.frame_skip)
            on_the_clock += time.perf_counter() - start
        return HORIZON / on_the_clock


def speed(candidate: Candidate) -> float:
    """:return: Environment steps per second."""
    start = time.perf_counter()
    n_steps = candidate.play()
    return n_steps / (time.perf_counter() - start)


def main() -> None:
    """Measure and print."""
    arguments = parse_arguments()
    task, n_envs, n_cores = arguments.task, arguments.slots, n_usable_cores()
    makers: dict[str, Callable[[], Candidate]] = {
        "ProcessVecEnv": lambda: Vectorised(make_trials(task, n_envs, ProcessVecEnv)),
        "DummyVecEnv": lambda: Vectorised(make_trials(task, n_envs, DummyVecEnv)),
        "SubprocVecEnv": lambda: Vectorised(make_trials(task, n_envs, SubprocVecEnv)),
        "gymnasium's SyncVectorEnv": lambda: Vectorised(make_gymnasium(task, n_envs, "sync")),
        "gymnasium's AsyncVectorEnv": lambda: Vectorised(make_gymnasium(task, n_envs, "async")),
        "limit: processes without crossing": lambda: WithoutCrossing(task, n_envs),
        f"limit: one trial environment x {n_cores}": lambda: Alone(Monitor(gym.make(f"ML1-{task}"))),
        f"limit: one raw environment x {n_cores}": lambda: Alone(make_metaworld_env(task)),
    }
    candidates: dict[str, Candidate] = {}
    start_up: dict[str, float] = {}
    for name, make in makers.items():
        start = time.perf_counter()
        candidates[name] = make()
        start_up[name] = time.perf_counter() - start
    raw_physics = RawPhysics(task)
    physics = f"limit: raw mj_step x {n_cores}"
    speeds: dict[str, list[float]] = {name: [] for name in (*candidates, physics)}
    for _ in range(arguments.rounds):
        for name, candidate in candidates.items():
            speeds[name].append(speed(candidate) * (n_cores if isinstance(candidate, Alone) else 1))
        speeds[physics].append(raw_physics.speed() * n_cores)
    for candidate in candidates.values():
        candidate.close()

    ours = statistics.median(speeds["ProcessVecEnv"])
    load = ", ".join(f"{average:.1f}" for average in os.getloadavg())
    print(f"ML1-{task}, {n_envs} slots, {n_cores} cores, mujoco {mujoco.__version__}, gymnasium {gym.__version__}")
    print(f"median of {arguments.rounds} rounds; load average at the end {load} (our own part of it: about {n_cores})\n")
    print("| | steps/s | rounds from .. to | ProcessVecEnv is faster by | start-up (s) |\n|---|---:|---:|---:|---:|")
    for name, rounds in speeds.items():
        median = statistics.median(rounds)
        started = f"{start_up[name]:.1f}" if not name.startswith("limit") else ""
        print(f"| {name} | {median:,.0f} | {min(rounds):,.0f} .. {max(rounds):,.0f} | {ours / median:.2f}x | {started} |")


if __name__ == "__main__":
    main()

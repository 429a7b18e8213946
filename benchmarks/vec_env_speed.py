"""
Steps per second of MujocoVecEnv, DummyVecEnv and SubprocVecEnv against the machine's limit, and where the time goes.

The limit is raw ``mj_step`` on one thread, on the same trials with the same random actions, times the number of cores. All
rows take turns for ``--rounds`` rounds, so that a machine whose speed drifts treats them alike; the best round counts, of the
breakdown too.

    python benchmarks/vec_env_speed.py
    python benchmarks/vec_env_speed.py --families AntDir-v0 HumanoidDir-v0 --slots 20 --seconds 2
"""

import argparse
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import cycle
from typing import Any

# Set before numpy and torch start their own threads
os.environ.setdefault("OMP_NUM_THREADS", "1")

import mujoco
import numpy as np
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv

from sb3_trmrl.common.env_util import make_meta_vec_env
from sb3_trmrl.common.vec_env import MujocoVecEnv
from sb3_trmrl.common.vec_env.work_sharing import n_usable_cores

N_ACTIONS = 100
"""Random actions are drawn once and repeated."""


def parse_arguments() -> argparse.Namespace:
    """:return: The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", default=["HalfCheetahVel-v0", "AntDir-v0", "HumanoidDir-v0"])
    parser.add_argument("--slots", nargs="+", type=int, default=[20, 64])
    parser.add_argument("--seconds", type=float, default=0.5, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=12)
    return parser.parse_args()


class RawPhysics:
    """
    ``mj_step`` and nothing else on the clock, for the trials that the candidates play: their tasks, starts and actions.

    Episodes come one after another, so that a simulation stays in the processor's cache. Those of a single slot would not do:
    one humanoid's falls under its 100 actions are 6 % cheaper or dearer to compute than those of 20.

    :param env_id: Family.
    :param n_envs: Slots.
    """

    def __init__(self, env_id: str, n_envs: int):
        self.env = make_meta_vec_env(env_id, n_envs=n_envs, seed=0, vec_env_cls=DummyVecEnv)
        self.actions = random_actions(self.env)
        self.env.reset()
        self.n_steps = [0] * n_envs
        self.slots = cycle(range(n_envs))

    def measure(self, seconds: float) -> float:
        """
        :param seconds: Time to take, about.
        :return: Environment steps per second (each is ``frame_skip`` physics steps).
        """
        on_the_clock, n_before = 0.0, sum(self.n_steps)
        while on_the_clock < seconds:
            on_the_clock += self.play_episode(next(self.slots))
        return (sum(self.n_steps) - n_before) / on_the_clock

    def play_episode(self, slot: int) -> float:
        """
        :param slot: Whose.
        :return: Seconds on the clock.
        """
        self.env.env_method("reset", indices=slot)
        (family,) = self.env.get_attr("meta_env", slot)
        on_the_clock = 0.0
        for _ in range(family.horizon):
            family.data.ctrl[:] = family.controls(self.actions[self.n_steps[slot] % N_ACTIONS, slot])
            start = time.perf_counter()
            mujoco.mj_step(family.model, family.data, nstep=family.frame_skip)
            on_the_clock += time.perf_counter() - start
            self.n_steps[slot] += 1
            if family.terminations(family._state)[0]:
                break
        return on_the_clock


def random_actions(env: VecEnv) -> np.ndarray:
    """:return: Actions ``(N_ACTIONS, n_envs, nu)``."""
    rng = np.random.default_rng(0)
    return rng.uniform(-1.0, 1.0, (N_ACTIONS, env.num_envs, *env.action_space.shape)).astype(np.float32)  # type: ignore[misc]


class Candidate:
    """
    A vectorised environment that keeps its trials between measurements.

    :param env_id: Family.
    :param n_envs: Slots.
    :param vec_env_cls: Its class.
    """

    def __init__(self, env_id: str, n_envs: int, vec_env_cls: Any):
        self.env = make_meta_vec_env(env_id, n_envs=n_envs, seed=0, vec_env_cls=vec_env_cls)
        self.actions = random_actions(self.env)
        self.env.reset()
        self.n_steps = 0

    def measure(self, seconds: float) -> float:
        """
        :param seconds: Time to take, about.
        :return: Environment steps of all slots per second.
        """
        start, n_before = time.perf_counter(), self.n_steps
        while (taken := time.perf_counter() - start) < seconds:
            self.env.step(self.actions[self.n_steps % N_ACTIONS])
            self.n_steps += 1
        return (self.n_steps - n_before) * self.env.num_envs / taken


@contextmanager
def stopwatch(owner: Any, name: str, seconds: dict[str, float], label: str) -> Iterator[None]:
    """
    Add the time spent in a method of an object to ``seconds[label]``.

    :param owner: The object.
    :param name: Name of its method.
    :param seconds: Where to add it.
    :param label: Under which name.
    """
    method: Callable[..., Any] = getattr(owner, name)
    seconds.setdefault(label, 0.0)

    def timed(*args: Any) -> Any:
        start = time.perf_counter()
        result = method(*args)
        seconds[label] += time.perf_counter() - start
        return result

    setattr(owner, name, timed)
    try:
        yield
    finally:
        delattr(owner, name)


def measure_parts(candidate: Candidate, seconds: float) -> dict[str, float]:
    """
    Where the time of a step goes.

    :param candidate: A MujocoVecEnv.
    :param seconds: Time to measure.
    :return: Seconds per step by part.
    """
    env: Any = candidate.env
    spent: dict[str, float] = {}
    n_before = candidate.n_steps
    with (
        stopwatch(env._physics, "step", spent, "physics (native, all threads)"),
        stopwatch(env._family, "rewards", spent, "rewards"),
        stopwatch(env._family, "observe", spent, "observations"),
        stopwatch(env._family, "terminations", spent, "terminations"),
        stopwatch(env, "_clip_actions", spent, "actions: check, clip"),
        stopwatch(env, "_make_tokens", spent, "tokens"),
        stopwatch(env, "_end_episode", spent, "ends of episodes: monitor, infos, resets"),
    ):
        start = time.perf_counter()
        candidate.measure(seconds)
        total = time.perf_counter() - start
    spent["the rest: states, blow-ups, infos"] = total - sum(spent.values())
    n_steps = candidate.n_steps - n_before
    return {label: part / n_steps for label, part in spent.items()}


def print_breakdown(parts: dict[str, float], n_envs: int, limit: float) -> None:
    """
    :param parts: See :func:`measure_parts`.
    :param n_envs: Slots.
    :param limit: Steps per second of raw physics on all cores.
    """
    total, ideal = sum(parts.values()), n_envs / limit
    print(f"\n| a step of {n_envs} slots | us | share |\n|---|---:|---:|")
    for label, part in sorted(parts.items(), key=lambda item: -item[1]):
        print(f"| {label} | {1e6 * part:.0f} | {part / total:.1%} |")
    print(f"| (the limit) | {1e6 * ideal:.0f} | {ideal / total:.1%} |")


def main() -> None:
    """Measure and print."""
    arguments = parse_arguments()
    n_cores = n_usable_cores()
    print(f"mujoco {mujoco.__version__}, {n_cores} cores, best of {arguments.rounds} rounds of {arguments.seconds} s")
    for env_id in arguments.families:
        for n_envs in arguments.slots:
            raw_physics = RawPhysics(env_id, n_envs)
            candidates = {cls.__name__: Candidate(env_id, n_envs, cls) for cls in (MujocoVecEnv, DummyVecEnv, SubprocVecEnv)}
            raw = 0.0
            best = dict.fromkeys(candidates, 0.0)
            parts = []
            for _ in range(arguments.rounds):
                raw = max(raw, raw_physics.measure(arguments.seconds))
                for name, candidate in candidates.items():
                    best[name] = max(best[name], candidate.measure(arguments.seconds))
                parts.append(measure_parts(candidates["MujocoVecEnv"], arguments.seconds))
            limit, native = raw * n_cores, best["MujocoVecEnv"]
            print(f"\n## {env_id}, {n_envs} slots\n")
            print("| | steps/s | of the limit | MujocoVecEnv is faster by |\n|---|---:|---:|---:|")
            print(f"| raw mj_step x {n_cores} | {limit:,.0f} | 100 % | |")
            for name, speed in best.items():
                print(f"| {name} | {speed:,.0f} | {100 * speed / limit:.0f} % | {native / speed:.1f}x |")
            print_breakdown(min(parts, key=lambda part: sum(part.values())), n_envs, limit)
            for candidate in candidates.values():
                candidate.env.close()


if __name__ == "__main__":
    main()

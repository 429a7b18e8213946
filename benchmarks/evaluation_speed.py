"""
What evaluation costs beside its acting and physics: 20 tasks x 6 episodes x 200 steps of HalfCheetahVel.

    OMP_NUM_THREADS=1 python benchmarks/evaluation_speed.py

Each repetition times, one after the other,

- `evaluate_adaptation(model, "HalfCheetahVel-v0")`, all of it: making environments, tasks, tokens, rewards, resets, results,
- a loop of nothing but its acting and physics, in turn as there: the policy's forward pass on the same tokens with the same
  memory; MuJoCo's steps of all slots in one native call, from the same states with the same motors,

so that the load of the machine weighs on both alike. The ratio is the median over the repetitions, of wall-clock time and of
processor time (all threads).
"""

import argparse
import importlib.metadata
import os
import time
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch as th

from sb3_trmrl import TrMRLPPO, evaluate_adaptation
from sb3_trmrl.common.env_util import make_meta_vec_env
from sb3_trmrl.common.vec_env import MujocoVecEnv

ENV_ID = "HalfCheetahVel-v0"


class Recorder:
    """
    Acts as the model and writes down what it saw, what it did and where the simulations were.

    :param model: The model.
    :param vec_env: What it acts in.
    """

    def __init__(self, model: TrMRLPPO, vec_env: MujocoVecEnv):
        self.model, self.vec_env = model, vec_env
        self.tokens: list[np.ndarray] = []
        self.starts: list[np.ndarray] = []
        self.states: list[np.ndarray] = []
        self.actions: list[np.ndarray] = []

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[np.ndarray, Any]:
        """See ``PredictsActions``."""
        actions, state = self.model.predict(observation, state, episode_start, deterministic)
        self.tokens.append(observation.copy())
        self.starts.append(episode_start.copy())
        self.states.append(self.vec_env._physics.state.copy())
        self.actions.append(actions.copy())
        return actions, state


class Stopwatch:
    """Wall-clock and processor time since it was made."""

    def __init__(self) -> None:
        self.start = np.array([time.perf_counter(), time.process_time()])

    def read(self) -> np.ndarray:
        """:return: Seconds of wall clock and of processor, ``(2,)``."""
        return np.array([time.perf_counter(), time.process_time()]) - self.start


def time_acting_and_physics(recorder: Recorder) -> np.ndarray:
    """
    :param recorder: What happened.
    :return: Seconds of the policy's forward passes and MuJoCo's steps in turn, see :class:`Stopwatch`.
    """
    policy, physics = recorder.model.policy, recorder.vec_env._physics
    policy.set_training_mode(False)
    tokens, starts = th.as_tensor(np.stack(recorder.tokens)), th.as_tensor(np.stack(recorder.starts))
    controls = [action.astype(np.float64) for action in recorder.actions]
    watch = Stopwatch()
    memory = policy.actor_memory.initial_state(tokens.shape[1])
    with th.no_grad():
        for t, (state, control) in enumerate(zip(recorder.states, controls, strict=True)):
            distribution, memory = policy.get_distribution(tokens[t], memory, starts[t])
            distribution.get_actions(deterministic=True)
            physics.state[:] = state
            physics.step(control)
    return watch.read()


def main() -> None:
    """Print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--n-tasks", type=int, default=20)
    parser.add_argument("--n-episodes", type=int, default=6)
    arguments = parser.parse_args()
    th.set_num_threads(1)
    model = TrMRLPPO("TrMRLPolicy", ENV_ID, device="cpu", seed=0)
    sizes = dict(n_tasks=arguments.n_tasks, n_episodes=arguments.n_episodes)
    vec_env = make_meta_vec_env(ENV_ID, arguments.n_tasks, env_kwargs=dict(episodes_per_trial=arguments.n_episodes))
    assert isinstance(vec_env, MujocoVecEnv)
    recorder = Recorder(model, vec_env)
    evaluate_adaptation(recorder, vec_env, **sizes)
    ratios = []
    print(f"{arguments.n_tasks} tasks x {arguments.n_episodes} episodes x 200 steps of {ENV_ID}")
    columns = "evaluation (s)  acting and physics (s)  ratio"
    print(f"{'wall clock: ' + columns:>58}   {'processor: ' + columns:>58}")
    for _ in range(arguments.repetitions):
        watch = Stopwatch()
        evaluate_adaptation(model, ENV_ID, **sizes)
        evaluation = watch.read()
        alone = time_acting_and_physics(recorder)
        ratios.append(evaluation / alone)
        cells = [f"{evaluation[clock]:27.2f}  {alone[clock]:22.2f}  {ratios[-1][clock]:5.2f}" for clock in (0, 1)]
        print("   ".join(cells), flush=True)
    names = ("torch", "stable-baselines3", "gymnasium", "mujoco", "numpy")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
    wall, processor = np.median(ratios, axis=0)
    print(f"median ratio of {len(ratios)} repetitions: {wall:.2f} (wall clock), {processor:.2f} (processor); {versions}")
    vec_env.close()


if __name__ == "__main__":
    main()

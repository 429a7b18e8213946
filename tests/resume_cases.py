"""
Trainings that ``test_resume.py`` runs in processes of their own::

    python resume_cases.py <folder> <part>:<case> ...

``whole`` trains to the end, ``first`` trains half of it and saves, ``killed`` trains with checkpoints until it kills itself in
the middle of a rollout, ``rest`` loads and trains to the end. Each prints, as JSON, what it ended with.
"""

import hashlib
import json
import os
import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import KVWriter, Logger
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecNormalize

import sb3_trmrl
from sb3_trmrl import RL2PPO, TrMRLPPO
from sb3_trmrl.common.env_util import make_meta_vec_env
from sb3_trmrl.common.on_policy_algorithm import MemoryPPO
from sb3_trmrl.common.vec_env import ProcessVecEnv
from sb3_trmrl.hub import PretrainedCheckpointCallback, latest_checkpoint

SMALL: dict[str, Any] = dict(embed_dim=8, n_heads=2, n_layers=1)
COMMON: dict[str, Any] = dict(batch_size=24, n_epochs=2, seed=3, device="cpu")


def trmrl(env: Any, n_steps: int, **kwargs: Any) -> TrMRLPPO:
    policy_kwargs = {"net_arch": [8], "memory_encoder_kwargs": SMALL, **kwargs.pop("policy_kwargs", {})}
    return TrMRLPPO("TrMRLPolicy", env, n_steps=n_steps, **COMMON, policy_kwargs=policy_kwargs, **kwargs)


def point_robot() -> MemoryPPO:
    # Rollouts of 10 steps end in the middle of episodes of 7 and of trials of 21
    env = make_meta_vec_env("PointRobot-v0", 3, seed=0, env_kwargs=dict(episodes_per_trial=3, horizon=7))
    return trmrl(env, 10, learning_rate=LinearSchedule(1e-2, 1e-4, 0.9), clip_range=LinearSchedule(0.3, 0.1, 1.0))


def bandit_rl2() -> MemoryPPO:
    env = make_meta_vec_env("MetaBandit-v0", 3, seed=0, env_kwargs=dict(n_arms=3, horizon=4, split="ood"))
    kwargs = dict(net_arch=[8], memory_encoder_kwargs=dict(hidden_size=8, context_length=5))
    return RL2PPO("RL2Policy", env, n_steps=10, **COMMON, policy_kwargs=kwargs)


def cheetah_batched() -> MemoryPPO:
    env = make_meta_vec_env("HalfCheetahVel-v0", 3, seed=0, env_kwargs=dict(horizon=9))
    assert type(env).__name__ == "MujocoVecEnv"
    window = dict(memory_encoder_kwargs=dict(attention="window", memory_length=4, **SMALL))
    return trmrl(env, 12, policy_kwargs=window)


def cheetah_gsde() -> MemoryPPO:
    env = make_meta_vec_env("HalfCheetahDir-v0", 2, seed=0, env_kwargs=dict(horizon=9), vec_env_cls=DummyVecEnv)
    return trmrl(env, 12, use_sde=True, sde_sample_freq=4)


def walker_rand_params() -> MemoryPPO:
    env = make_meta_vec_env("Walker2DRandParams-v0", 2, seed=0, env_kwargs=dict(horizon=15))
    return trmrl(env, 12)


def subprocesses() -> MemoryPPO:
    env = make_meta_vec_env("SparsePointRobot-v0", 2, seed=0, env_kwargs=dict(horizon=7), vec_env_cls=SubprocVecEnv)
    return trmrl(env, 12)


def processes() -> MemoryPPO:
    env = make_meta_vec_env("SparsePointRobot-v0", 3, seed=0, env_kwargs=dict(horizon=7), vec_env_cls=ProcessVecEnv)
    return trmrl(env, 12)


def two_phases() -> MemoryPPO:
    env = make_meta_vec_env("PointRobot-v0", 3, seed=0, env_kwargs=dict(horizon=7))
    update = dict(value_learning_rate=1e-3, policy_decay=dict(start=1, end=3, factor=0.1))
    return trmrl(env, 10, two_phase_update=update, policy_kwargs=dict(value_log_std_init=0.0))


def episodes_separate_critic() -> MemoryPPO:
    env = make_meta_vec_env("PointRobot-v0", 3, seed=0, env_kwargs=dict(horizon=7))
    return trmrl(env, 10, policy_kwargs=dict(memory_reset="episode", critic="separate"))


def vec_normalize() -> MemoryPPO:
    env = make_meta_vec_env("PointRobot-v0", 3, seed=0, env_kwargs=dict(horizon=7))
    return trmrl(VecNormalize(env, norm_obs=False), 10)


CASES: dict[str, Callable[[], MemoryPPO]] = {
    case.__name__: case
    for case in (
        point_robot,
        bandit_rl2,
        cheetah_batched,
        cheetah_gsde,
        walker_rand_params,
        subprocesses,
        processes,
        two_phases,
        episodes_separate_critic,
        vec_normalize,
    )
}
#: Wrappers are not part of a file
NEEDS_ENV = ("subprocesses", "processes", "vec_normalize")


class Rows(KVWriter):
    """Keeps what is logged."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """:param step: Number of steps; what depends on the clock, or counts calls of ``learn``, is left out."""
        self.rows.append({"step": step, **{key: float(value) for key, value in key_values.items() if key[:5] != "time/"}})

    def close(self) -> None:
        """Nothing to close."""


class KillMidRollout(BaseCallback):
    """:param steps: After how many steps the process kills itself, as ``kill -9`` does."""

    def __init__(self, steps: int):
        super().__init__()
        self.steps = steps

    def _on_step(self) -> bool:
        if self.num_timesteps >= self.steps:
            os.kill(os.getpid(), signal.SIGKILL)
        return True


def sha(*arrays: Any) -> str:
    return hashlib.sha256(b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)).hexdigest()[:16]


def fingerprint(model: MemoryPPO, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """:return: What a training has come to, bit for bit; looked up here without the code that saves it."""
    tensors = model.policy.state_dict()
    optimizers = [model.policy.optimizer]
    if isinstance(model, TrMRLPPO) and model.two_phase_update is not None:
        optimizers.append(model.value_optimizer)
    moments = [
        value
        for optimizer in optimizers
        for _, entry in sorted(optimizer.state_dict()["state"].items())
        for _, value in sorted(entry.items())
    ]
    assert model.env is not None and model.ep_info_buffer is not None and model.trial_info_buffer is not None
    # What the environments do next, with random numbers of their own
    future: list[Any] = [model._last_obs]
    actions = np.random.default_rng(0)
    for _ in range(30):
        if isinstance(model.action_space, spaces.Discrete):
            action: Any = actions.integers(model.action_space.n, size=model.n_envs)
        else:
            action = actions.uniform(-1, 1, (model.n_envs, *model.action_space.shape))  # type: ignore[misc]
        obs, rewards, dones, _ = model.env.step(action)
        future += [obs, rewards, dones]
    return {
        "weights": sha(*tensors.values()),
        "normalizer": sha(*(value for key, value in tensors.items() if "normalizer" in key)),
        "optimizers": sha(*moments),
        "learning_rates": [group["lr"] for optimizer in optimizers for group in optimizer.param_groups],
        "python": random.random(),
        "numpy": float(np.random.random()),  # noqa: NPY002 (the state of this generator is what is looked at)
        "torch": float(th.rand(())),
        "action_space": np.asarray(model.action_space.sample()).tolist(),
        "environments": sha(*future),
        "episodes": [[info["r"], info["l"]] for info in model.ep_info_buffer],
        "trials": json.dumps(list(model.trial_info_buffer)),
        "counters": [model.num_timesteps, model._n_updates, model.n_iterations, model._current_progress_remaining],
        "log": rows,
    }


def total_steps(model: MemoryPPO) -> int:
    return 4 * model.n_steps * model.n_envs


def run(part: str, folder: Path, case: str) -> dict[str, Any] | None:
    if part == "rest":
        source = latest_checkpoint(folder / case) or folder / case
        env = CASES[case]().env if case in NEEDS_ENV else None
        model = sb3_trmrl.load(source, env=env, device="cpu")
    else:
        model = CASES[case]()
    rows = Rows()
    model.set_logger(Logger(folder=None, output_formats=[rows]))
    total = total_steps(model)
    if part == "first":
        model.learn(total // 2)
        model.save_pretrained(folder / case)
    elif part == "killed":
        save = PretrainedCheckpointCallback(total // 4, folder / case, keep_last=1)
        model.learn(total, callback=[save, KillMidRollout(total * 5 // 8)])
    else:
        model.learn(total - model.num_timesteps, reset_num_timesteps=False)
    return fingerprint(model, rows.rows) if part in ("whole", "rest") else None


if __name__ == "__main__":
    th.set_num_threads(1)
    where, *what = sys.argv[1:]
    results = {}
    for part, case in (pair.split(":") for pair in what):
        results[f"{part}:{case}"] = run(part, Path(where), case)
    print(json.dumps(results))

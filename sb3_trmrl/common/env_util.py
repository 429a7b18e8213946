"""Vectorised trial environments."""

import contextlib
import importlib
import multiprocessing
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv

from sb3_trmrl.common.arguments import check_integers, is_integer
from sb3_trmrl.common.vec_env import MujocoVecEnv, ProcessVecEnv
from sb3_trmrl.common.vec_env.work_sharing import n_usable_cores
from sb3_trmrl.envs.meta_env import Task
from sb3_trmrl.envs.trial import TrialWrapper


class _GymMake:
    """
    ``gym.make`` of one id, as an object that can be sent to another process: it brings the id's registration along.

    :param env_id: A registered id, which may begin with the module that registers it (``"module:Id-v0"``).
    """

    def __init__(self, env_id: str):
        module, _, name = env_id.rpartition(":")  # as in gym.make: a module to import before
        if module:
            importlib.import_module(module)
        self.spec = gym.spec(name)

    def __call__(self, **env_kwargs: Any) -> gym.Env[Any, Any]:
        """
        :param env_kwargs: Keywords for ``gym.make``.
        :return: The environment, with ``render_mode="rgb_array"`` where it has that and no other was asked for.
        """
        if "render_mode" not in env_kwargs:
            # An environment without the keyword, or without the mode; what else is wrong is raised below, too
            with contextlib.suppress(TypeError, ValueError):
                return gym.make(self.spec, render_mode="rgb_array", **env_kwargs)
        return gym.make(self.spec, **env_kwargs)


def fastest_vec_env(env_fns: list[Callable[[], gym.Env[Any, Any]]], **vec_env_kwargs: Any) -> VecEnv:
    """
    :param env_fns: Functions that make the environments.
    :param vec_env_kwargs: Keywords for the vectorised environment.
    :return: ``MujocoVecEnv`` if it can step them; ``ProcessVecEnv`` for more than one of a family whose ``steps_are_slow``, if
        there is more than one core and processes may be started (not in a worker of ``multiprocessing.Pool``); else
        ``DummyVecEnv``.
    """
    if len(env_fns) == 0:
        raise ValueError("env_fns must hold at least one function, got none")
    first = env_fns[0]()
    has_workers = min(len(env_fns), n_usable_cores()) > 1 and not multiprocessing.current_process().daemon
    # With keywords it was chosen by the caller: DummyVecEnv has none
    if steps_are_slow(first) and (vec_env_kwargs or has_workers):
        first.close()
        return ProcessVecEnv(env_fns, **vec_env_kwargs)
    # Made once: a monitor would write its file again
    envs = [first, *(env_fn() for env_fn in env_fns[1:])]
    vec_env_cls: Callable[..., VecEnv] = MujocoVecEnv if MujocoVecEnv.can_step(envs) else DummyVecEnv
    return vec_env_cls([lambda env=env: env for env in envs], **vec_env_kwargs)


def steps_are_slow(env: gym.Env[Any, Any]) -> bool:
    """
    :param env: An environment.
    :return: Whether it is a trial environment of a family that says so, see ``MetaEnv.steps_are_slow``.
    """
    trial = env.unwrapped
    return isinstance(trial, TrialWrapper) and trial.meta_env.steps_are_slow


def make_meta_vec_env(
    env_id: str | Callable[..., gym.Env[Any, Any]],
    n_envs: int = 1,
    seed: int | None = None,
    start_index: int = 0,
    monitor_dir: str | None = None,
    env_kwargs: dict[str, Any] | None = None,
    vec_env_cls: type[DummyVecEnv] | type[SubprocVecEnv] | type[MujocoVecEnv] | type[ProcessVecEnv] | None = None,
    vec_env_kwargs: dict[str, Any] | None = None,
    monitor_kwargs: dict[str, Any] | None = None,
    tasks: Sequence[Task] | None = None,
) -> VecEnv:
    """
    SB3's ``make_vec_env`` for trial environments: monitored, every slot seeded differently, so every slot meets its own tasks.

    :param env_id: A registered id, or a callable that makes an environment.
    :param n_envs: Number of slots.
    :param seed: Slot ``i`` is seeded with ``seed + start_index + i``; None seeds at random.
    :param start_index: Index of the first slot.
    :param monitor_dir: Folder for monitor files; None writes none.
    :param env_kwargs: Keywords for every environment: ``episodes_per_trial``, ``split``, ``horizon``, ...
    :param vec_env_cls: Default: :func:`fastest_vec_env`.
    :param vec_env_kwargs: Keywords for it.
    :param monitor_kwargs: Keywords for ``Monitor``.
    :param tasks: One task for each slot, which plays nothing else. (``env_kwargs["tasks"]`` is another thing: a list that
        *every* slot goes through.)
    :return: The vectorised environment.
    :raises ValueError: If there is not one task for each slot, or one does not fit the family.
    """
    env_kwargs = env_kwargs or {}
    if not is_integer(n_envs, 1):
        raise ValueError(f"n_envs must be an integer >= 1, got {n_envs!r}")
    if tasks is not None:
        if len(tasks) != n_envs:
            raise ValueError(f"tasks must hold one task for each slot: got {len(tasks)} tasks for n_envs={n_envs}")
        if "tasks" in env_kwargs:
            raise ValueError("give either tasks (one for each slot) or env_kwargs['tasks'] (all for every slot), got both")
    if seed is not None:
        check_integers(dict(seed=seed), least=0)
        seed = int(seed)  # gymnasium takes no NumPy integers
    vec_env = make_vec_env(
        _GymMake(env_id) if isinstance(env_id, str) else env_id,
        n_envs=n_envs,
        seed=seed,
        start_index=start_index,
        monitor_dir=monitor_dir,
        env_kwargs=env_kwargs,
        vec_env_cls=vec_env_cls or fastest_vec_env,  # type: ignore[arg-type]
        vec_env_kwargs=vec_env_kwargs,
        monitor_kwargs=monitor_kwargs,
    )
    if seed is not None and start_index:
        # SB3 leaves start_index out of the seeds, so that two VecEnvs with one seed would play the same trials.
        vec_env.seed(seed + start_index)
    if tasks is not None:
        try:
            _set_tasks(vec_env, tasks, env_id)
        except BaseException:
            vec_env.close()
            raise
    return vec_env


def _set_tasks(vec_env: VecEnv, tasks: Sequence[Task], env_id: Any) -> None:
    if not vec_env.has_attr("set_tasks"):
        raise ValueError(f"tasks need a trial environment (see TrialWrapper), {env_id} is none")
    for slot, task in enumerate(tasks):
        try:
            vec_env.env_method("set_tasks", [task], indices=slot)
        except ValueError as error:
            # A slot has one task and counts it from zero
            raise ValueError(str(error).replace("tasks[0]", f"tasks[{slot}]", 1)) from None


def plays_trials(env: VecEnv) -> bool:
    """
    :param env: Any VecEnv, also one that answers every ``get_attr`` with None.
    :return: Whether its slots are trial environments.
    """
    return env.has_attr("episodes_per_trial") and is_integer(env.get_attr("episodes_per_trial", indices=0)[0], 1)

"""The base class of task families: one episode of one task."""

import copy
from abc import abstractmethod
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from gymnasium.error import ResetNeeded

from sb3_trmrl.common.arguments import did_you_mean, is_integer

Task = dict[str, Any]
"""
One MDP of a family, as JSON: floats and (nested) lists of floats by name, e.g. ``{"velocity": 1.3}``. A family with a
``check_task`` of its own may have other values (Meta-World: names of environments).
"""

EnvState = dict[str, Any]
"""State of a running environment as data: JSON, with numpy arrays as leaves."""
BIT_GENERATORS: dict[str, type[np.random.BitGenerator]] = {
    kind.__name__: kind
    for kind in (np.random.PCG64, np.random.PCG64DXSM, np.random.MT19937, np.random.Philox, np.random.SFC64)
}


def generator_state(generator: np.random.Generator | None) -> EnvState | None:
    """
    :param generator: A random generator.
    :return: Its state as data.
    """
    return None if generator is None else dict(generator.bit_generator.state)


def generator_from_state(state: EnvState | None) -> np.random.Generator | None:
    """
    :param state: What :func:`generator_state` returned.
    :return: A generator that goes on from there.
    :raises ValueError: If it is the state of no known generator.
    """
    if state is None:
        return None
    check_generator_state(state)
    name = state["bit_generator"]
    # The seed does not matter, the state follows; without one it would ask the system for entropy
    bit_generator: Any = BIT_GENERATORS[name](0)
    try:
        bit_generator.state = state
    except (TypeError, KeyError, IndexError, OverflowError) as error:
        raise ValueError(f"this is no state of the random generator {name}: {error!r}") from error
    return np.random.Generator(bit_generator)


def check_generator_state(state: EnvState) -> None:
    """
    numpy takes the position in a generator's buffer as it is told, and would read there, wherever that is.

    :param state: State of a random generator, which may come from a file of someone else.
    :raises ValueError: If it is of no known generator, or its position is outside of its buffer.
    """
    name = state.get("bit_generator") if isinstance(state, dict) else None
    if name not in BIT_GENERATORS:
        raise ValueError(f"random generator must be one of {sorted(BIT_GENERATORS)}, got {name!r}")
    position, size = 0, 0  # the others have none
    try:
        if name == "MT19937":
            position, size = state["state"]["pos"], 624
        elif name == "Philox":
            position, size = state["buffer_pos"], 4
    except (KeyError, TypeError) as error:
        raise ValueError(f"this is no state of the random generator {name}: {error!r}") from error
    if not is_integer(position, 0) or position > size:
        raise ValueError(f"position of the random generator {name} must be in [0, {size}], got {position!r}")


def checked_integer(name: str, value: Any, limit: int) -> int:
    """
    :param name: What it is
    :param value: A number of a state, which may come from a file of someone else
    :param limit: The largest that it may be
    :return: The number
    :raises ValueError: If it is no integer in [0, limit]
    """
    if not is_integer(value, 0) or value > limit:
        raise ValueError(f"{name} must be an integer in [0, {limit}], got {str(value)[:50]}")
    return int(value)


class MetaEnv(gym.Env[Any, Any]):
    """
    A family of tasks that share their spaces; an instance plays *one episode of one task* at a time.

    Wrap it in :class:`~sb3_trmrl.envs.trial.TrialWrapper` to get trials (several episodes of one task) with token
    observations, which is what the algorithms train on.

    A new family sets ``observation_space``, ``action_space`` and ``task_shapes`` and writes three methods::

        class Target(MetaEnv):
            splits = ("train", "test", "ood")
            task_shapes = {"position": ()}                                    # one number

            def __init__(self, horizon: int = 20):
                super().__init__(horizon)
                self.observation_space = spaces.Box(-np.inf, np.inf, (1,))
                self.action_space = spaces.Box(-1, 1, (1,))

            def _sample_task(self, split):                                    # randomness: self.np_random only
                low, high = (1.0, 2.0) if split == "ood" else (-1.0, 1.0)
                return {"position": self.np_random.uniform(low, high)}

            def _reset(self):                                                 # -> observation
                self.x = np.zeros(1)
                return self.x.copy()

            def _step(self, action):                                          # as gymnasium's step
                self.x += 0.1 * action
                reward = -abs(self.x[0] - self._task["position"])
                return self.x.copy(), reward, False, False, {}

    The base class counts steps and truncates at ``horizon``, checks and copies tasks, and guards the order of calls.
    Optional hooks: :meth:`_apply_task` (change the physics for a task), :meth:`check_task` (limits on the values),
    and ``info["success"]`` in every step where the family knows success.

    :param horizon: Steps per episode; the episode is truncated there. (Not called ``max_episode_steps``, because
        :func:`gymnasium.make` keeps that keyword to itself.)
    :param render_mode: One of ``metadata["render_modes"]``, or None.
    """

    splits: ClassVar[tuple[str, ...]] = ("train", "test")
    """The splits that the family has; one without tasks outside its training range leaves out ``"ood"``."""
    task_shapes: Mapping[str, tuple[int, ...]] = MappingProxyType({})
    """Shape of every task parameter, ``()`` for a number. An instance may set its own."""
    steps_are_slow: ClassVar[bool] = False
    """
    Whether a step takes so long in Python (more than about 50 microseconds) that slots are worth processes of their own:
    ``make_meta_vec_env`` then takes :class:`~sb3_trmrl.common.vec_env.ProcessVecEnv`.
    """

    def __init__(self, horizon: int, render_mode: str | None = None):
        if not is_integer(horizon, 1):
            raise ValueError(f"horizon must be an integer >= 1 (steps per episode), got {horizon!r}")
        if render_mode is not None and render_mode not in self.metadata["render_modes"]:
            raise ValueError(
                f"render_mode={render_mode!r} is unknown to {type(self).__name__}, use None or one of "
                f"{self.metadata['render_modes']}"
            )
        self.horizon = int(horizon)
        self.render_mode = render_mode
        self._task: Task = {}
        self._has_task = False
        self._elapsed_steps = 0
        self._needs_reset = True
        self.draws: dict[str, Any] = {}
        """What a family remembers from one draw of tasks to the next, as JSON; it belongs to the generator that draws."""

    # ---- tasks -------------------------------------------------------------------------------------------------

    def check_split(self, split: str) -> str:
        """
        :param split: Name of a split.
        :return: The name.
        :raises ValueError: If the family has no such split.
        """
        if split not in self.splits:
            hint = did_you_mean(split, self.splits)
            raise ValueError(f"split={split!r} does not exist in {type(self).__name__}, it has {list(self.splits)}.{hint}")
        return split

    def sample_tasks(self, n: int, split: str = "train") -> list[Task]:
        """
        Draw ``n`` independent tasks with ``self.np_random``.

        :param n: Number of tasks, at least 1.
        :param split: Where to draw from, one of ``splits``.
        :return: The tasks.
        :raises ValueError: On ``n < 1`` or an unknown split.
        """
        if not is_integer(n, 1):
            raise ValueError(f"n must be an integer >= 1 (number of tasks), got {n!r}")
        self.check_split(split)
        return [self.check_task(self._sample_task(split)) for _ in range(n)]

    def check_task(self, task: Task) -> Task:
        """
        Check a task without setting it. A family with limits on its values extends this.

        :param task: Values by name.
        :return: A copy in which every value is a float or (nested) list of floats.
        :raises ValueError: On a missing or unknown key, a wrong shape, or a value that is no finite number.
        """
        name = type(self).__name__
        if not isinstance(task, Mapping):
            raise ValueError(f"task must be a dict with the keys {sorted(self.task_shapes)} for {name}, got {task!r}")
        if set(task) != set(self.task_shapes):
            missing, unknown = sorted(set(self.task_shapes) - set(task)), sorted(set(task) - set(self.task_shapes), key=str)
            raise ValueError(
                f"task of {name} must have exactly the keys {sorted(self.task_shapes)}, got {sorted(task, key=str)}"
                f" (missing: {missing}, unknown: {unknown})"
            )
        checked: Task = {}
        for key, shape in self.task_shapes.items():
            try:
                value = np.asarray(task[key])
            except ValueError as error:  # a ragged list
                raise ValueError(f"task[{key!r}] of {name} must have shape {tuple(shape)}, got {task[key]!r}") from error
            if value.dtype.kind not in "iuf":
                raise ValueError(f"task[{key!r}] of {name} must be numbers of shape {tuple(shape)}, got {task[key]!r}")
            if value.shape != tuple(shape):
                raise ValueError(
                    f"task[{key!r}] of {name} must have shape {tuple(shape)}, got shape {value.shape}: {task[key]!r}"
                )
            if not np.isfinite(value).all():
                raise ValueError(f"task[{key!r}] of {name} must be finite, got {task[key]!r}")
            checked[key] = value.astype(np.float64).tolist()
        return checked

    def set_task(self, task: Task) -> None:
        """
        Choose the task. Takes effect at the next :meth:`reset`, which has to follow.

        :param task: Values by name, see ``task_shapes``.
        :raises ValueError: See :meth:`check_task`.
        """
        self._task = self.check_task(task)
        self._has_task = True
        self._needs_reset = True
        self._apply_task(self._task)

    def get_task(self) -> Task:
        """
        :return: A copy of the current task.
        :raises RuntimeError: If no task was set.
        """
        self._require_task("get_task()")
        # Through check_task: it rebuilds every list, so that the caller can't change our task.
        return self.check_task(self._task)

    def _require_task(self, caller: str) -> None:
        if not self._has_task:
            name = type(self).__name__
            raise RuntimeError(
                f"{name} has no task yet: call set_task(env.sample_tasks(1)[0]) before {caller}, or let "
                f"TrialWrapper({name}(...)) draw the tasks."
            )

    # ---- one episode -------------------------------------------------------------------------------------------

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """
        Start an episode of the current task.

        :param seed: Seed of ``self.np_random``; with it the episode is fully determined by the task and the actions.
        :param options: Has to be None or empty.
        :return: Observation and info.
        """
        super().reset(seed=seed)
        if seed is not None:
            self.draws = {}
        if options:
            raise ValueError(f"options of {type(self).__name__}.reset() must be empty, got {options!r}")
        self._require_task("reset()")
        self._elapsed_steps = 0
        self._needs_reset = False
        return self._reset(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """
        One step of the episode.

        :param action: An element of ``action_space``.
        :return: Observation, reward, terminated, truncated (by :meth:`_step`, or at ``horizon``), info.
        :raises gymnasium.error.ResetNeeded: Before :meth:`reset`, after :meth:`set_task` or after the episode's end.
        """
        if self._needs_reset:
            raise ResetNeeded(f"{type(self).__name__}.step() needs a reset() first: no episode of the current task is running")
        observation, reward, terminated, truncated, info = self._step(action)
        self._elapsed_steps += 1
        truncated = truncated or self._elapsed_steps >= self.horizon
        self._needs_reset = terminated or truncated
        return observation, reward, terminated, truncated, info

    # ---- the state of a running episode, for checkpoints of training ---------------------------------------------

    def get_state(self) -> EnvState | None:
        """
        :return: All that an episode goes on from: task, progress, random generator and what :meth:`_get_state` adds; None for
            a family that does not write that.
        """
        family = self._get_state()
        if family is None:
            return None
        return {
            "task": self.get_task() if self._has_task else None,
            "elapsed_steps": self._elapsed_steps,
            "draws": copy.deepcopy(self.draws),
            "needs_reset": self._needs_reset,
            "np_random": generator_state(self._np_random),
            "np_random_seed": self._np_random_seed,
            "family": family,
        }

    def set_state(self, state: EnvState) -> None:
        """
        Go on from a state, bit for bit.

        :param state: What :meth:`get_state` returned, of an environment made with the same arguments.
        :raises ValueError: If it does not fit.
        """
        if state["task"] is not None:
            self.set_task(state["task"])
        self._elapsed_steps = checked_integer("elapsed_steps", state["elapsed_steps"], self.horizon)
        self.draws = copy.deepcopy(dict(state.get("draws", {})))  # version 0.1.0 wrote none
        self._needs_reset = bool(state["needs_reset"])
        self._np_random = generator_from_state(state["np_random"])
        self._np_random_seed = state["np_random_seed"]
        self._set_state(state["family"])

    # ---- what a family writes ----------------------------------------------------------------------------------

    @abstractmethod
    def _sample_task(self, split: str) -> Task:
        """
        :param split: One of ``splits``.
        :return: One task, drawn with ``self.np_random`` and nothing else.
        """

    @abstractmethod
    def _reset(self) -> Any:
        """:return: First observation of an episode of ``self._task``."""

    @abstractmethod
    def _step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """
        :param action: An element of ``action_space``.
        :return: Observation, reward, terminated, truncated, info. The horizon is not this method's business.
        """

    def _apply_task(self, task: Task) -> None:
        """
        Hook for families whose task changes more than the reward, called by :meth:`set_task`.

        :param task: The new task. Start from pristine values: nothing of the previous task may stay.
        """

    def _get_state(self) -> EnvState | None:
        """
        Hook for exact resumption of training.

        :return: What changes during an episode, beside the task: JSON with numpy arrays as leaves. The default, None, says
            that nobody knows; a training that is resumed then starts with fresh trials.
        """
        return None

    def _set_state(self, state: EnvState) -> None:
        """
        :param state: What :meth:`_get_state` returned, here or in another process.
        """

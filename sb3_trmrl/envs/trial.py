"""Trials: several episodes of one task as one gymnasium episode with token observations (docs/guide/concepts.md)."""

import copy
import inspect
import math
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.error import ResetNeeded

from sb3_trmrl.common.arguments import is_integer
from sb3_trmrl.envs.meta_env import EnvState, MetaEnv, Task, checked_integer, generator_from_state, generator_state

VECTOR_SPACES = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)


def _is_image(space: spaces.Space[Any]) -> bool:
    return isinstance(space, spaces.Box) and space.dtype == np.uint8 and len(space.shape) == 3


def _vector_bounds(space: spaces.Space[Any], name: str) -> tuple[np.ndarray, np.ndarray]:
    """
    Bounds of a space as a vector: Box flattened, Discrete and MultiDiscrete one-hot, MultiBinary as it is.

    :param space: The space.
    :param name: Argument name for the error.
    :return: ``low (size,)`` and ``high (size,)``, float32.
    :raises ValueError: If the space is none of the four.
    """
    if not isinstance(space, VECTOR_SPACES):
        raise ValueError(
            f"{name} must be one of {[kind.__name__ for kind in VECTOR_SPACES]}, got {space}; "
            "wrap the environment so that it has one of these"
        )
    flat = spaces.utils.flatten_space(space)
    assert isinstance(flat, spaces.Box)
    return flat.low.astype(np.float32), flat.high.astype(np.float32)


class TokenSpace(spaces.Box):
    """
    Flat float32 Box ``[obs | prev_action | prev_reward | prev_done]`` that knows its parts.

    A policy reads the slices to treat the parts differently (normalise only the observation, say). A wrapper that
    changes observations publishes a plain Box instead: then the parts are unknown, as they should be.

    Bounds: observation and action as in their spaces (one-hot in [0, 1]), the reward unbounded, done in [0, 1].

    :param observation_space: Observation space of the base environment: Box (flattened), Discrete and
        MultiDiscrete (one-hot) or MultiBinary.
    :param action_space: Its action space, one of the same four.
    :raises ValueError: On another kind of space.
    """

    def __init__(self, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]):
        observation_low, observation_high = _vector_bounds(observation_space, "observation_space")
        action_low, action_high = _vector_bounds(action_space, "action_space")
        self.observation_size = observation_low.size
        self.action_size = action_low.size
        super().__init__(
            np.concatenate([observation_low, action_low, np.array([-np.inf, 0.0], np.float32)]),
            np.concatenate([observation_high, action_high, np.array([np.inf, 1.0], np.float32)]),
            dtype=np.float32,
        )

    @property
    def observation_slice(self) -> slice:
        """:return: Where the observation stands in the token."""
        return slice(0, self.observation_size)

    @property
    def action_slice(self) -> slice:
        """:return: Where the previous action stands in the token."""
        return slice(self.observation_size, self.observation_size + self.action_size)

    @property
    def reward_slice(self) -> slice:
        """:return: Where the previous reward stands in the token (one entry)."""
        return slice(self.observation_size + self.action_size, self.observation_size + self.action_size + 1)

    @property
    def done_slice(self) -> slice:
        """:return: Where the "previous step ended an episode" flag stands in the token (one entry)."""
        return slice(self.observation_size + self.action_size + 1, self.observation_size + self.action_size + 2)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, TokenSpace)
            and self.observation_size == other.observation_size
            and self.action_size == other.action_size
            and bool(super().__eq__(other))
        )

    def __repr__(self) -> str:
        return f"TokenSpace(observation={self.observation_size}, action={self.action_size}, reward=1, done=1)"


def is_of(identity: EnvState, saved: EnvState) -> bool:
    """
    :param identity: What an environment is.
    :param saved: What the environment was whose state was saved.
    :return: Whether they are the same, as far as ``saved`` tells: version 0.1.0 wrote no settings at first.
    """
    return {"settings": identity["settings"], **saved} == identity


class TrialWrapper(gym.Env[Any, Any]):
    """
    Trials of a task family: ``episodes_per_trial`` episodes of one task make *one gymnasium episode*.

    It holds the base environment as a member (``env``) and is no :class:`gymnasium.Wrapper`: ``unwrapped`` is the
    trial environment itself, whose spaces and episodes are its own.

    **Tokens.** A vector observation becomes one flat float32 vector, see :class:`TokenSpace`. The last three parts are
    zero at the first step of a trial. At the first step of a later episode they hold the last action and reward of the
    episode before it, and ``prev_done = 1``; the wrapper makes that inner reset itself, in the same step. Image (uint8
    with three axes) and Dict observations keep their keys (an image gets ``"observation"``) beside ``"prev_action"``,
    ``"prev_reward"`` and ``"prev_done"``.

    **Actions** outside the bounds of a Box are clipped, for the base environment and for the token alike.

    **Trial end.** ``truncated`` if the last episode was cut by its time limit, ``terminated`` if it really ended. The
    observation of that step is the last episode's final one.

    **Info.** At each episode's end ``info["inner_episode"] = {"index" (from 1), "r", "l", "terminated"}`` (whether it really
    ended), at the trial's end ``info["trial"] = {"task", "returns", "lengths"}``. Families that report ``info["success"]``
    per step add ``"success"`` to both (any step of the episode; a list in the latter) and ``info["is_success"]``, the success
    of the last episode.

    **Randomness.** ``reset(seed=...)`` re-seeds everything. Tasks come from a stream of their own, one for each split, so
    the same seed meets the same tasks whatever the policy does, and other tasks in another split.

    :param env: A :class:`MetaEnv`, possibly wrapped.
    :param episodes_per_trial: Episodes of one task in a trial.
    :param split: Split that tasks are drawn from.
    :param tasks: Play these tasks instead: in order, from the first again after the last and after a seeded reset.
    :raises ValueError: On a base environment without tasks, spaces that make no token, ``episodes_per_trial < 1``, an
        unknown split, an empty list of tasks or a task that does not fit the family.
    """

    def __init__(
        self,
        env: gym.Env[Any, Any],
        episodes_per_trial: int = 2,
        split: str = "train",
        tasks: Sequence[Task] | None = None,
    ):
        if not isinstance(env, gym.Env) or not isinstance(env.unwrapped, MetaEnv):
            raise ValueError(f"env must be a MetaEnv (possibly wrapped), got {env!r}; see docs/guide/environments.md")
        if missing := [name for name in ("horizon", "observation_space", "action_space") if not hasattr(env.unwrapped, name)]:
            raise ValueError(
                f"{type(env.unwrapped).__name__} has no {' and no '.join(missing)}: its constructor has to call "
                "super().__init__(horizon) and to set observation_space and action_space; see docs/guide/environments.md"
            )
        if not is_integer(episodes_per_trial, 1):
            raise ValueError(f"episodes_per_trial must be an integer >= 1, got {episodes_per_trial!r}")
        self.env = env
        self.meta_env: MetaEnv = env.unwrapped
        self.episodes_per_trial = int(episodes_per_trial)
        self.split = self.meta_env.check_split(split)
        self.metadata = env.metadata
        self.render_mode = env.render_mode
        self.action_space = env.action_space
        self._action_size = _vector_bounds(env.action_space, "action_space")[0].size
        self.observation_space, self._make_token = self._choose_token()
        self._token_size = self.observation_space.shape[0] if isinstance(self.observation_space, TokenSpace) else 0
        self._tasks: list[Task] | None = None
        self._next_task = 0
        self.set_tasks(tasks)
        self._seed: int | None = None
        self._task_generators: dict[str, np.random.Generator] = {}
        self._task_draws: dict[str, dict[str, Any]] = {}
        self._running = False
        # The trial so far, one entry per finished episode
        self._returns: list[float] = []
        self._lengths: list[int] = []
        self._successes: list[bool] = []
        # The running episode
        self._episode_return = 0.0
        self._episode_length = 0
        self._episode_success = False
        # Whether the family has ever told success
        self._has_success = False

    # ---- tasks -------------------------------------------------------------------------------------------------

    def get_task(self) -> Task:
        """:return: A copy of the task of the running trial."""
        return self.meta_env.get_task()

    def sample_tasks(self, n: int, split: str | None = None) -> list[Task]:
        """
        Draw tasks, with the generator of this environment.

        :param n: Number of tasks.
        :param split: One of the family's splits; None is the split of this environment.
        :return: The tasks.
        """
        split = self.meta_env.check_split(self.split if split is None else split)
        if split not in self._task_generators:
            # The split is part of the seed: with one seed for training and testing, no task of the one is met in the other.
            entropy = int(self.np_random.integers(2**31)) if self._seed is None else self._seed
            self._task_generators[split] = np.random.default_rng([entropy, zlib.crc32(split.encode())])
        # The base environment's generator is for its episodes; lend it ours, so that tasks do not depend on how much
        # randomness the episodes before have used.
        family = self.meta_env
        episode_generator, own_draws = family.np_random, family.draws
        family.np_random, family.draws = self._task_generators[split], self._task_draws.setdefault(split, {})
        try:
            return family.sample_tasks(n, split)
        finally:
            family.np_random, family.draws = episode_generator, own_draws

    def set_tasks(self, tasks: Sequence[Task] | None) -> None:
        """
        Play these tasks from the next trial on: in order, and from the first again after the last.

        :param tasks: At least one task; None to draw them from the split.
        :raises ValueError: If the list is empty or a task does not fit the family.
        """
        if tasks is None:
            self._tasks = None
            return
        if not isinstance(tasks, Sequence) or len(tasks) == 0:
            raise ValueError(f"tasks must be a list of at least one task (or None to draw them from split), got {tasks!r}")
        checked = []
        for index, task in enumerate(tasks):
            try:
                checked.append(self.meta_env.check_task(task))
            except ValueError as error:
                raise ValueError(f"tasks[{index}]: {error}") from error
        self._tasks = checked
        self._next_task = 0

    @property
    def draws_tasks(self) -> bool:
        """Whether trials draw their tasks, as they do without a list of tasks."""
        return self._tasks is None

    def _choose_task(self, options: dict[str, Any]) -> Task:
        if "task" in options:
            task: Task = options["task"]
            return task
        if self._tasks is None:
            return self.sample_tasks(1)[0]
        listed = self._tasks[self._next_task]
        self._next_task = (self._next_task + 1) % len(self._tasks)
        return listed

    # ---- the gymnasium interface -------------------------------------------------------------------------------

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """
        Start a trial: choose a task, start its first episode.

        :param seed: Seed of everything random here and in the base environment.
        :param options: ``{"task": {...}}`` plays this task in this trial (a list of tasks does not advance then).
        :return: First token of the trial, info of the base environment.
        :raises ValueError: On an unknown option or a task that does not fit the family.
        """
        super().reset(seed=seed)
        options = options or {}
        if set(options) - {"task"}:
            raise ValueError(f'options may hold only "task", got {sorted(options, key=str)}')
        episode_seed = None
        if seed is not None:
            episode_seed = int(self.np_random.integers(2**31))
            self._next_task = 0
            self._seed = seed
            self._task_generators, self._task_draws = {}, {}
            self._has_success = False
        self.meta_env.set_task(self._choose_task(options))
        observation, info = self.env.reset(seed=episode_seed)
        self._returns, self._lengths, self._successes = [], [], []
        self._start_episode()
        self._running = True
        return self._make_token(observation, np.zeros(self._action_size, np.float32), 0.0, 0.0), info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """
        One step of the base environment; at an inner episode's end also its reset.

        :param action: An element of ``action_space``; a Box action is clipped to its bounds.
        :return: Token, reward, terminated and truncated (of the trial, never both), info.
        :raises ValueError: On an action that is not finite or does not fit, and on a reward or observation of the base
            environment that is not finite.
        :raises gymnasium.error.ResetNeeded: Before :meth:`reset` or after the trial's end.
        """
        if not self._running:
            raise ResetNeeded("TrialWrapper.step() needs a reset() first: no trial is running")
        action, prev_action = self._check_action(action)
        observation, reward, terminated, truncated, info = self.env.step(action)
        info = dict(info)  # a family may return the same one at every step
        info.pop("episode", None)  # a Monitor's within: the episode that SB3 logs is the trial
        reward = self._number(reward)
        if not math.isfinite(reward):
            raise ValueError(f"{self._name()} returned the reward {reward}, which is not finite (action {action!r})")

        self._episode_return += reward
        self._episode_length += 1
        if "success" in info:
            self._has_success = True
            self._episode_success = self._episode_success or bool(info["success"])
        if not (terminated or truncated):
            return self._make_token(observation, prev_action, reward, 0.0), reward, False, False, info

        info["inner_episode"] = self._end_episode(bool(terminated))
        if len(self._returns) < self.episodes_per_trial:
            observation, _ = self.env.reset()
            self._start_episode()
            return self._make_token(observation, prev_action, reward, 1.0), reward, False, False, info

        self._running = False
        info["trial"] = {"task": self.get_task(), "returns": self._returns, "lengths": self._lengths}
        if self._has_success:
            info["trial"]["success"] = self._successes
            info["is_success"] = self._successes[-1]
        terminated = bool(terminated)
        # prev_done of the terminal token is 1 only after a real end: what a time limit cut would have gone on, and a value of
        # that state must not look like that of a new episode.
        token = self._make_token(observation, prev_action, reward, float(terminated))
        return token, reward, terminated, not terminated, info

    def render(self) -> Any:
        """:return: What the base environment renders."""
        return self.env.render()

    def close(self) -> None:
        """Close the base environment."""
        self.env.close()

    # ---- the state of a running trial, for checkpoints of training ------------------------------------------------

    def _identity(self) -> EnvState:
        """:return: What an environment must have in common with another one to go on from its state."""
        family = self.meta_env
        # By convention an argument of the constructor is kept under its name and stays as it is (**kwargs tell no names)
        arguments = sorted(set(inspect.signature(type(family)).parameters) - {"horizon", "render_mode"})
        values = {name: vars(family).get(name) for name in arguments}
        return {
            "settings": {name: value for name, value in values.items() if isinstance(value, (bool, int, float, str))},
            "family": type(family).__name__,
            "task_shapes": {name: list(shape) for name, shape in family.task_shapes.items()},
            "horizon": family.horizon,
            "episodes_per_trial": self.episodes_per_trial,
            "split": self.split,
        }

    def get_trial_state(self) -> EnvState | None:
        """
        :return: All that this trial and the next ones go on from, as data: tasks, random generators, progress, the base
            environment's state. None if the base environment is wrapped, or of a family without
            :meth:`~sb3_trmrl.envs.meta_env.MetaEnv._get_state`. A ``Monitor`` outside does not belong to it.
        """
        meta_env = self.meta_env.get_state() if self.env is self.meta_env else None
        if meta_env is None:
            return None
        return {
            "identity": self._identity(),
            "np_random": generator_state(self._np_random),
            "np_random_seed": self._np_random_seed,
            "seed": self._seed,
            "tasks": self._tasks,
            "next_task": self._next_task,
            "task_generators": {split: generator_state(generator) for split, generator in self._task_generators.items()},
            "task_draws": copy.deepcopy(self._task_draws),
            "running": self._running,
            "returns": list(self._returns),
            "lengths": list(self._lengths),
            "successes": list(self._successes),
            "episode_return": self._episode_return,
            "episode_length": self._episode_length,
            "has_success": self._has_success,
            "episode_success": self._episode_success,
            "meta_env": meta_env,
        }

    def set_trial_state(self, state: EnvState) -> None:
        """
        Go on from a state, bit for bit.

        :param state: What :meth:`get_trial_state` returned, here or in another process.
        :raises ValueError: If it is that of another family, split or length of trial, or does not fit.
        """
        if not is_of(self._identity(), state["identity"]):
            raise ValueError(f"the state of {state['identity']} does not fit {self._identity()}")
        tasks = state["tasks"]
        self._tasks = None
        if tasks is not None:
            self.set_tasks(tasks)
            self._next_task = int(state["next_task"]) % len(tasks)
        self._np_random = generator_from_state(state["np_random"])
        self._np_random_seed = state["np_random_seed"]
        self._seed = None if state["seed"] is None else int(state["seed"])
        saved = state["task_generators"].items()
        generators = {self.meta_env.check_split(split): generator_from_state(generator) for split, generator in saved}
        self._task_generators = {split: generator for split, generator in generators.items() if generator is not None}
        self._task_draws = copy.deepcopy(dict(state.get("task_draws", {})))  # version 0.1.0 wrote none
        self.meta_env.set_state(state["meta_env"])
        self._running = bool(state["running"])
        self._returns = [float(value) for value in state["returns"]]
        self._lengths = [checked_integer("length of an episode", value, self.meta_env.horizon) for value in state["lengths"]]
        self._successes = [bool(value) for value in state["successes"]]
        n_episodes = {len(values) for values in (self._returns, self._lengths, self._successes)}
        if len(n_episodes) > 1 or max(n_episodes) > self.episodes_per_trial:
            raise ValueError(
                f"returns, lengths and successes must be equally many, at most {self.episodes_per_trial}, got {n_episodes}"
            )
        self._episode_return = float(state["episode_return"])
        self._episode_length = checked_integer("episode_length", state["episode_length"], self.meta_env.horizon)
        self._has_success = bool(state["has_success"])
        self._episode_success = bool(state["episode_success"])

    # ---- episodes ----------------------------------------------------------------------------------------------

    def _start_episode(self) -> None:
        self._episode_return = 0.0
        self._episode_length = 0
        self._episode_success = False

    def _end_episode(self, terminated: bool) -> dict[str, Any]:
        self._returns.append(self._episode_return)
        self._lengths.append(self._episode_length)
        inner_episode: dict[str, Any] = {"index": len(self._returns), "r": self._episode_return, "l": self._episode_length}
        inner_episode["terminated"] = terminated
        self._successes.append(self._episode_success)
        if self._has_success:
            inner_episode["success"] = self._episode_success
        return inner_episode

    # ---- actions and tokens ------------------------------------------------------------------------------------

    def _name(self) -> str:
        return f"{type(self.meta_env).__name__} (task {self.meta_env.get_task()})"

    def _number(self, reward: Any) -> float:
        if isinstance(reward, np.ndarray) and reward.size == 1:
            reward = reward.item()  # what is computed from an action of one entry has one entry
        try:
            return float(reward)
        except (TypeError, ValueError, OverflowError):
            raise ValueError(f"{self._name()} returned the reward {reward!r}, which must be a number") from None

    def _check_action(self, action: Any) -> tuple[Any, np.ndarray]:
        """
        :param action: What :meth:`step` got.
        :return: The action for the base environment and the ``prev_action`` part of the next token.
        """
        space = self.action_space
        if isinstance(space, spaces.Box):
            array = np.asarray(action)
            if array.dtype.kind not in "fiu" or array.shape != space.shape:
                raise ValueError(f"action must be an array of numbers of shape {space.shape}, got {action!r}")
            if not np.isfinite(array).all():
                raise ValueError(
                    f"action for {self._name()} must be finite, got {action!r}; a policy that returns such actions has "
                    "diverged (look for NaN in its weights, lower the learning rate)"
                )
            clipped = np.minimum(np.maximum(array, space.low), space.high)
            return clipped, clipped.flatten()  # a copy: the base environment may change its own
        if isinstance(space, spaces.Discrete):
            # SB3 hands over 0-d or one-element arrays
            array = np.asarray(action)
            if array.size != 1 or array.dtype.kind not in "iu" or not space.contains(int(array.item())):
                raise ValueError(
                    f"action must be an integer in [{space.start}, {space.start + space.n - 1}] for {space}, got {action!r}"
                )
            index = int(array.item())
            one_hot = np.zeros(self._action_size, np.float32)
            one_hot[index - int(space.start)] = 1.0
            return index, one_hot
        # SB3 samples MultiBinary actions as floats
        array = np.asarray(action)
        fits = array.dtype.kind in "iubf" and array.shape == space.shape and np.isfinite(array).all()
        element = array.astype(space.dtype) if fits else None
        if element is None or not np.array_equal(element, array) or not space.contains(element):
            raise ValueError(f"action must be an element of {space}, got {action!r}")
        return element, np.asarray(spaces.utils.flatten(space, element), dtype=np.float32)

    def _choose_token(self) -> tuple[spaces.Space[Any], Callable[[Any, np.ndarray, float, float], Any]]:
        """:return: The observation space of the trial and the method that makes its elements."""
        space = self.env.observation_space
        if not (isinstance(space, spaces.Dict) or _is_image(space)):
            return TokenSpace(space, self.env.action_space), self._vector_token
        own = dict(space.spaces) if isinstance(space, spaces.Dict) else {"observation": space}
        low, high = _vector_bounds(self.env.action_space, "action_space")
        more: dict[str, spaces.Space[Any]] = {
            "prev_action": spaces.Box(low, high, dtype=np.float32),
            "prev_reward": spaces.Box(-np.inf, np.inf, (1,), dtype=np.float32),
            "prev_done": spaces.Box(0.0, 1.0, (1,), dtype=np.float32),
        }
        clash = sorted(set(own) & set(more))
        if clash:
            raise ValueError(f"env.observation_space has the keys {clash}, which TrialWrapper adds; rename them there")
        # SB3 makes one-hot vectors of numbers that begin at zero
        self._starts: dict[str, Any] = {}
        for key, part in own.items():
            if isinstance(part, (spaces.Discrete, spaces.MultiDiscrete)) and np.any(part.start):
                self._starts[key] = part.start
                own[key] = spaces.Discrete(part.n) if isinstance(part, spaces.Discrete) else spaces.MultiDiscrete(part.nvec)
        return spaces.Dict({**own, **more}), self._dict_token

    def _vector_token(self, observation: Any, prev_action: np.ndarray, prev_reward: float, prev_done: float) -> np.ndarray:
        # (any) -> (observation_size + action_size + 2,)
        space = self.env.observation_space
        flat = np.ravel(observation if isinstance(space, spaces.Box) else np.asarray(spaces.utils.flatten(space, observation)))
        size = flat.size
        token = np.empty(self._token_size, np.float32)
        if size + self._action_size + 2 != token.size:
            raise ValueError(
                f"{self._name()} returned an observation of {size} entries, "
                f"its observation_space has {token.size - self._action_size - 2}"
            )
        token[:size] = flat
        token[size:-2] = prev_action
        token[-2] = prev_reward
        token[-1] = prev_done
        if not np.isfinite(token).all():
            raise ValueError(f"{self._name()} returned an observation that is not finite in float32: {observation!r}")
        return token

    def _dict_token(self, observation: Any, prev_action: np.ndarray, prev_reward: float, prev_done: float) -> dict[str, Any]:
        own = dict(observation) if isinstance(self.env.observation_space, spaces.Dict) else {"observation": observation}
        for key, value in own.items():
            if np.asarray(value).dtype.kind == "f" and not np.isfinite(value).all():
                raise ValueError(f"{self._name()} returned an observation whose {key!r} is not finite: {value!r}")
            if key in self._starts:
                own[key] = value - self._starts[key]
        return {
            **own,
            "prev_action": np.array(prev_action, np.float32),
            "prev_reward": np.array([prev_reward], np.float32),
            "prev_done": np.array([prev_done], np.float32),
        }

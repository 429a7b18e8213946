"""
The worker's side of ``ProcessVecEnv``: a process that holds some slots, and the memory that it shares with the main process.

Shapes: ``n_envs`` slots of the whole vectorised environment.
"""

import contextlib
import faulthandler
import os
import pickle
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from multiprocessing.shared_memory import SharedMemory
from typing import Any, NamedTuple

import cloudpickle  # type: ignore[import-untyped]
import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.env_util import is_wrapped
from stable_baselines3.common.vec_env.patch_gym import _patch_env
from stable_baselines3.common.vec_env.util import obs_space_info

N_COLUMNS = 32
"""Values of a step's info that cross as numbers; an info with more is pickled."""
MAX_LAYOUTS = 256
"""Kinds of infos that a worker learns; those beyond are pickled."""
PICKLED = -1
"""In place of a layout's number: the info comes with the worker's reply."""
COLUMN_TYPES = (float, bool, np.float64, np.float32, np.bool_)
"""Types whose values a float64 holds exactly (an int may be too large)."""
ALIGNMENT = 64
"""Bytes of a processor's cache line, so that no two arrays share one."""


SHARED_MEMORY_FOLDER = "/dev/shm"
"""Where Linux keeps shared memory; other systems have no such folder."""


def check_free(size: int) -> None:
    """
    :param size: Bytes of shared memory that are wanted.
    :raises OSError: If there are fewer. Linux would hand out the addresses, and kill who writes there.
    """
    if not os.path.isdir(SHARED_MEMORY_FOLDER):
        return
    total, _, free = shutil.disk_usage(SHARED_MEMORY_FOLDER)
    if total > 0 and size > free:  # a file system without a limit says 0
        raise OSError(
            f"ProcessVecEnv needs {size / 1e6:.0f} MB of shared memory for the steps of its slots, {SHARED_MEMORY_FOLDER} has "
            f"{free / 1e6:.0f} MB left: enlarge it (docker run --shm-size=1g), or take fewer slots or smaller observations."
        )


class Layout(NamedTuple):
    """What an info looks like whose values are all numbers."""

    keys: tuple[str, ...]
    """Its keys in their order."""
    types: tuple[type, ...]
    """Type of each value, of :data:`COLUMN_TYPES`."""

    def info(self, row: Sequence[float]) -> dict[str, Any]:
        """
        :param row: Values, as floats; further ones do not count.
        :return: The info.
        """
        # strict=False: a row has N_COLUMNS values
        return {key: kind(value) for key, kind, value in zip(self.keys, self.types, row, strict=False)}


class Spaces(NamedTuple):
    """Spaces of a slot, and what else the main process has to know of it."""

    observation_space: spaces.Space[Any]
    """Of one slot."""
    action_space: spaces.Space[Any]
    """Of one slot."""
    metadata: dict[str, Any]
    """Of the environment."""

    def outline(self) -> tuple[Any, ...]:
        """:return: What all slots must have in common, so that their observations and actions fit into one array each."""
        keys, shapes, dtypes = obs_space_info(self.observation_space)
        observations = [(key, shapes[key], np.dtype(dtypes[key])) for key in keys]
        return observations, type(self.action_space), self.action_space.shape, self.action_space.dtype


class SharedArrays:
    """
    The arrays that cross between the processes at every step.

    :param slot_spaces: Spaces of one slot.
    :param n_envs: Number of slots.
    :param name: Memory of the main process to attach to; None makes new memory.
    :raises ValueError: If observations or actions are not arrays of numbers.
    """

    def __init__(self, slot_spaces: Spaces, n_envs: int, name: str | None = None):
        action_shape = slot_spaces.action_space.shape
        if action_shape is None:
            raise ValueError(f"action_space must be of arrays (Box, Discrete, ...), got {slot_spaces.action_space}")
        keys, shapes, dtypes = obs_space_info(slot_spaces.observation_space)
        for key in keys:
            if np.dtype(dtypes[key]).kind not in "biuf":
                raise ValueError(f"observation_space must be of arrays of numbers, got {slot_spaces.observation_space}")
        self.action_capacity = 8 * max(1, int(np.prod(action_shape)))
        """Bytes for the action of a slot: any numbers of up to 64 bits."""
        rows: dict[Any, tuple[tuple[int, ...], Any]] = {
            **{("observation", key): (tuple(shapes[key]), dtypes[key]) for key in keys},
            "actions": ((self.action_capacity,), np.uint8),
            "rewards": ((), np.float32),
            "dones": ((), np.bool_),
            "layouts": ((), np.int64),
            "columns": ((N_COLUMNS,), np.float64),
        }
        offsets, end = {}, 0
        for part, (shape, dtype) in rows.items():
            offsets[part] = end
            size = n_envs * int(np.prod(shape)) * np.dtype(dtype).itemsize
            end += -(-size // ALIGNMENT) * ALIGNMENT
        if name is None:
            check_free(end)
        self._memory = SharedMemory(name, create=name is None, size=end if name is None else 0)
        arrays = {
            part: np.ndarray((n_envs, *shape), dtype, buffer=self._memory.buf, offset=offsets[part])
            for part, (shape, dtype) in rows.items()
        }
        self.name = self._memory.name
        """To attach to it."""
        self.observations: dict[Any, np.ndarray] = {key: arrays["observation", key] for key in keys}
        """Observations ``(n_envs, ...)`` by key of a Dict space, by None for other spaces."""
        self.rewards = arrays["rewards"]
        """Rewards ``(n_envs,)``, float32."""
        self.dones = arrays["dones"]
        """Whether the trial has ended ``(n_envs,)``."""
        self.layouts = arrays["layouts"]
        """Number of the worker's layout of each info ``(n_envs,)``, or :data:`PICKLED`."""
        self.columns = arrays["columns"]
        """Values of the infos ``(n_envs, N_COLUMNS)``."""
        self._action_bytes = arrays["actions"]

    def actions(self, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        """
        :param shape: Shape of the actions of all slots.
        :param dtype: Their type.
        :return: The memory of the actions, as such an array.
        """
        return np.ndarray(shape, dtype, buffer=self._action_bytes.data)

    def unlink(self) -> None:
        """Take the memory's name away: it goes with the last process that uses it, however that ends."""
        self._memory.unlink()

    def close(self) -> None:
        """Give this process's view of the memory back."""
        # No array may refer to the memory any more
        self.observations = {}
        self.rewards = self.dones = self.layouts = self.columns = self._action_bytes = np.empty(0)
        # Views in the frames of an error, say, keep it until they go
        with contextlib.suppress(BufferError):
            self._memory.close()


class InfoWriter:
    """
    Writes infos to columns of numbers where that can be done exactly.

    It learns the layouts of the infos as they come. New ones are to be told to the reader.
    """

    def __init__(self) -> None:
        self.new: list[Layout] = []
        """Layouts that the reader does not know yet, in the order of their numbers."""
        self._numbers: dict[tuple[Any, ...], int] = {}
        self._n_layouts = 0

    def write(self, info: dict[str, Any], row: np.ndarray) -> int:
        """
        :param info: An info.
        :param row: Where its values go ``(N_COLUMNS,)``.
        :return: Number of its layout, or :data:`PICKLED` if it has to go another way.
        """
        values = info.values()
        layout = (*info, *map(type, values))
        number = self._numbers.get(layout)
        if number is None:
            number = self._learn(info, layout)
        if number != PICKLED:
            row[: len(info)] = list(values)
        return number

    def _learn(self, info: dict[str, Any], layout: tuple[Any, ...]) -> int:
        types = tuple(map(type, info.values()))
        if len(info) > N_COLUMNS or any(kind not in COLUMN_TYPES for kind in types):
            return PICKLED
        if self._n_layouts == MAX_LAYOUTS:
            return PICKLED
        self._numbers[layout] = number = self._n_layouts
        self._n_layouts += 1
        self.new.append(Layout(tuple(info), types))
        return number


class Failure(NamedTuple):
    """A worker's reply in place of a result."""

    slot: int | None
    """Whose environment raised the error, if it was one's."""
    text: str
    """Traceback in the worker."""
    error: BaseException | None
    """The error, unless it can't be pickled."""


class Events(NamedTuple):
    """What a step's reply holds beside the arrays; most steps have none."""

    layouts: list[Layout]
    """New layouts of infos."""
    infos: dict[int, dict[str, Any]]
    """Infos by slot that are not in the columns."""
    reset_infos: dict[int, dict[str, Any]]
    """By slot, where a trial has ended."""


BUILT = "built"
"""Reply for each environment that is made, before the one for all."""
NO_EVENTS = pickle.dumps(None)
"""Reply to most steps."""


class EnvWorker:
    """
    Holds a few slots and does what the main process says.

    :param connection: To the main process.
    :param first: Number of the first slot.
    :param n_envs: Number of slots of all workers.
    """

    def __init__(self, connection: Connection, first: int, n_envs: int):
        self._connection = connection
        self._first = first
        self._n_envs = n_envs
        self._envs: list[gym.Env[Any, Any]] = []
        self._slot: int | None = None
        self._info_writer = InfoWriter()
        self._arrays: SharedArrays | None = None

    def run(self, env_fns: bytes) -> None:
        """
        Make the environments, then do what is asked until the main process says ``close`` or is gone.

        :param env_fns: Functions that make them, pickled.
        """
        if not self._answer(self._build, env_fns):
            return
        while True:
            message = self._connection.recv_bytes()
            try:
                command, *arguments = pickle.loads(message)
            except Exception as error:  # an argument that can be pickled, but not made again
                command, arguments = "refuse", [error]
            self._answer(getattr(self, f"_{command}"), *arguments)
            if command == "close":
                return

    def _answer(self, do: Callable[..., Any], *arguments: Any) -> bool:
        """:return: Whether it went well; the main process is told."""
        self._slot = None
        try:
            result = do(*arguments)
            reply = result if isinstance(result, bytes) else cloudpickle.dumps(result)
        except BaseException as error:
            self._connection.send_bytes(cloudpickle.dumps(self._failure(error)))
            if not isinstance(error, Exception):  # SystemExit, say
                raise
            return False
        self._connection.send_bytes(reply)
        return True

    def _failure(self, error: BaseException) -> Failure:
        text = "".join(traceback.format_exception(error))
        try:
            # Some exceptions can be pickled but not read again
            pickle.loads(cloudpickle.dumps(error))
        except Exception:
            return Failure(self._slot, text, None)
        return Failure(self._slot, text, error)

    def _slots(self, slots: Sequence[int] | None = None) -> Any:
        """:return: Slots (None is all of this worker) with their environments, noting which one is at work."""
        for slot in range(self._first, self._first + len(self._envs)) if slots is None else slots:
            self._slot = slot
            yield slot, self._envs[slot - self._first]
        self._slot = None

    # ---- commands --------------------------------------------------------------------------------------------------

    def _build(self, env_fns: bytes) -> list[Spaces]:
        for slot, env_fn in enumerate(pickle.loads(env_fns), start=self._first):
            self._slot = slot
            self._envs.append(_patch_env(env_fn()))
            if any(env.unwrapped is self._envs[-1].unwrapped for env in self._envs[:-1]):
                raise ValueError("env_fns must make a new environment at each call, some of them returned the same one")
            self._connection.send_bytes(pickle.dumps(BUILT))
        self._slot = None
        return [Spaces(env.observation_space, env.action_space, env.metadata) for env in self._envs]

    def _attach(self, name: str, slot_spaces: Spaces) -> None:
        self._arrays = SharedArrays(slot_spaces, self._n_envs, name)

    def _step(self, shape: tuple[int, ...], dtype: str) -> bytes:
        arrays, writer = self._arrays, self._info_writer
        assert arrays is not None
        # A copy, as an environment may keep what it gets
        actions = arrays.actions(shape, dtype)[self._first : self._first + len(self._envs)].copy()
        events = Events([], {}, {})
        for slot, env in self._slots():
            observation, arrays.rewards[slot], terminated, truncated, info = env.step(actions[slot - self._first])
            # As DummyVecEnv
            done = terminated or truncated
            arrays.dones[slot] = done
            info["TimeLimit.truncated"] = truncated and not terminated
            if done:
                info["terminal_observation"] = observation
                observation, events.reset_infos[slot] = env.reset()
            self._save_observation(slot, observation)
            layout = writer.write(info, arrays.columns[slot])
            arrays.layouts[slot] = layout
            if layout == PICKLED:
                events.infos[slot] = info
        if not (writer.new or events.infos or events.reset_infos):
            return NO_EVENTS
        events.layouts.extend(writer.new)
        reply = cloudpickle.dumps(events)
        writer.new.clear()
        return reply

    def _save_observation(self, slot: int, observation: Any) -> None:
        assert self._arrays is not None
        for key, array in self._arrays.observations.items():
            array[slot] = observation if key is None else observation[key]

    def _reset(self, seeds: list[int | None], options: list[dict[str, Any]]) -> list[dict[str, Any]]:
        infos = []
        for (slot, env), seed, option in zip(self._slots(), seeds, options, strict=True):
            observation, info = env.reset(seed=seed, **({"options": option} if option else {}))
            self._save_observation(slot, observation)
            infos.append(info)
        return infos

    def _get_attr(self, slots: list[int], name: str) -> list[Any]:
        return [env.get_wrapper_attr(name) for _, env in self._slots(slots)]

    def _has_attr(self, slots: list[int], name: str) -> list[bool]:
        return [env.has_wrapper_attr(name) for _, env in self._slots(slots)]

    def _set_attr(self, slots: list[int], name: str, value: Any) -> list[None]:
        return [setattr(env, name, value) for _, env in self._slots(slots)]  # type: ignore[func-returns-value]

    def _env_method(self, slots: list[int], name: str, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> list[Any]:
        return [env.get_wrapper_attr(name)(*arguments, **keywords) for _, env in self._slots(slots)]

    def _is_wrapped(self, slots: list[int], wrapper_class: type[gym.Wrapper[Any, Any, Any, Any]]) -> list[bool]:
        return [is_wrapped(env, wrapper_class) for _, env in self._slots(slots)]

    def _refuse(self, error: Exception) -> None:
        raise error

    def _close(self) -> None:
        envs, self._envs = self._envs, []
        errors = []
        for env in envs:
            try:
                env.close()
            except Exception as error:  # the others are to be closed, too
                errors.append(error)
        if errors:
            raise errors[0]

    def release(self) -> None:
        """Close what is still open, when there is nobody left to tell about errors."""
        for env in self._envs:
            with contextlib.suppress(Exception):
                env.close()
        if self._arrays is not None:
            self._arrays.close()


def run_worker(connection: Connection, first: int, n_envs: int, env_fns: bytes, environ: dict[str, str]) -> None:
    """
    What the process does.

    :param connection: To the main process.
    :param first: Number of this worker's first slot.
    :param n_envs: Number of slots of all workers.
    :param env_fns: Functions that make its environments, pickled.
    :param environ: Environment variables; this process has those of a server that may have started long ago.
    """
    os.environ.clear()
    os.environ.update(environ)
    # All forks of the server have the same state of numpy's global generator. Our environments don't use it, but others may
    np.random.seed()  # noqa: NPY002
    # Ctrl-C reaches all processes of a terminal; what becomes of it is the main process's business
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    faulthandler.enable()  # a crash in native code says where
    worker = EnvWorker(connection, first, n_envs)
    try:
        worker.run(env_fns)
    except (EOFError, ConnectionError):
        pass  # the main process is gone
    finally:
        worker.release()
        connection.close()
    # As processes of the other start methods end: without the half second in which Python takes torch apart
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)

"""
Environments in worker processes, for families whose step is slow Python (docs/guide/vec_env.md).

Shapes: ``n_envs`` slots; each worker holds a contiguous run of them.
"""

import contextlib
import itertools
import multiprocessing
import os
import pickle
import select
import signal
import sys
import threading
import time
import types
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from multiprocessing.connection import wait
from typing import Any

import cloudpickle  # type: ignore[import-untyped]
import gymnasium as gym
import numpy as np
from stable_baselines3.common.vec_env.base_vec_env import VecEnv, VecEnvIndices, VecEnvObs, VecEnvStepReturn
from stable_baselines3.common.vec_env.util import dict_to_obs
from tqdm import tqdm

from sb3_trmrl.common.arguments import is_integer, is_number
from sb3_trmrl.common.vec_env.env_worker import BUILT, PICKLED, Events, Failure, Layout, SharedArrays, Spaces, run_worker
from sb3_trmrl.common.vec_env.work_sharing import n_usable_cores

BAR_AFTER = 1.0
"""Seconds that a start may take without a progress bar."""
POLL_SECONDS = 0.5
"""How often we look whether a silent worker is still alive. Mostly its pipe breaks first."""
CLOSE_SECONDS = 5.0
"""Time for workers to end by themselves; they are killed after it."""

_start_lock = threading.Lock()


@contextlib.contextmanager
def _without_main_module() -> Iterator[None]:
    """
    While a process is started. It would run the script of this process again, for what it defines. We send that along
    (cloudpickle), so a script needs no ``if __name__ == "__main__":``, and nothing is imported that is not needed.
    """
    with _start_lock:
        main = sys.modules["__main__"]
        sys.modules["__main__"] = types.ModuleType("__main__")
        try:
            yield
        finally:
            sys.modules["__main__"] = main


def _context() -> Any:
    """
    :return: How processes are started: as forks of a server process, which has imported what they need once and does nothing
        else. Forks of this process would have the halves of its threads (torch's), locks and rendering contexts.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([run_worker.__module__])  # has an effect on the first start only
    return context


@contextlib.contextmanager
def _whole() -> Iterator[None]:
    """
    While messages go through pipes: an interrupt (Ctrl-C) is raised after them, since nobody can go on from half a message.
    Takes some 20 us, hence one for the messages of all workers.
    """
    handler = signal.getsignal(signal.SIGINT)
    if not callable(handler) or threading.current_thread() is not threading.main_thread():
        yield  # then Python interrupts nothing here
        return
    late: list[tuple[int, types.FrameType | None]] = []
    under_way, owner = True, os.getpid()

    def defer(*interrupt: Any) -> None:
        if under_way and os.getpid() == owner:
            late.append(interrupt)
        else:  # left behind: in a fork, or where another signal's handler raised before ours was taken back
            handler(*interrupt)

    signal.signal(signal.SIGINT, defer)
    try:
        yield
    finally:
        try:
            signal.signal(signal.SIGINT, handler)
        finally:
            under_way = False
        if late:
            handler(*late[0])


class _RemoteTraceback(Exception):
    """Shows where in the worker an error came from, as the cause of that error."""

    def __init__(self, text: str):
        super().__init__(f'in a worker process\n"""\n{text}"""')


class WorkerHandle:
    """
    A worker process as the main process sees it.

    :param index: Its number.
    :param slots: Its slots.
    :param n_envs: Number of slots of all workers.
    :param env_fns: Functions that make its environments.
    :raises ValueError: If they can't be pickled.
    """

    def __init__(self, index: int, slots: range, n_envs: int, env_fns: Sequence[Callable[[], gym.Env[Any, Any]]]):
        self.slots = slots
        which = f"slot {slots[0]}" if len(slots) == 1 else f"slots {slots[0]} to {slots[-1]}"
        self.name = f"worker {index} ({which})"
        self.layouts: list[Layout] = []
        """Of its infos, by number."""
        self.n_pending = 0
        """Replies that are still to come."""
        self._doing = "it started"
        self._out_of_step = False
        try:
            # Together, so that what they share stays shared
            pickled = cloudpickle.dumps(list(env_fns))
        except Exception as error:
            raise ValueError(
                f"env_fns[{slots[0]}:{slots[-1] + 1}] can't be pickled, which is how they get to a process: {error!r}. Make "
                "what they need inside of them, or use DummyVecEnv, which steps any environments"
            ) from error
        context = _context()
        self.connection, connection = context.Pipe()
        self.process = context.Process(
            target=run_worker,
            args=(connection, slots[0], n_envs, pickled, dict(os.environ)),
            daemon=True,
            name=f"ProcessVecEnv-{index}",
        )
        # What connection.poll() makes anew at each call
        self._readable = select.poll()
        self._readable.register(self.connection.fileno(), select.POLLIN)
        try:
            with _without_main_module():
                self.process.start()
        finally:
            connection.close()
        self.n_pending = 1

    def send(self, command: str, *arguments: Any) -> None:
        """
        :param command: What to do, see ``EnvWorker``.
        :param arguments: For it.
        :raises RuntimeError: If the worker is dead.
        """
        self.send_message(command, cloudpickle.dumps((command, *arguments)))

    def send_message(self, command: str, message: bytes) -> None:
        """
        :param command: What to do.
        :param message: The same with the arguments, pickled.
        :raises RuntimeError: If the worker is dead.
        """
        self._doing = f"it did {command}()"
        self._require_in_step()
        try:
            self._out_of_step = True  # unless nothing interrupts us; ``_whole`` sees to that for Ctrl-C
            self.connection.send_bytes(message)
            self.n_pending += 1
            self._out_of_step = False
        except OSError:
            raise self.death() from None

    def wait(self) -> None:
        """
        Wait until the worker replies.

        :raises RuntimeError: If it died.
        """
        self._require_in_step()
        while not self._readable.poll(1000 * POLL_SECONDS):
            if not self.process.is_alive() and not self._readable.poll(0):
                raise self.death()

    def receive(self) -> Any:
        """
        :return: The worker's reply to the oldest command, when it is there.
        :raises RuntimeError: If the worker died.
        """
        self._require_in_step()
        try:
            self._out_of_step = True
            message = self.connection.recv_bytes()
            self.n_pending -= 1
            self._out_of_step = False
        except (EOFError, OSError):
            raise self.death() from None
        # Behind the count: what can't be made again here is an error of this reply alone
        try:
            reply = pickle.loads(message)
        except Exception:
            # But with a step's, layouts can be lost by which further infos are read
            self._out_of_step = self._doing == "it did step()"
            raise
        if isinstance(reply, Events):
            self.layouts += reply.layouts
        if isinstance(reply, str) and reply == BUILT:  # another one follows
            self.n_pending += 1
        return reply

    def _require_in_step(self) -> None:
        if self._out_of_step:
            raise RuntimeError(
                f"a message between here and {self.name} was interrupted half way: close this ProcessVecEnv and make a new one"
            )

    def death(self) -> RuntimeError:
        """:return: The error that tells how the process ended."""
        self.n_pending = 0
        self.process.join(CLOSE_SECONDS)  # the code comes by way of the server of processes, later than the end of the pipe
        code = self.process.exitcode
        how = "closed its connection" if code is None else f"ended with exit code {code}"
        if code is not None and code < 0:
            with contextlib.suppress(ValueError):
                how += f" ({signal.Signals(-code).name})"
        hint = "; the system kills processes when memory runs out" if code == -9 else ""
        return RuntimeError(
            f"{self.name} {how} while {self._doing}{hint}. Messages of the process itself are on stderr. Its trials are lost: "
            "close this ProcessVecEnv and make a new one"
        )

    def settle(self) -> None:
        """Take and forget replies that nobody waits for any more, since an interrupt or an error came between."""
        while self.n_pending:
            self.wait()
            with _whole():
                try:
                    self.receive()
                except RuntimeError:  # it died
                    raise
                except Exception:  # it could not be unpickled, and who asked for it has gone
                    continue

    def ask_to_close(self) -> None:
        """Ask the process to close its environments and end, if it can hear."""
        with contextlib.suppress(OSError):
            self.connection.send_bytes(pickle.dumps(("close",)))

    def end(self, until: float) -> None:
        """
        Wait for the process's end.

        :param until: When patience ends, by ``time.monotonic()``.
        """
        if not self._out_of_step:
            with contextlib.suppress(Exception):
                # Replies are read, since a process that can't get rid of one does not end
                while self.connection.poll(max(0.0, until - time.monotonic())):
                    reply = pickle.loads(self.connection.recv_bytes())
                    if isinstance(reply, Failure):
                        warnings.warn(f"{self.name} raised an error before it ended:\n{reply.text}")
        self.process.join(max(0.0, until - time.monotonic()))

    def kill(self) -> None:
        """End the process now, if it has not ended."""
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()
        self.connection.close()
        self.process.close()


def _release(workers: list[WorkerHandle], arrays: list[SharedArrays], owner: int, gently: bool = True) -> None:
    """
    End the workers and give the memory back.

    :param workers: The workers.
    :param arrays: The shared memory, if there is some yet.
    :param owner: Id of the process that started them; a fork of it leaves them alone.
    :param gently: Whether the workers may close their environments before.
    """
    if os.getpid() != owner:
        return
    try:
        if gently:
            for worker in workers:
                worker.ask_to_close()
            until = time.monotonic() + CLOSE_SECONDS
            for worker in workers:
                worker.end(until)
    finally:  # an interrupt ends their time, and nothing stays
        while workers:
            workers.pop().kill()
        while arrays:
            arrays.pop().close()


class ProcessVecEnv(VecEnv):
    """
    Steps environments in a few worker processes, each of which holds several slots.

    Made like ``DummyVecEnv``, with the same results, bit for bit (docs/guide/vec_env.md). Actions, observations, rewards,
    dones and the numbers of the infos cross in shared memory; one message goes to each worker per step and one comes back.

    A worker that dies is a ``RuntimeError`` of the call that waits for it. So is an error of an environment in ``step`` and
    ``reset``, with the worker's traceback; in other calls it is raised as it is.

    :param env_fns: Functions that make the environments. They are pickled (cloudpickle), so they may be lambdas.
    :param n_workers: Processes; None is one for each core that this process may use, but not more than slots. Results do
        not depend on it.
    :param start_timeout: Seconds that may go by, while the workers start, until the next environment is ready.
    :raises ValueError: On a bad argument, functions that can't be pickled, environments that do not fit together.
    :raises RuntimeError: If an environment can't be made.
    :raises TimeoutError: If ``start_timeout`` is over.
    """

    def __init__(
        self,
        env_fns: list[Callable[[], gym.Env[Any, Any]]],
        n_workers: int | None = None,
        start_timeout: float = 120.0,
    ):
        n_envs = len(env_fns)
        if n_envs == 0:
            raise ValueError("env_fns must hold at least one function, got none")
        if n_workers is None:
            n_workers = n_usable_cores()
        if not is_integer(n_workers, 1):
            raise ValueError(f"n_workers must be an integer >= 1, or None for the number of cores, got {n_workers!r}")
        if not is_number(start_timeout) or not start_timeout > 0:
            raise ValueError(f"start_timeout must be a number > 0 (seconds), got {start_timeout!r}")
        if multiprocessing.current_process().daemon:
            raise RuntimeError(
                "this process may start no others, as it is a daemon (a worker of multiprocessing.Pool is one): use "
                "DummyVecEnv, or concurrent.futures.ProcessPoolExecutor, whose workers are none"
            )
        self.n_workers = min(int(n_workers), n_envs)
        self._stepping = False
        self._closed = False
        self._failure: str | None = None
        self._workers: list[WorkerHandle] = []
        shared: list[SharedArrays] = []
        # Not close(): at the interpreter's exit and when the object is garbage, too
        self._finalizer = weakref.finalize(self, _release, self._workers, shared, os.getpid())
        try:
            slot_spaces = self._start(env_fns, start_timeout)
            self._arrays = SharedArrays(slot_spaces, n_envs)
            shared.append(self._arrays)
            try:
                self._ask_all("attach", self._arrays.name, slot_spaces)
            finally:
                self._arrays.unlink()
            self._worker_of = [worker for worker in self._workers for _ in worker.slots]
            super().__init__(n_envs, slot_spaces.observation_space, slot_spaces.action_space)
        except BaseException:
            self._finalizer.detach()
            _release(self._workers, shared, os.getpid(), gently=False)
            raise
        self.metadata = slot_spaces.metadata

    def _start(self, env_fns: list[Callable[[], gym.Env[Any, Any]]], start_timeout: float) -> Spaces:
        """:return: Spaces of a slot, when all environments are made."""
        n_envs = len(env_fns)
        slots: dict[int, Spaces] = {}
        # On stderr, and not where nobody looks; miniters=0 lets it appear without progress, too
        look: dict[str, Any] = {"desc": "Making environments", "unit": "env", "leave": False, "disable": None}
        with tqdm(total=n_envs, delay=BAR_AFTER, miniters=0, **look) as bar:
            # Contiguous runs, as equal as can be
            cuts = [n_envs * index // self.n_workers for index in range(self.n_workers + 1)]
            for index, (start, stop) in enumerate(itertools.pairwise(cuts)):
                self._workers.append(WorkerHandle(index, range(start, stop), n_envs, env_fns[start:stop]))
                bar.update(0)
            starting = {worker.connection: worker for worker in self._workers}
            last = time.monotonic()
            while starting:
                for connection in wait(list(starting), POLL_SECONDS):
                    worker = starting[connection]
                    reply = worker.receive()
                    last = time.monotonic()
                    if reply == BUILT:
                        bar.update()
                        continue
                    slots.update(zip(worker.slots, self._checked(worker, reply, "while it was made"), strict=True))
                    del starting[worker.connection]
                bar.update(0)
                for worker in starting.values():
                    if not worker.process.is_alive() and not worker.connection.poll(0):
                        raise worker.death()
                if time.monotonic() - last > start_timeout:
                    raise TimeoutError(
                        f"{[worker.name for worker in starting.values()]} did not get their next environment ready within "
                        f"start_timeout={start_timeout} s. Give it more time, or look with DummyVecEnv where it hangs"
                    )
        for slot in range(1, n_envs):
            if slots[slot].outline() != slots[0].outline():
                raise ValueError(
                    f"all slots must have spaces of the same kinds and shapes, slot 0 has {slots[0][:2]}, slot {slot} "
                    f"has {slots[slot][:2]}"
                )
        return slots[0]

    # ---- messages --------------------------------------------------------------------------------------------------

    def _require_ready(self) -> None:
        if self._closed:
            raise ValueError("this ProcessVecEnv is closed; make a new one")
        if self._failure is not None:
            raise RuntimeError(self._failure)
        self._stepping = False
        with self._noting_death():
            for worker in self._workers:
                worker.settle()

    @contextlib.contextmanager
    def _noting_death(self) -> Iterator[None]:
        """A worker that died is an error now, and at all later calls."""
        try:
            yield
        except RuntimeError as error:
            self._failure = str(error)
            raise

    def _receive(self, workers: Sequence[WorkerHandle], when: str | None) -> list[Any]:
        """
        :param workers: Workers that have been told something.
        :param when: For the message of an environment's error; None raises that error as it is.
        :return: Their replies.
        """
        # All of them, so that none stays behind when another one has an error
        with self._noting_death():
            for worker in workers:
                worker.wait()
        with _whole(), self._noting_death():
            replies = [worker.receive() for worker in workers]
        return [self._checked(worker, reply, when) for worker, reply in zip(workers, replies, strict=True)]

    def _checked(self, worker: WorkerHandle, reply: Any, when: str | None) -> Any:
        if not isinstance(reply, Failure):
            return reply
        if when is None and reply.error is not None:
            raise reply.error from _RemoteTraceback(reply.text)
        where = worker.name if reply.slot is None else f"the environment of slot {reply.slot}, in {worker.name},"
        raise RuntimeError(f"{where} raised an error {when or ''}:\n\n{reply.text}") from reply.error

    def _ask_all(self, command: str, *arguments: Any, when: str | None = None) -> list[Any]:
        """:return: The workers' replies to a command."""
        self._require_ready()
        with _whole(), self._noting_death():
            for worker in self._workers:
                worker.send(command, *arguments)
        return self._receive(self._workers, when)

    def _ask_slots(self, indices: VecEnvIndices, command: str, *arguments: Any) -> list[Any]:
        """:return: The replies to a command, one for each of the slots."""
        slots = [range(self.num_envs)[index] for index in self._get_indices(indices)]
        self._require_ready()
        # By worker the positions of its slots in the result
        positions: dict[WorkerHandle, list[int]] = {}
        for position, slot in enumerate(slots):
            positions.setdefault(self._worker_of[slot], []).append(position)
        with _whole(), self._noting_death():
            for worker, chosen in positions.items():
                worker.send(command, [slots[position] for position in chosen], *arguments)
        results: dict[int, Any] = {}
        replies = self._receive(list(positions), None)
        for chosen, reply in zip(positions.values(), replies, strict=True):
            results.update(zip(chosen, reply, strict=True))
        return [results[position] for position in range(len(slots))]

    # ---- steps -------------------------------------------------------------------------------------------------------

    def reset(self) -> VecEnvObs:
        """
        Start a new trial in every slot.

        :return: Observations ``(n_envs, ...)``.
        :raises RuntimeError: If an environment raises an error, or a worker is dead.
        """
        self._require_ready()
        with _whole(), self._noting_death():
            for worker in self._workers:
                seeds, options = ([values[slot] for slot in worker.slots] for values in (self._seeds, self._options))
                worker.send("reset", seeds, options)
        infos = self._receive(self._workers, "in reset()")
        self.reset_infos = [info for some in infos for info in some]
        self._reset_seeds()
        self._reset_options()
        return self._observations()

    def step_async(self, actions: np.ndarray) -> None:
        """
        Let the workers begin a step.

        :param actions: Actions ``(n_envs, ...)`` of any number type.
        :raises ValueError: If they are no such array.
        :raises RuntimeError: If a worker is dead.
        """
        self._require_ready()
        array = np.asarray(actions)
        if array.dtype.kind not in "biuf" or array.ndim == 0 or len(array) != self.num_envs:
            raise ValueError(f"actions must be an array of numbers, the first axis {self.num_envs} slots, got {actions!r}")
        if array.nbytes > self.num_envs * self._arrays.action_capacity:
            expected = (self.num_envs, *(self.action_space.shape or ()))
            raise ValueError(f"actions must have the shape {expected}, got {array.shape} of {array.dtype}")
        self._arrays.actions(array.shape, array.dtype.str)[...] = array
        message = pickle.dumps(("step", array.shape, array.dtype.str))
        with _whole(), self._noting_death():
            for worker in self._workers:
                worker.send_message("step", message)
        self._stepping = True

    def step_wait(self) -> VecEnvStepReturn:
        """
        Wait for the step; a trial that ends is followed by a new one.

        :return: Observations ``(n_envs, ...)``, rewards ``(n_envs,)`` float32, dones ``(n_envs,)`` bool, infos.
        :raises RuntimeError: If an environment raises an error, or a worker is dead, or no step has begun.
        """
        if not self._stepping:
            self._require_ready()
            raise RuntimeError("step_wait() needs step_async() before it, and no other call between them")
        self._stepping = False
        replies = self._receive(self._workers, "in step()")
        infos: list[dict[str, Any]] = []
        layouts, rows = self._arrays.layouts.tolist(), self._arrays.columns.tolist()
        for worker, events in zip(self._workers, replies, strict=True):
            if events is not None:
                for slot, reset_info in events.reset_infos.items():
                    self.reset_infos[slot] = reset_info
            for slot in worker.slots:
                number = layouts[slot]
                infos.append(events.infos[slot] if number == PICKLED else worker.layouts[number].info(rows[slot]))
        return self._observations(), self._arrays.rewards.copy(), self._arrays.dones.copy(), infos

    def _observations(self) -> VecEnvObs:
        return dict_to_obs(self.observation_space, deepcopy(self._arrays.observations))

    def __getstate__(self) -> dict[str, Any]:
        # Half a copy would close the connections of this one
        raise TypeError(
            "ProcessVecEnv can't be copied or pickled, its environments are in processes of their own; use DummyVecEnv"
        )

    # ---- the rest of SB3's interface -----------------------------------------------------------------------------------

    def close(self) -> None:
        """Close the environments, end the processes and give the memory back. Doing it again changes nothing."""
        self._closed = True
        self._finalizer()

    def get_images(self) -> Sequence[np.ndarray | None]:
        """:return: Image of every slot; None without ``render_mode="rgb_array"``."""
        if self.render_mode != "rgb_array":
            warnings.warn(f"render_mode is {self.render_mode!r}, images need render_mode='rgb_array'")
            return [None for _ in range(self.num_envs)]
        return self.env_method("render")

    def has_attr(self, attr_name: str) -> bool:
        """
        :param attr_name: Name of an attribute.
        :return: Whether all environments, or what they wrap, have it.
        """
        return all(self._ask_slots(None, "has_attr", attr_name))

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """
        :param attr_name: Name of an attribute of the environments, or of what they wrap.
        :param indices: Slots, None is all.
        :return: Copies of its values.
        """
        return self._ask_slots(indices, "get_attr", attr_name)

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """
        :param attr_name: Name of an attribute of the environments (as they come from ``env_fns``).
        :param value: Value for it.
        :param indices: Slots, None is all.
        """
        self._ask_slots(indices, "set_attr", attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        """
        :param method_name: Name of a method of the environments, or of what they wrap.
        :param method_args: Its arguments.
        :param indices: Slots, None is all.
        :param method_kwargs: Its keyword arguments.
        :return: What it returns in each slot.
        """
        return self._ask_slots(indices, "env_method", method_name, method_args, method_kwargs)

    def env_is_wrapped(
        self, wrapper_class: type[gym.Wrapper[Any, Any, Any, Any]], indices: VecEnvIndices = None
    ) -> list[bool]:
        """
        :param wrapper_class: A wrapper.
        :param indices: Slots, None is all.
        :return: Whether each is wrapped in it.
        """
        return self._ask_slots(indices, "is_wrapped", wrapper_class)

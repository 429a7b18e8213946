"""ProcessVecEnv against DummyVecEnv of the same environments, bit for bit; its processes and how they fail."""

import contextlib
import gc
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import OrderedDict
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback
from stable_baselines3.common.monitor import Monitor, load_results
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_trmrl import TrMRLPPO
from sb3_trmrl.common import env_util
from sb3_trmrl.common.env_util import fastest_vec_env, make_meta_vec_env
from sb3_trmrl.common.evaluation import evaluate_adaptation
from sb3_trmrl.common.vec_env import MujocoVecEnv, ProcessVecEnv, process_vec_env
from sb3_trmrl.common.vec_env.env_worker import N_COLUMNS, check_free
from sb3_trmrl.envs import PointRobot, TrialWrapper

RAISE, HANG, EXIT, QUIT = 1, 2, 3, 4


class Gadget(gym.Env[Any, Any]):
    """Observations of several kinds, infos of all kinds, and actions that break it."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 7}

    def __init__(self, render_mode: str | None = None):
        self.observation_space = spaces.Dict(
            {
                "image": spaces.Box(0, 255, (2, 3, 1), np.uint8),
                "vector": spaces.Box(-np.inf, np.inf, (3,), np.float64),
                "kind": spaces.Discrete(5),
            }
        )
        self.action_space = spaces.Discrete(5)
        self.render_mode = render_mode
        self.n_steps = 0
        self.label = "none"

    def _observe(self) -> dict[str, Any]:
        return {
            "image": self.np_random.integers(0, 256, (2, 3, 1), np.uint8),
            "vector": self.np_random.normal(size=3),
            "kind": int(self.np_random.integers(5)),
        }

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.n_steps = 0
        return self._observe(), {"options": options, "first": float(self.np_random.normal())}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if action == RAISE:
            raise ZeroDivisionError("the gadget is broken")
        if action == HANG:
            time.sleep(60)
        if action == EXIT:
            os._exit(3)
        if action == QUIT:
            sys.exit("the gadget quits")
        self.n_steps += 1
        number = float(self.np_random.normal())
        infos: list[dict[str, Any]] = [
            {"a": number, "b": True, "c": np.float64(number), "d": np.bool_(False), "e": np.float32(number)},
            {"b": np.float64("nan"), "a": -0.0},
            {},
            {"count": 2**60 + 1, "a": 1.5},
            {"text": "text", "array": self.np_random.normal(size=2), "nested": {"x": [1, None]}},
            {f"column {index}": float(index) for index in range(N_COLUMNS + 1)},
        ]
        info = infos[int(self.np_random.integers(len(infos)))]
        ended = self.n_steps > 1 and bool(self.np_random.random() < 0.15)
        terminated = ended and number > 0
        return self._observe(), number, terminated, ended and not terminated, info

    def render(self) -> np.ndarray:
        return np.full((2, 2, 3), self.n_steps, np.uint8)

    def add(self, number: float, times: int = 1) -> float:
        return self.n_steps + number * times

    def complain(self) -> None:
        raise KeyError("complaint")


class Echo(gym.Env[Any, Any]):
    """Observes the action, and tells its type."""

    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = spaces.Box(-9, 9, (2,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        return np.zeros(2), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return np.array(action, np.float64), 0.0, False, False, {"type": str(action.dtype)}


class Late(Echo):
    """Observes the action of the step before, which it keeps as it got it."""

    kept: Any = np.zeros(2)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, self.kept = self.kept, action
        return super().step(observation)[0], 0.0, False, False, {}


class Careless(Echo):
    """Observes numbers of numpy's global generator."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        return np.random.random(2), {}  # noqa: NPY002


class SlowPointRobot(PointRobot):
    """A family that says that it is slow."""

    steps_are_slow = True


def make_slow(**kwargs: Any) -> TrialWrapper:
    return TrialWrapper(SlowPointRobot(horizon=5), **kwargs)


def gadgets(n_envs: int = 3, n_workers: int | None = 2, **kwargs: Any) -> ProcessVecEnv:
    return ProcessVecEnv([Gadget] * n_envs, n_workers, **kwargs)


def assert_same(expected: Any, found: Any) -> None:
    """Equal in values and types, keys in the same order."""
    if type(expected) is OrderedDict:  # of observations, in DummyVecEnv
        expected = dict(expected)
    assert type(expected) is type(found)
    if isinstance(expected, dict):
        assert list(expected) == list(found)
        for key, value in expected.items():
            if key != "t":  # wall clock of the monitor
                assert_same(value, found[key])
    elif isinstance(expected, (list, tuple)):
        assert len(expected) == len(found)
        for one, other in zip(expected, found, strict=True):
            assert_same(one, other)
    elif isinstance(expected, (np.ndarray, np.generic, float)):
        assert np.asarray(expected).dtype == np.asarray(found).dtype and np.shape(expected) == np.shape(found)
        assert np.asarray(expected).tobytes() == np.asarray(found).tobytes()
    else:
        assert expected == found


def assert_equal_trials(expected: DummyVecEnv, env: ProcessVecEnv, n_steps: int, draw: Callable[[int], Any]) -> None:
    assert env.observation_space == expected.observation_space and env.action_space == expected.action_space
    assert env.num_envs == expected.num_envs and env.metadata == expected.metadata
    try:
        for start in range(2):
            assert env.seed(7 + start) == expected.seed(7 + start)
            assert_same(expected.reset(), env.reset())
            assert_same(list(expected.reset_infos), list(env.reset_infos))
            n_done = 0
            for step in range(n_steps):
                actions = draw(step)
                wanted = expected.step(actions)
                assert_same(wanted, env.step(actions))
                assert_same(list(expected.reset_infos), list(env.reset_infos))
                n_done += int(wanted[2].sum())
            assert n_done >= env.num_envs
    finally:
        expected.close()
        env.close()


# ---- the same as DummyVecEnv -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_workers", [1, 2, 3])
@pytest.mark.parametrize("n_envs", [1, 2, 7])
@pytest.mark.parametrize("env_id", ["HalfCheetahVel-v0", "MetaBandit-v0"])
def test_equals_dummy_vec_env_bit_for_bit(env_id: str, n_envs: int, n_workers: int) -> None:
    kwargs: dict[str, Any] = {"n_envs": n_envs, "seed": 3, "env_kwargs": {"horizon": 9}}
    expected = make_meta_vec_env(env_id, vec_env_cls=DummyVecEnv, **kwargs)
    env = make_meta_vec_env(env_id, vec_env_cls=ProcessVecEnv, vec_env_kwargs={"n_workers": n_workers}, **kwargs)
    assert type(env) is ProcessVecEnv and env.n_workers == min(n_envs, n_workers)
    rng = np.random.default_rng(0)

    def draw(_: int) -> np.ndarray:
        if isinstance(expected.action_space, spaces.Discrete):
            return rng.integers(0, expected.action_space.n, n_envs)
        return rng.uniform(-1.3, 1.3, (n_envs, *expected.action_space.shape)).astype(np.float32)  # type: ignore[misc]

    assert isinstance(expected, DummyVecEnv)
    assert_equal_trials(expected, env, 40, draw)


@pytest.mark.parametrize("n_workers", [1, 2, 3])
@pytest.mark.parametrize("n_envs", [1, 2, 7])
def test_dict_observations_and_infos_of_all_kinds(n_envs: int, n_workers: int) -> None:
    functions: list[Callable[[], gym.Env[Any, Any]]] = [lambda: Monitor(Gadget())] * n_envs
    zeros = np.zeros(n_envs, np.int64)
    assert_equal_trials(DummyVecEnv(functions), ProcessVecEnv(functions, n_workers), 60, lambda _: zeros)


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.int8, list])
def test_environments_get_actions_of_the_type_that_was_given(kind: Any) -> None:
    actions: Any = np.array([[0.1, 0.2], [3.3, 4.4]])
    actions = actions.tolist() if kind is list else actions.astype(kind)
    env, expected = ProcessVecEnv([Echo] * 2), DummyVecEnv([Echo] * 2)
    for one in (env, expected):
        one.reset()
    expected_type = "float64" if kind is list else np.dtype(kind).name
    observations, _, _, infos = env.step(actions)
    assert infos[0]["type"] == expected_type
    np.testing.assert_array_equal(observations, expected.step(np.asarray(actions))[0])
    env.close()


def test_an_environment_may_keep_the_action_that_it_gets() -> None:
    env = ProcessVecEnv([Late] * 2, n_workers=1)
    env.reset()
    for step in range(3):
        np.testing.assert_array_equal(env.step(np.full((2, 2), step, np.float32))[0], max(0, step - 1))
    env.close()


@pytest.mark.parametrize("make", [Gadget, make_slow])
def test_results_are_not_overwritten_by_the_next_step(make: Any) -> None:
    env = ProcessVecEnv([make] * 3, n_workers=2)
    env.seed(0)
    actions = np.zeros((3, *(env.action_space.shape or ())), env.action_space.dtype)
    results: list[Any] = [env.reset()]
    kept = deepcopy(results)
    for _ in range(20):
        results.append(env.step(actions))
        kept.append(deepcopy(results[-1]))
    assert_same(kept, results)
    for part in (1, 2):  # rewards and dones were not always the same
        assert len({step[part].tobytes() for step in kept[1:]}) > 1
    env.close()


def test_unseeded_slots_and_processes_differ() -> None:
    env = gadgets(4, 4)
    vectors = env.reset()["vector"]  # type: ignore[call-overload]
    assert len(np.unique(vectors)) == vectors.size
    env.close()
    env = ProcessVecEnv([Careless] * 3, n_workers=3)
    assert len(np.unique(env.reset())) == 6  # type: ignore[arg-type]
    env.close()


def test_options_and_tasks_reach_their_slots() -> None:
    env = gadgets(3)
    env.set_options([{"a": slot} if slot else {} for slot in range(3)])
    env.reset()
    assert [info["options"] for info in env.reset_infos] == [None, {"a": 1}, {"a": 2}]
    env.reset()
    assert [info["options"] for info in env.reset_infos] == [None, None, None]
    env.close()
    tasks = [{"goal": [0.1 * slot, 0.2]} for slot in range(3)]
    robots = make_meta_vec_env("PointRobot-v0", n_envs=3, tasks=tasks, vec_env_cls=ProcessVecEnv)
    robots.reset()
    assert robots.env_method("get_task") == tasks
    robots.close()


# ---- attributes and methods --------------------------------------------------------------------------------------------


def test_attributes_and_methods() -> None:
    env = ProcessVecEnv([partial(Gadget, render_mode="rgb_array")] * 4, n_workers=3)
    env.reset()
    env.step(np.zeros(4, np.int64))
    assert env.get_attr("n_steps") == [1, 1, 1, 1]
    env.set_attr("n_steps", 5, indices=[3, 1])
    env.set_attr("n_steps", 7, indices=-2)
    assert env.get_attr("n_steps") == [1, 5, 7, 5]
    assert env.get_attr("n_steps", indices=[2, 0, 2]) == [7, 1, 7]
    assert env.env_method("add", 0.5, times=2, indices=(3, 0)) == [6.0, 2.0]
    assert env.has_attr("add") and not env.has_attr("subtract")
    assert env.render_mode == "rgb_array"
    images = env.get_images()
    assert [int(image.max()) for image in images if image is not None] == [1, 5, 7, 5]
    assert env.render().shape == (4, 4, 3)  # type: ignore[union-attr]
    assert env.env_is_wrapped(Monitor) == [False] * 4
    with pytest.raises(IndexError):
        env.get_attr("n_steps", indices=4)
    env.close()


def test_errors_of_methods_are_raised_as_they_are_and_change_nothing() -> None:
    env = gadgets()
    env.reset()
    with pytest.raises(KeyError, match="complaint") as caught:
        env.env_method("complain", indices=2)
    assert "in complain" in str(caught.value.__cause__)
    with pytest.raises(AttributeError):
        env.get_attr("subtract")
    with pytest.raises(TypeError):
        env.env_method("add")
    env.step(np.zeros(3, np.int64))
    assert env.get_attr("n_steps") == [1, 1, 1]
    env.close()


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="at least one function"):
        ProcessVecEnv([])
    for n_workers in (0, True, 1.5):
        with pytest.raises(ValueError, match="n_workers"):
            gadgets(n_workers=n_workers)  # type: ignore[arg-type]
    bad_timeouts: tuple[Any, ...] = (0, "x")
    for timeout in bad_timeouts:
        with pytest.raises(ValueError, match=f"start_timeout must be a number > 0 .*got {timeout!r}"):
            gadgets(start_timeout=timeout)
    env = gadgets()
    env.reset()
    bad: list[Any] = [np.zeros(2), np.zeros((3, 2)), np.array(["a"] * 3), np.float32(1.0)]
    for actions in bad:
        with pytest.raises(ValueError, match="actions must"):
            env.step(actions)
    with pytest.raises(RuntimeError, match="step_async"):
        env.step_wait()
    env.close()
    env.close()
    for call in (env.reset, env.step_wait, partial(env.get_attr, "n_steps")):
        with pytest.raises(ValueError, match="closed"):
            call()


def test_environments_that_do_not_fit_together() -> None:
    with pytest.raises(ValueError, match=r"slot 0 has .* slot 1 has"):
        ProcessVecEnv([Gadget, make_slow])
    shared = Gadget()
    with pytest.raises(RuntimeError, match="same one"):
        ProcessVecEnv([lambda: shared] * 2, n_workers=1)
    lock = multiprocessing.Lock()
    with pytest.raises(ValueError, match="can't be pickled"):
        ProcessVecEnv([lambda: (lock, Gadget())[1]])


# ---- which one is chosen -----------------------------------------------------------------------------------------------


def test_slow_families_get_processes_and_right_monitor_files(tmp_path: Path) -> None:
    env = make_meta_vec_env(make_slow, n_envs=3, seed=0, monitor_dir=str(tmp_path), vec_env_kwargs={"n_workers": 2})
    assert type(env) is ProcessVecEnv and env.n_workers == 2
    env.reset()
    for _ in range(20):  # two trials of two episodes of five steps
        env.step(np.zeros((3, 2), np.float32))
    env.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.monitor.csv", "1.monitor.csv", "2.monitor.csv"]
    results = load_results(str(tmp_path))
    assert len(results) == 6 and set(results["l"]) == {10}


def test_an_id_that_only_this_process_knows() -> None:
    gym.register("OnlyHere-v0", entry_point=make_slow, kwargs={"episodes_per_trial": 3})
    try:
        env = make_meta_vec_env("OnlyHere-v0", n_envs=2, env_kwargs={"split": "test"}, vec_env_kwargs={"n_workers": 2})
        assert type(env) is ProcessVecEnv
        assert env.get_attr("episodes_per_trial") == [3, 3] and env.get_attr("split") == ["test", "test"]
        env.close()
    finally:
        del gym.registry["OnlyHere-v0"]


def test_too_little_shared_memory_is_told_before_a_worker_dies_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr("sb3_trmrl.common.vec_env.env_worker.SHARED_MEMORY_FOLDER", "/")
    monkeypatch.setattr("shutil.disk_usage", lambda folder: usage._replace(free=100))
    check_free(100)
    with pytest.raises(OSError, match=r"needs 0 MB of shared memory.*has 0 MB left: enlarge it"):
        ProcessVecEnv([make_slow] * 2)
    assert not multiprocessing.active_children()
    monkeypatch.setattr("shutil.disk_usage", lambda folder: usage._replace(total=0, free=0))
    check_free(10**15)
    monkeypatch.undo()
    monkeypatch.setattr("sb3_trmrl.common.vec_env.env_worker.SHARED_MEMORY_FOLDER", "/there is none")
    check_free(10**15)


def test_choice_without_keywords(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sb3_trmrl.common.env_util.n_usable_cores", lambda: 2)
    for n_envs, expected in ((1, DummyVecEnv), (2, ProcessVecEnv)):
        env = fastest_vec_env([make_slow] * n_envs)
        assert type(env) is expected
        env.close()
    monkeypatch.setattr("sb3_trmrl.common.env_util.n_usable_cores", lambda: 1)
    assert type(fastest_vec_env([make_slow] * 2)) is DummyVecEnv
    assert type(make_meta_vec_env("HalfCheetahVel-v0", n_envs=2)) is MujocoVecEnv
    assert type(make_meta_vec_env("PointRobot-v0", n_envs=2)) is DummyVecEnv
    with pytest.raises(ValueError, match="at least one"):
        fastest_vec_env([])


def test_evaluation_in_processes_equals_that_in_this_one(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[ProcessVecEnv] = []
    start = ProcessVecEnv.__init__

    def noting(self: ProcessVecEnv, *args: Any, **kwargs: Any) -> None:
        started.append(self)
        start(self, *args, **kwargs)

    monkeypatch.setattr(ProcessVecEnv, "__init__", noting)
    monkeypatch.setattr("sb3_trmrl.common.env_util.n_usable_cores", lambda: 2)

    def act(observations: np.ndarray) -> np.ndarray:
        return np.sin(100 * observations[:, :2])

    kwargs: dict[str, Any] = {"n_tasks": 5, "n_episodes": 2, "seed": 4}
    found = evaluate_adaptation(act, make_slow, **kwargs)
    monkeypatch.setattr(SlowPointRobot, "steps_are_slow", False)
    expected = evaluate_adaptation(act, make_slow, **kwargs)
    assert len(started) == 1 and started[0]._closed
    assert found.tasks == expected.tasks
    np.testing.assert_array_equal(found.returns, expected.returns)
    assert not multiprocessing.active_children()


def _kind_of_vec_env(n_envs: int) -> str:
    env_util.n_usable_cores = lambda: 2
    with pytest.raises(RuntimeError, match="this process may start no others, as it is a daemon"):
        make_meta_vec_env(make_slow, n_envs, vec_env_cls=ProcessVecEnv)
    return type(make_meta_vec_env(make_slow, n_envs)).__name__


def test_a_worker_of_a_pool_may_start_no_processes() -> None:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.map(_kind_of_vec_env, [2]) == ["DummyVecEnv"]


@pytest.mark.parametrize("vec_env_cls", [DummyVecEnv, ProcessVecEnv])
def test_the_task_that_does_not_fit_is_named_by_its_slot_and_nothing_stays(vec_env_cls: Any) -> None:
    with pytest.raises(ValueError, match=r"tasks\[1\]: task of SlowPointRobot must have exactly the keys .*'gaol'") as caught:
        make_meta_vec_env(make_slow, 2, tasks=[{"goal": [0, 0]}, {"gaol": [0, 0]}], vec_env_cls=vec_env_cls)
    assert not multiprocessing.active_children(), caught


def test_progress_bar_counts_environments(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    tqdm = process_vec_env.tqdm

    def noting(*args: Any, **kwargs: Any) -> Any:
        made.append(tqdm(*args, **{**kwargs, "disable": False, "delay": 0}))
        return made[-1]

    monkeypatch.setattr(process_vec_env, "tqdm", noting)
    gadgets(5).close()
    assert [(bar.total, bar.n) for bar in made] == [(5, 5)]


# ---- failures ----------------------------------------------------------------------------------------------------------


def pids(env: ProcessVecEnv) -> list[int]:
    return [worker.process.pid for worker in env._workers if worker.process.pid is not None]


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def assert_gone(processes: list[int], seconds: float = 5.0) -> None:
    until = time.monotonic() + seconds
    while any(map(is_alive, processes)):
        assert time.monotonic() < until, f"{[pid for pid in processes if is_alive(pid)]} are still alive"
        time.sleep(0.02)


@pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGSEGV])
def test_worker_killed_in_the_middle_of_a_step(kill: signal.Signals) -> None:
    env = gadgets(5, 2)
    env.reset()
    processes = pids(env)
    env.step_async(np.array([0, 0, HANG, 0, 0]))
    time.sleep(0.2)
    os.kill(processes[1], kill)
    start = time.monotonic()
    with pytest.raises(RuntimeError, match=rf"worker 1 \(slots 2 to 4\) ended with exit code {-kill} \({kill.name}\).*step"):
        env.step_wait()
    assert time.monotonic() - start < 5
    for call in (env.reset, partial(env.step, np.zeros(5)), partial(env.get_attr, "n_steps")):
        with pytest.raises(RuntimeError, match="worker 1"):
            call()
    start = time.monotonic()
    env.close()
    assert time.monotonic() - start < 5
    assert_gone(processes)
    assert not multiprocessing.active_children()


def test_worker_killed_between_steps_and_one_that_exits() -> None:
    env = gadgets(2, 2)
    env.reset()
    os.kill(pids(env)[0], signal.SIGKILL)
    with pytest.raises(RuntimeError, match=r"worker 0 \(slot 0\) ended with exit code -9 \(SIGKILL\)"):
        for _ in range(10):
            env.step(np.zeros(2, np.int64))
    env.close()
    env = gadgets(2, 2)
    env.reset()
    with pytest.raises(RuntimeError, match=r"worker 1 \(slot 1\) ended with exit code 3"):
        env.step(np.array([0, EXIT]))
    env.close()


@pytest.mark.parametrize(("action", "error"), [(RAISE, ZeroDivisionError), (QUIT, SystemExit)])
def test_error_of_an_environment(action: int, error: type[BaseException]) -> None:
    env = gadgets(5, 2)
    env.reset()
    with pytest.raises(RuntimeError, match=r"slot 3, in worker 1 \(slots 2 to 4\), raised an error in step") as caught:
        env.step(np.array([0, 0, 0, action, 0]))
    assert "the gadget" in str(caught.value) and "test_process_vec_env.py" in str(caught.value)
    assert type(caught.value.__cause__) is error
    if error is SystemExit:
        with pytest.raises(RuntimeError, match="worker 1"):
            env.reset()
    else:  # goes on
        expected = DummyVecEnv([Gadget] * 5)
        for one in (env, expected):
            one.seed(1)
        assert_same(expected.reset(), env.reset())
        assert_same(expected.step(np.zeros(5, np.int64)), env.step(np.zeros(5, np.int64)))
    env.close()


def fail_to_start(how: str) -> gym.Env[Any, Any]:
    if how == "raise":
        raise ZeroDivisionError("no gadget")
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)
    return Gadget()


@pytest.mark.parametrize(
    ("how", "error", "message"),
    [
        ("raise", RuntimeError, r"slot 1, in worker 1 \(slot 1\), raised an error while it was made(.|\n)*no gadget"),
        ("kill", RuntimeError, r"worker 1 \(slot 1\) ended with exit code -9 \(SIGKILL\) while it started"),
        ("sleep", TimeoutError, r"worker 1 \(slot 1\).*start_timeout=1.5"),
    ],
)
def test_failed_start(how: str, error: type[Exception], message: str) -> None:
    gadgets().close()  # the server that makes processes is up
    start = time.monotonic()
    with pytest.raises(error, match=message):
        ProcessVecEnv([Gadget, partial(fail_to_start, how)], n_workers=2, start_timeout=1.5 if how == "sleep" else 60)
    assert time.monotonic() - start < 30
    assert not multiprocessing.active_children()


def test_garbage_leaves_no_process() -> None:
    env = gadgets()
    processes = pids(env)
    del env
    assert_gone(processes)


class KillsWorker(BaseCallback):
    """Kills a worker while the model learns."""

    def __init__(self, at: int):
        super().__init__()
        self.at = at

    def _on_step(self) -> bool:
        if self.num_timesteps == self.at:
            env = self.training_env
            assert isinstance(env, ProcessVecEnv)
            os.kill(pids(env)[1], signal.SIGKILL)
        return True


def test_training_ends_with_an_error_and_its_checkpoint_goes_on(tmp_path: Path) -> None:
    def make(n_workers: int = 2) -> Any:
        chosen: dict[str, Any] = {"vec_env_cls": ProcessVecEnv, "vec_env_kwargs": {"n_workers": n_workers}}
        return make_meta_vec_env("PointRobot-v0", n_envs=4, seed=0, env_kwargs={"horizon": 8}, **chosen)

    env = make()
    settings: dict[str, Any] = {"n_steps": 16, "batch_size": 32, "n_epochs": 1, "seed": 0, "device": "cpu"}
    model = TrMRLPPO("TrMRLPolicy", env, **settings)
    checkpoint = CheckpointCallback(save_freq=20, save_path=str(tmp_path), name_prefix="model")
    with pytest.raises(RuntimeError, match=r"worker 1 \(slots 2 to 3\) ended with exit code -9"):
        model.learn(10_000, callback=[checkpoint, KillsWorker(at=92)])
    env.close()
    assert not multiprocessing.active_children()
    env = make()
    model = TrMRLPPO.load(tmp_path / "model_80_steps", env=env, device="cpu")
    assert model.num_timesteps == 80
    model.learn(64, reset_num_timesteps=False)
    assert model.num_timesteps >= 144
    env.close()


# ---- whole scripts -----------------------------------------------------------------------------------------------------

SCRIPT = """
import os, signal, sys, time
signal.alarm(120)  # its end, should it hang
import gymnasium as gym
import numpy as np
from gymnasium import spaces
from sb3_trmrl.common.vec_env import ProcessVecEnv

class Mine(gym.Env):
    observation_space = spaces.Box(-1, 1, (2,))
    action_space = spaces.Box(-1, 1, (1,))
    render_mode = None

    def reset(self, *, seed=None, options=None):
        return np.zeros(2, np.float32), {}

    def step(self, action):
        time.sleep(max(0.01, action[0]))
        return np.ones(2, np.float32), 1.0, False, False, {"mine": Mine}

print("once")
env = ProcessVecEnv([Mine] * 3, n_workers=2)
print(env._arrays.name, *[worker.process.pid for worker in env._workers], flush=True)
env.reset()
"""


class Script:
    """
    A script that has made an environment. At the end of the ``with`` it is gone, whatever happened.

    :param end: What it does then.
    :param file: Where to write it, so that other processes could run it again; None hands it to Python as it is.
    """

    def __init__(self, end: str, file: Path | None = None):
        if file is not None:
            file.write_text(SCRIPT + end)
        command = [sys.executable, *(["-c", SCRIPT + end] if file is None else [str(file)])]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )

    def __enter__(self) -> "Script":
        try:
            assert self.line() == "once"  # only: it needs no guard for its main part
            memory, *workers = self.line().split()
        except BaseException:
            self.__exit__()
            raise
        self.memory = Path("/dev/shm", memory.lstrip("/"))
        self.workers = [int(pid) for pid in workers]
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()

    def line(self) -> str:
        """:return: Its next line on stdout, as soon as it is there."""
        assert self.process.stdout is not None and self.process.stderr is not None
        line = self.process.stdout.readline()
        assert line.endswith("\n"), self.process.stderr.read()
        return line[:-1]

    def interrupt(self) -> None:
        """As a terminal does."""
        os.killpg(self.process.pid, signal.SIGINT)

    def assert_ends(self, out: str) -> None:
        """It ends by itself, with this on stdout, nothing on stderr, and leaves nothing."""
        assert (*self.process.communicate(timeout=60), self.process.returncode) == (out, "", 0)
        self.assert_leaves_nothing()

    def assert_leaves_nothing(self) -> None:
        assert_gone(self.workers)
        assert not self.memory.exists()


def test_script_without_guard_and_without_close_leaves_nothing(tmp_path: Path) -> None:
    # Its own environment class comes back as it is
    end = "_, _, _, infos = env.step(np.zeros((3, 1)))\nassert infos[0]['mine'] is Mine\n"
    with Script(end, tmp_path / "script.py") as script:
        script.assert_ends("")


def test_workers_end_with_the_main_process() -> None:
    with Script("while True: env.step(np.zeros((3, 1)))") as script:
        time.sleep(0.3)
        script.process.kill()
        script.process.wait()
        script.assert_leaves_nothing()


def test_interrupt_reaches_the_main_process_only_and_it_can_go_on() -> None:
    # A shell lets what runs in its background ignore interrupts, and that is inherited
    end = """
signal.signal(signal.SIGINT, signal.default_int_handler)
try:
    print("stepping", flush=True)
    while True:
        env.step(np.zeros((3, 1)))
except KeyboardInterrupt:
    print("interrupted")
env.reset()
assert env.step(np.zeros((3, 1)))[1].tolist() == [1.0, 1.0, 1.0]
env.close()
print("closed")
"""
    with Script(end) as script:
        assert script.line() == "stepping"
        time.sleep(0.2)
        script.interrupt()
        script.assert_ends("interrupted\nclosed\n")


def test_an_interrupt_at_any_moment_tears_no_message() -> None:
    # Steps that take no time, so that messages are most of it
    end = """
class Quick(Mine):
    def step(self, action):
        return np.ones(2, np.float32), 1.0, False, False, {}

signal.signal(signal.SIGINT, signal.default_int_handler)
quick = ProcessVecEnv([Quick] * 3, n_workers=2)
for attempt in range(200):
    try:
        quick.reset()
        print(attempt, flush=True)
        while True:
            quick.step(np.zeros((3, 1)))
    except KeyboardInterrupt:
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
env.close()
quick.close()
print("closed")
"""
    with Script(end) as script:
        for attempt in range(200):
            assert script.line() == str(attempt)
            time.sleep(attempt * 1e-5)
            script.interrupt()
        script.assert_ends("closed\n")


def test_interrupted_while_it_closes_it_leaves_nothing() -> None:
    # Workers that are told to close are in a step that lasts long
    end = """
signal.signal(signal.SIGINT, signal.default_int_handler)
env.step_async(np.full((3, 1), 100.0))
try:
    print("closing", flush=True)
    env.close()
except KeyboardInterrupt:
    print("interrupted", flush=True)
env.close()
time.sleep(100)
"""
    with Script(end) as script:
        assert script.line() == "closing"
        time.sleep(0.5)
        script.interrupt()
        assert script.line() == "interrupted"
        script.assert_leaves_nothing()


def test_an_interrupt_and_a_death_at_once_are_both_seen() -> None:
    env = gadgets(2, 2)
    env.reset()
    os.kill(pids(env)[0], signal.SIGKILL)
    env._workers[0].process.join()
    interrupts = []

    def note(number: int, frame: Any) -> None:
        interrupts.append(number)

    original = signal.signal(signal.SIGINT, note)
    try:
        with process_vec_env._whole(), pytest.raises(RuntimeError, match="worker 0"):
            os.kill(os.getpid(), signal.SIGINT)
            env.step(np.zeros(2, np.int64))
        assert interrupts == [signal.SIGINT]
        with pytest.raises(ZeroDivisionError), process_vec_env._whole():
            os.kill(os.getpid(), signal.SIGINT)
            raise ZeroDivisionError
        assert interrupts == [signal.SIGINT] * 2 and signal.getsignal(signal.SIGINT) is note
    finally:
        signal.signal(signal.SIGINT, original)
    env.close()


def test_metaworld_equals_dummy_vec_env_bit_for_bit() -> None:
    pytest.importorskip("metaworld")
    kwargs: dict[str, Any] = {"n_envs": 3, "seed": 3, "env_kwargs": {"horizon": 20}}
    expected = make_meta_vec_env("ML1-reach-v3", vec_env_cls=DummyVecEnv, **kwargs)
    env = make_meta_vec_env("ML1-reach-v3", vec_env_kwargs={"n_workers": 2}, **kwargs)
    assert type(env) is ProcessVecEnv and isinstance(expected, DummyVecEnv)
    rng = np.random.default_rng(0)
    assert_equal_trials(expected, env, 90, lambda _: rng.uniform(-1, 1, (3, 4)).astype(np.float32))


class Closes(Echo):
    """Writes down that it was closed; the first one then fails."""

    def __init__(self, folder: Path, index: int):
        super().__init__()
        self.folder, self.index = folder, index

    def close(self) -> None:
        (self.folder / str(self.index)).touch()
        if self.index == 0:
            raise RuntimeError("close broke")


def test_an_environment_that_fails_to_close_keeps_none_open(tmp_path: Path) -> None:
    env = ProcessVecEnv([partial(Closes, tmp_path, index) for index in range(4)], n_workers=2)
    env.reset()
    with pytest.warns(UserWarning, match="close broke"):
        env.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1", "2", "3"]


def test_a_copy_is_refused_and_changes_nothing() -> None:
    env = ProcessVecEnv([Echo] * 3, n_workers=2)
    env.reset()
    with pytest.raises(TypeError, match="can't be copied or pickled"):
        deepcopy(env)
    gc.collect()
    assert len(env.step(np.zeros((3, 2), np.float32))) == 4
    env.close()


class Unreadable:
    """Can be pickled, and not made again."""

    def __reduce__(self) -> Any:
        return int, ("x",)


class TellsUnreadable(Echo):
    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return np.zeros(2), 0.0, False, False, {"thing": Unreadable()}

    def unreadable(self, *_: Any) -> Unreadable:
        return Unreadable()


def test_what_cannot_be_unpickled_is_an_error_of_its_call_alone() -> None:
    env = ProcessVecEnv([TellsUnreadable] * 2, n_workers=2)
    env.reset()
    for _ in range(2):
        with pytest.raises(ValueError, match="invalid literal"):
            env.env_method("unreadable")
        with pytest.raises(ValueError, match="invalid literal"):
            env.set_attr("thing", Unreadable(), indices=1)
    assert env.get_attr("action_space") == [env.action_space] * 2
    # A step's reply tells how further infos are read
    for error in (ValueError, RuntimeError):
        with pytest.raises(error):
            env.step(np.zeros((2, 2), np.float32))
    env.close()

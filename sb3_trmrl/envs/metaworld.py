"""Meta-World's ML1, ML10 and ML45 (arXiv 1910.10897) as task families; making one needs the extra ``metaworld``."""

import math
from collections.abc import Mapping
from functools import cache, partial
from typing import Any

import numpy as np
from gymnasium import spaces

from sb3_trmrl.common.arguments import check_flags, did_you_mean, is_integer, is_number
from sb3_trmrl.envs.meta_env import EnvState, MetaEnv, Task
from sb3_trmrl.envs.mujoco.rendering import Renderer

ENVIRONMENTS = (
    "assembly-v3",
    "basketball-v3",
    "bin-picking-v3",
    "box-close-v3",
    "button-press-topdown-v3",
    "button-press-topdown-wall-v3",
    "button-press-v3",
    "button-press-wall-v3",
    "coffee-button-v3",
    "coffee-pull-v3",
    "coffee-push-v3",
    "dial-turn-v3",
    "disassemble-v3",
    "door-close-v3",
    "door-lock-v3",
    "door-open-v3",
    "door-unlock-v3",
    "hand-insert-v3",
    "drawer-close-v3",
    "drawer-open-v3",
    "faucet-open-v3",
    "faucet-close-v3",
    "hammer-v3",
    "handle-press-side-v3",
    "handle-press-v3",
    "handle-pull-side-v3",
    "handle-pull-v3",
    "lever-pull-v3",
    "pick-place-wall-v3",
    "pick-out-of-hole-v3",
    "pick-place-v3",
    "plate-slide-v3",
    "plate-slide-side-v3",
    "plate-slide-back-v3",
    "plate-slide-back-side-v3",
    "peg-insert-side-v3",
    "peg-unplug-side-v3",
    "soccer-v3",
    "stick-push-v3",
    "stick-pull-v3",
    "push-v3",
    "push-wall-v3",
    "push-back-v3",
    "reach-v3",
    "reach-wall-v3",
    "shelf-place-v3",
    "sweep-into-v3",
    "sweep-v3",
    "window-open-v3",
    "window-close-v3",
)
"""Meta-World's environments, in its order; each is a family of its own, ``ML1-<environment>``."""
BENCHMARKS = (*(f"ML1-{environment}" for environment in ENVIRONMENTS), "ML10-v3", "ML45-v3")
"""The ids."""
REWARD_VERSIONS = ("v1", "v2")
N_GOALS = 50
"""Goals of each environment in each split."""
TASK_KEYS = frozenset({"environment", "split", "goal"})
HAND_LOW, HAND_HIGH = (-0.525, 0.348, -0.0525), (0.525, 1.025, 0.7)
"""Bounds of the hand's position in metres, which Meta-World clips observations to."""
OBJECTS = np.r_[4:18, 22:36]
"""Where the objects stand in the observation: now, and one step before."""
POSITIONS = np.array([[start, start + 1, start + 2] for start in (0, 4, 11, 18, 22, 29)])
"""Where positions of hand and objects stand in the observation, (6, 3)."""
MAX_ANGLE, MAX_STRETCH = np.pi / 4.0, 1.2
"""Of ``random_frames``."""
CAMERA = {"lookat": np.array([0.0, 0.65, 0.15]), "distance": 1.5, "azimuth": 130.0, "elevation": -25.0}


def require_metaworld() -> None:
    """:raises ImportError: If Meta-World is not installed; the message names the command."""
    try:
        import metaworld  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "the families ML1-..., ML10-v3 and ML45-v3 need Meta-World: pip install -e '.[metaworld]' in a clone (it wants "
            f"mujoco 3.3.0, which takes the place of a newer one: docs/guide/metaworld.md). Importing it failed with: {error}"
        ) from error


@cache
def benchmark_goals(benchmark: str, split: str, seed: int) -> dict[str, np.ndarray]:
    """
    The goals of Meta-World's own benchmark objects ``metaworld.ML1(environment, seed)``, ``metaworld.ML10(seed)`` and
    ``metaworld.ML45(seed)``, drawn by Meta-World's own code, only without the simulation in each of its resets, which
    decides nothing about them: 0.1 s for ML1, 1 s for ML45, once per process.

    :param benchmark: One of ``BENCHMARKS``.
    :param split: ``"train"`` or ``"test"``.
    :param seed: Seed of the benchmark.
    :return: By environment, in the benchmark's order: Meta-World's "rand_vec" of each goal, shape (50, size), positions of
        objects and goal in metres.
    """
    from metaworld import env_dict

    from sb3_trmrl.envs.metaworld_sim import simulation_class

    if benchmark.startswith("ML1-"):
        # As in metaworld.ML1: the splits have the same environment and different seeds
        environments = [benchmark.removeprefix("ML1-")]
        seed += split == "test"
    else:
        environments = list(getattr(env_dict, benchmark.replace("-v3", "_V3"))[split])
    generator = np.random.RandomState(seed)
    vectors = {}
    for environment in environments:
        vectors[environment] = simulation_class(environment)().draw_random_vectors(N_GOALS, generator)
        vectors[environment].setflags(write=False)
    return vectors


class MetaWorldEnv(MetaEnv):
    """
    A Sawyer arm that manipulates objects, with the goal hidden: one of Meta-World's meta-learning benchmarks, v3.

    ========== ============================== ============================== ==========================================
    id         train                          test                           tasks are told apart by
    ========== ============================== ============================== ==========================================
    ML1-...-v3 50 goals of one environment    50 other goals of it           where goal and objects are
    ML10-v3    10 environments x 50 goals     5 other environments x 50      what is to be done, and where
    ML45-v3    45 environments x 50 goals     5 other environments x 50      what is to be done, and where
    ========== ============================== ============================== ==========================================

    **Task** (``{"environment": "reach-v3", "split": "test", "goal": 17}``): name of the environment, split, and the goal's
    index 0..49 in that split of the benchmark object with seed ``benchmark_seed``. Task and actions determine an episode:
    nothing else is random, but for the frames of ``random_frames``.

    **Sampling.** Single draws go through random orders of the environments, so that after every 10 trials of a slot (ML10)
    each has come once; goals are uniform. ``sample_tasks(n)`` with ``n > 1`` has each environment equally often (but for the
    remainder), and no task twice unless there are fewer.

    **Observation**, float64 (39,): hand position (3, metres), gripper opening (1, 0..1), position (3) and quaternion (4) of up
    to two objects (14, padded with zeros), the same 18 numbers of the step before, and 3 zeros where the goal would stand.

    **Action**, float32 (4,), -1..1: displacement of the hand (1 is 1 cm per step) and closing of the gripper.

    **Reward**: Meta-World's, 0..10 per step with ``reward_version="v2"``, times ``reward_scale``. ``info["success"]``: whether
    the task is solved in this step (bool). The other entries of ``info`` are Meta-World's, not scaled.

    Keep one simulation per environment: the first trial of an environment makes it, later ones only set its task. All
    simulations of a process share compiled models, so do not step slots of one process from several threads.

    :param benchmark: One of ``BENCHMARKS``, which are also the ids.
    :param horizon: Steps per episode; Meta-World's number is 500.
    :param reward_version: ``"v1"`` or ``"v2"``, Meta-World's ``reward_function_version``.
    :param reward_scale: Factor on the reward: 0.1 makes the reward in the token about 1. Returns are scaled with it.
    :param benchmark_seed: Which 50 goals: the seed of Meta-World's benchmark object.
    :param end_on_success_after: After so many episodes of a task, an episode ends (terminates) with its first success, as in
        Meta-World's evaluation; None lets all run to the horizon.
    :param hide_objects: Zeros in place of the objects' positions. In reach they have nothing to do with the goal, but they
        tell the 50 training tasks apart, and an agent that sees them learns these by heart instead of adapting.
    :param random_frames: Augmentation for training: each trial is seen in a frame of its own, turned about the vertical axis
        through the hand's start by up to 45 degrees and stretched by up to a fifth; actions are turned back. Where the reward
        depends on distances only, as in reach, that makes more tasks of the 50, and none of them is worth learning by heart.
        Agents are evaluated without. Positions may leave the bounds of the observation space, which stay Meta-World's, so
        that an agent fits both.
    :param render_mode: ``"rgb_array"`` or None.
    :raises ImportError: Without the extra ``metaworld``.
    :raises ValueError: On an unknown benchmark or reward version, or a bad number.
    """

    splits = ("train", "test")
    steps_are_slow = True

    def __init__(
        self,
        benchmark: str,
        horizon: int = 500,
        reward_version: str = "v2",
        reward_scale: float = 1.0,
        benchmark_seed: int = 0,
        end_on_success_after: int | None = None,
        hide_objects: bool = False,
        random_frames: bool = False,
        render_mode: str | None = None,
    ):
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": 80}
        super().__init__(horizon, render_mode)
        if benchmark not in BENCHMARKS:
            raise ValueError(
                f"benchmark={benchmark!r} is unknown, use one of {list(BENCHMARKS)}.{did_you_mean(benchmark, BENCHMARKS)}"
            )
        if reward_version not in REWARD_VERSIONS:
            raise ValueError(f"reward_version must be one of {list(REWARD_VERSIONS)}, got {reward_version!r}")
        if not is_number(reward_scale) or not 0 < reward_scale < math.inf:
            raise ValueError(f"reward_scale must be a number > 0, got {reward_scale!r}")
        # The test goals of ML1 have the seed + 1, and numpy's seeds end at 2**32 - 1
        if not is_integer(benchmark_seed, 0) or benchmark_seed >= 2**32 - 1:
            raise ValueError(f"benchmark_seed must be an integer from 0 to 2**32 - 2, got {benchmark_seed!r}")
        if end_on_success_after is not None and not is_integer(end_on_success_after, 0):
            raise ValueError(f"end_on_success_after must be an integer >= 0 (or None for never), got {end_on_success_after!r}")
        check_flags(dict(hide_objects=hide_objects, random_frames=random_frames))
        require_metaworld()
        self.benchmark = benchmark
        self.reward_version = reward_version
        self.reward_scale = float(reward_scale)
        self.benchmark_seed = int(benchmark_seed)
        self.end_on_success_after = math.inf if end_on_success_after is None else int(end_on_success_after)
        self.hide_objects = bool(hide_objects)
        self.random_frames = bool(random_frames)
        self._frame = np.eye(3)
        self._start = np.zeros(3)
        self._n_episodes = 0
        # Of two steps: hand, gripper, objects. Meta-World bounds the hidden goal by 0 and 0, which Gymnasium warns of.
        low, high = [*HAND_LOW, -1.0, *[-np.inf] * 14], [*HAND_HIGH, 1.0, *[np.inf] * 14]
        self.observation_space = spaces.Box(
            np.array([*low, *low, *[-np.inf] * 3]), np.array([*high, *high, *[np.inf] * 3]), dtype=np.float64
        )
        self.action_space = spaces.Box(-1.0, 1.0, (4,), dtype=np.float32)
        self._simulations: dict[str, Any] = {}
        self._simulation: Any = None
        self._renderers: dict[str, Renderer] = {}

    # ---- tasks -------------------------------------------------------------------------------------------------

    def goals(self, split: str) -> dict[str, np.ndarray]:
        """
        :param split: ``"train"`` or ``"test"``.
        :return: What :func:`benchmark_goals` has for this family.
        """
        return benchmark_goals(self.benchmark, self.check_split(split), self.benchmark_seed)

    def sample_tasks(self, n: int, split: str = "train") -> list[Task]:
        """
        Draw tasks with ``self.np_random``, balanced over environments.

        :param n: Number of tasks, at least 1. One goes on in the order of environments where the draw before stopped; several
            start an order of their own, and fewer of them are the first of more.
        :param split: ``"train"`` or ``"test"``.
        :return: The tasks.
        :raises ValueError: On ``n < 1`` or an unknown split.
        """
        if not is_integer(n, 2):
            return super().sample_tasks(n, split)
        environments = list(self.goals(split))
        tasks: list[Task] = []
        for turn in range(math.ceil(n / len(environments))):
            if turn % N_GOALS == 0:  # each environment's goals in an order of its own
                orders = [self.np_random.permutation(N_GOALS) for _ in environments]
            for index in self.np_random.permutation(len(environments)):
                goal = int(orders[index][turn % N_GOALS])
                tasks.append({"environment": environments[index], "split": split, "goal": goal})
        return tasks[:n]

    def _sample_task(self, split: str) -> Task:
        environments = list(self.goals(split))
        order = self.draws.setdefault(split, [])
        if not order:
            order += self.np_random.permutation(environments).tolist()
        return {"environment": order.pop(), "split": split, "goal": int(self.np_random.integers(N_GOALS))}

    def check_task(self, task: Task) -> Task:
        """
        Check a task without setting it.

        :param task: ``environment``, ``split`` and ``goal``.
        :return: A copy.
        :raises ValueError: On a missing or unknown key, an environment or split that the family does not have, or a goal that
            is no index.
        """
        if not isinstance(task, Mapping) or set(task) != TASK_KEYS:
            raise ValueError(f"task of {self.benchmark} must be a dict with the keys {sorted(TASK_KEYS)}, got {task!r}")
        environment, split, goal = task["environment"], task["split"], task["goal"]
        environments = list(self.goals(split))
        if environment not in environments:
            raise ValueError(
                f"task['environment'] must be one of {environments} in the split {split!r} of {self.benchmark}, got "
                f"{environment!r}.{did_you_mean(environment, environments)}"
            )
        if not is_integer(goal, 0) or goal >= N_GOALS:
            raise ValueError(f"task['goal'] must be an integer from 0 to {N_GOALS - 1} (index of the goal), got {goal!r}")
        return {"environment": environment, "split": split, "goal": int(goal)}

    def _apply_task(self, task: Task) -> None:
        from sb3_trmrl.envs.metaworld_sim import simulation_class

        environment = task["environment"]
        if environment not in self._simulations:
            self._simulations[environment] = simulation_class(environment)(reward_function_version=self.reward_version)
        self._simulation = self._simulations[environment]
        self._n_episodes = 0
        # A copy, because Meta-World hands it on to who may write into it
        self._simulation.fix_task(self.goals(task["split"])[environment][task["goal"]].copy())

    # ---- one episode -------------------------------------------------------------------------------------------

    @property
    def simulation(self) -> Any:
        """:return: Meta-World's environment that plays the current task (``metaworld.SawyerXYZEnv``); None before a task."""
        return self._simulation

    def _reset(self) -> np.ndarray:
        self._n_episodes += 1
        observation: np.ndarray = self._simulation.reset()[0]
        if self.random_frames and self._n_episodes == 1:
            angle, stretch = self.np_random.uniform(-MAX_ANGLE, MAX_ANGLE), MAX_STRETCH ** self.np_random.uniform(-1.0, 1.0)
            cosine, sine = np.cos(angle), np.sin(angle)
            self._frame = stretch * np.array([[cosine, -sine, 0.0], [sine, cosine, 0.0], [0.0, 0.0, 1.0]])
            self._start = observation[:3].copy()
        return self._observable(observation)

    def _observable(self, observation: np.ndarray) -> np.ndarray:
        if self.hide_objects:
            observation[OBJECTS] = 0.0
        if self.random_frames:
            positions = observation[POSITIONS]
            # Zeros stand for what is not there
            shown = self._start + (positions - self._start) @ self._frame.T
            observation[POSITIONS] = np.where(positions.any(axis=1, keepdims=True), shown, 0.0)
        return observation

    def _step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        if self.random_frames:
            action = np.append(np.linalg.solve(self._frame, action[:3]).clip(-1.0, 1.0), action[3])
        observation, reward, _, _, terms = self._simulation.step(action)
        # Meta-World's are floats of any kind
        info: dict[str, Any] = {name: float(value) for name, value in terms.items()}
        info["success"] = bool(info["success"])
        terminated = info["success"] and self._n_episodes > self.end_on_success_after
        return self._observable(observation), float(reward) * self.reward_scale, terminated, False, info

    def _get_state(self) -> EnvState:
        if self._simulation is None:
            return {}
        frame = {"frame": self._frame, "start": self._start} if self.random_frames else {}
        return {"n_episodes": self._n_episodes, **frame, "simulation": self._simulation.get_episode_state()}

    def _set_state(self, state: EnvState) -> None:
        if state:
            self._n_episodes = int(state["n_episodes"])
            if self.random_frames:
                self._frame, self._start = np.array(state["frame"]), np.array(state["start"])
            self._simulation.set_episode_state(state["simulation"])

    # ---- rendering -----------------------------------------------------------------------------------------------

    def render(self) -> np.ndarray | None:
        """
        :return: Image ``(height, width, 3)`` uint8, or None without a ``render_mode``.
        :raises RuntimeError: If no OpenGL backend works; the message names the packages to install.
        """
        if self.render_mode is None:
            return None
        self._require_task("render()")
        environment = self._task["environment"]
        if environment not in self._renderers:
            self._renderers[environment] = Renderer(self._simulation.model, self._simulation.data, CAMERA)
        return self._renderers[environment].rgb_array()

    def close(self) -> None:
        """Free the rendering contexts, if there are any."""
        for renderer in self._renderers.values():
            renderer.close()
        self._renderers = {}


METAWORLD_ENVS: dict[str, partial[MetaWorldEnv]] = {benchmark: partial(MetaWorldEnv, benchmark) for benchmark in BENCHMARKS}
"""What makes the task family of each id."""

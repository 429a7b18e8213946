"""Point robots: go to a goal in the plane that is not told."""

from types import MappingProxyType
from typing import Any

import numpy as np
from gymnasium import spaces

from sb3_trmrl.envs import raster
from sb3_trmrl.envs.meta_env import EnvState, MetaEnv, Task

STEP_LENGTH = 0.1
"""Metres per step and axis at full action."""
GOAL_RADIUS = 0.2
"""Distance from the goal that counts as success, in metres."""


class PointRobot(MetaEnv):
    """
    Go to a goal in the plane; the distance to it is paid at every step.

    | obs | content | unit |
    |---|---|---|
    | 0-1 | position x, y | m |

    Action: two numbers in [-1, 1], the step along each axis in units of 0.1 m (the original's bounds are +-0.1; a Gaussian
    policy starts with a spread of 1). Start: uniform in [-1, 1]^2.

    | task parameter | unit | train, test | ood |
    |---|---|---|---|
    | ``goal`` x, y | m | uniform in [-1, 1]^2 | uniform in the frame between that square and [-1.5, 1.5]^2 |

    Reward: minus the distance to the goal after the step. ``info["distance"]`` is that distance, ``info["success"]``
    whether it is at most 0.2 m. Never terminates.

    Source: Rakelly et al. 2019 (PEARL); the OOD split is ours.

    :param horizon: Steps per episode.
    :param render_mode: ``"rgb_array"`` or None.
    """

    splits = ("train", "test", "ood")
    task_shapes = MappingProxyType({"goal": (2,)})

    def __init__(self, horizon: int = 20, render_mode: str | None = None):
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": 10}
        super().__init__(horizon, render_mode)
        self.observation_space = spaces.Box(-np.inf, np.inf, (2,), dtype=np.float64)
        self.action_space = spaces.Box(-1.0, 1.0, (2,), dtype=np.float32)
        self._position = np.zeros(2)

    @staticmethod
    def rewards(distance: np.ndarray) -> np.ndarray:
        """
        :param distance: Distances from the goal ``(n,)`` in metres.
        :return: Rewards ``(n,)``.
        """
        return -distance

    def _sample_task(self, split: str) -> Task:
        if split != "ood":
            return {"goal": self.np_random.uniform(-1.0, 1.0, 2)}
        # Uniform over the frame: its area within max-norm m is 4 (m^2 - 1), so m = sqrt(U[1, 2.25]).
        outer = np.sqrt(self.np_random.uniform(1.0, 1.5**2))
        along = self.np_random.uniform(-outer, outer)
        side = self.np_random.choice([-outer, outer])
        return {"goal": [side, along] if self.np_random.random() < 0.5 else [along, side]}

    def _initial_position(self) -> np.ndarray:
        return self.np_random.uniform(-1.0, 1.0, 2)

    def _reset(self) -> np.ndarray:
        self._position = self._initial_position()
        return self._position.copy()

    def _step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self._position = self._position + STEP_LENGTH * np.asarray(action, np.float64)
        distance = float(np.linalg.norm(self._position - self._task["goal"]))
        reward = float(self.rewards(np.array([distance]))[0])
        return self._position.copy(), reward, False, False, {"distance": distance, "success": distance <= GOAL_RADIUS}

    def _get_state(self) -> EnvState:
        return {"position": self._position.copy()}

    def _set_state(self, state: EnvState) -> None:
        self._position = np.array(state["position"], np.float64).reshape(2)

    def render(self) -> np.ndarray | None:
        """:return: Goal area (red) and robot (blue) in [-2, 2]^2: ``(240, 240, 3)`` uint8; None without mode."""
        if self.render_mode is None:
            return None
        image = np.full((raster.SIZE, raster.SIZE, 3), raster.WHITE, np.uint8)
        raster.disc(image, np.asarray(self._task["goal"]), GOAL_RADIUS, raster.RED, half_width=2.0)
        raster.disc(image, self._position, 0.06, raster.BLUE, half_width=2.0)
        return image


class SparsePointRobot(PointRobot):
    """
    Find a goal on the half circle; only being near it is paid.

    Observation and action as in :class:`PointRobot`. Start: the origin.

    | task parameter | unit | train, test | ood |
    |---|---|---|---|
    | ``goal`` x, y | m | uniform on the upper half of the unit circle | uniform on the lower half |

    Reward: ``1 - distance`` where the distance after the step is at most 0.2 m, else 0. Info as in :class:`PointRobot`.
    Never terminates.

    Source: Rakelly et al. 2019 (PEARL); the OOD split is ours.
    """

    @staticmethod
    def rewards(distance: np.ndarray) -> np.ndarray:
        """
        :param distance: Distances from the goal ``(n,)`` in metres.
        :return: Rewards ``(n,)``.
        """
        return np.where(distance <= GOAL_RADIUS, 1.0 - distance, 0.0)

    def _sample_task(self, split: str) -> Task:
        angle = self.np_random.uniform(np.pi, 2 * np.pi) if split == "ood" else self.np_random.uniform(0.0, np.pi)
        return {"goal": [np.cos(angle), np.sin(angle)]}

    def _initial_position(self) -> np.ndarray:
        return np.zeros(2)

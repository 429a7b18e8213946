"""Bernoulli bandits: the smallest family in which adaptation shows."""

from typing import Any

import numpy as np
from gymnasium import spaces

from sb3_trmrl.common.arguments import is_integer
from sb3_trmrl.envs import raster
from sb3_trmrl.envs.meta_env import EnvState, MetaEnv, Task


class MetaBandit(MetaEnv):
    """
    Find the best of several arms that pay 1 with a probability of their own, else 0.

    | obs | content |
    |---|---|
    | 0 | always 0: what is known of the arms is in the previous actions and rewards |

    Action: Discrete, the arm to pull.

    | task parameter | unit | train, test | ood |
    |---|---|---|---|
    | ``probabilities``, one per arm | - | U[0, 1] each | U[0, 0.3] each: all arms poor |

    Reward: 1 with the pulled arm's probability, else 0. ``info["regret"]`` is the expected loss against the best arm.
    Never terminates.

    Source: Wang et al. 2016, Duan et al. 2016 (RL2); the OOD split is ours.

    :param n_arms: Number of arms.
    :param horizon: Pulls per episode.
    :param render_mode: ``"rgb_array"`` or None.
    :raises ValueError: On fewer than 2 arms.
    """

    splits = ("train", "test", "ood")

    def __init__(self, n_arms: int = 5, horizon: int = 10, render_mode: str | None = None):
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": 4}
        super().__init__(horizon, render_mode)
        if not is_integer(n_arms, 2):
            raise ValueError(f"n_arms must be an integer >= 2, got {n_arms!r}")
        self.n_arms = int(n_arms)
        self.task_shapes = {"probabilities": (self.n_arms,)}
        self.observation_space = spaces.Box(0.0, 1.0, (1,), dtype=np.float32)
        self.action_space = spaces.Discrete(self.n_arms)
        self._last_arm: int | None = None

    def _sample_task(self, split: str) -> Task:
        return {"probabilities": self.np_random.uniform(0.0, 0.3 if split == "ood" else 1.0, self.n_arms)}

    def check_task(self, task: Task) -> Task:
        """See :meth:`MetaEnv.check_task`."""
        checked = super().check_task(task)
        if not all(0.0 <= probability <= 1.0 for probability in checked["probabilities"]):
            raise ValueError(f"task['probabilities'] of MetaBandit must lie in [0, 1], got {task['probabilities']!r}")
        return checked

    def _reset(self) -> np.ndarray:
        self._last_arm = None
        return np.zeros(1, np.float32)

    def _step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        probabilities = self._task["probabilities"]
        self._last_arm = int(action)
        reward = float(self.np_random.random() < probabilities[self._last_arm])
        regret = max(probabilities) - probabilities[self._last_arm]
        return np.zeros(1, np.float32), reward, False, False, {"regret": regret}

    def _get_state(self) -> EnvState:
        return {"last_arm": self._last_arm}

    def _set_state(self, state: EnvState) -> None:
        last_arm = state["last_arm"]
        self._last_arm = None if last_arm is None else int(last_arm)

    def render(self) -> np.ndarray | None:
        """:return: The arms' probabilities as bars, the last pulled one blue: ``(240, 240, 3)`` uint8; None without mode."""
        if self.render_mode is None:
            return None
        image = np.full((raster.SIZE, raster.SIZE, 3), raster.WHITE, np.uint8)
        edges = np.linspace(0, raster.SIZE, self.n_arms + 1).astype(int)
        gap = int(edges[1] > 1)  # narrow bars stand side by side
        for arm, probability in enumerate(self._task["probabilities"]):
            top = raster.SIZE - max(1, round(probability * raster.SIZE))
            image[top:, edges[arm] : edges[arm + 1] - gap] = raster.BLUE if arm == self._last_arm else raster.GREY
        return image

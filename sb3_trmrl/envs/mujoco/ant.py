"""Ant families: run in a hidden direction, go to a hidden goal."""

from types import MappingProxyType
from typing import ClassVar

import numpy as np

from sb3_trmrl.envs.meta_env import Task
from sb3_trmrl.envs.mujoco.base import MujocoMetaEnv, PhysicsState, TaskArrays


class Ant(MujocoMetaEnv):
    """
    The robot of the Ant families: action and reset. Not a family itself.

    Action: eight torques in [-1, 1]. An episode starts at the standing pose, positions + U(-0.1, 0.1),
    velocities + 0.1 N(0, 1).
    """

    xml_file = "ant.xml"

    def sample_initial_state(self) -> tuple[np.ndarray, np.ndarray]:
        """See :meth:`MujocoMetaEnv.sample_initial_state`."""
        qpos = self.initial_qpos + self.np_random.uniform(-0.1, 0.1, self.model.nq)
        return qpos, 0.1 * self.np_random.standard_normal(self.model.nv)


class AntDir(Ant):
    """
    Run in a direction that is not told.

    | obs | content | unit |
    |---|---|---|
    | 0-12 | ``qpos[2:]``: torso height, orientation (quaternion w, x, y, z), eight joint angles | m, -, rad |
    | 13-26 | ``qvel``: torso velocity, torso angular velocity, eight joint velocities | m/s, rad/s |

    Action and reset: :class:`Ant`.

    | task parameter | unit | train, test | ood |
    |---|---|---|---|
    | ``direction`` g | rad | -1 or +1, equally likely | +-U[2, pi]: at least 57 degrees from both |

    The author's code (and VariBAD's) draws -1 or +1 and uses it *as radians*, so the two directions lie 114.6 degrees
    apart. It is kept, for the published curves are of this; :class:`AntFwdBack` has forward and backward.

    Reward: ``v_xy . (cos g, sin g) - 0.5 sum a^2 + 1``, with v_xy = (torso xy after - before) / dt; the terms are
    ``info["reward_forward"]``, ``info["reward_ctrl"]`` and ``info["reward_survive"]``. The original's contact cost was in
    effect 0, see :class:`MujocoMetaEnv`.

    Terminates if the torso's height is outside [0.2, 1.0] m or the simulation blows up.

    Source: TrMRL (Melo, ICML 2022), VariBAD (Zintgraf et al. 2020); the OOD split is ours.
    """

    splits: ClassVar[tuple[str, ...]] = ("train", "test", "ood")
    task_shapes = MappingProxyType({"direction": ()})
    terminates_when_unstable = True
    constant_model = True

    def _sample_task(self, split: str) -> Task:
        if split == "ood":
            return {"direction": self.np_random.choice([-1.0, 1.0]) * self.np_random.uniform(2.0, np.pi)}
        return {"direction": self.np_random.choice([-1.0, 1.0])}

    def observe(self, state: PhysicsState) -> np.ndarray:
        """See :meth:`MujocoMetaEnv.observe`."""
        return np.concatenate([state.qpos[:, 2:], state.qvel], axis=-1)

    def rewards(
        self, before: PhysicsState, after: PhysicsState, action: np.ndarray, task: TaskArrays
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """See :meth:`MujocoMetaEnv.rewards`."""
        velocity = (after.qpos[:, :2] - before.qpos[:, :2]) / self.dt  # (n, 2)
        angle = task["direction"]
        forward = velocity[:, 0] * np.cos(angle) + velocity[:, 1] * np.sin(angle)
        ctrl = -0.5 * np.square(action).sum(axis=-1)
        survive = np.ones(len(forward))
        return forward + ctrl + survive, {"reward_forward": forward, "reward_ctrl": ctrl, "reward_survive": survive}

    def terminations(self, state: PhysicsState) -> np.ndarray:
        """See :meth:`MujocoMetaEnv.terminations`."""
        height = state.qpos[:, 2]
        return (height < 0.2) | (height > 1.0)


class AntFwdBack(AntDir):
    """
    Run forward or backward, which of them is not told.

    Everything as in :class:`AntDir` but the tasks; there are two, so there is no OOD split.

    | task parameter | unit | train, test |
    |---|---|---|
    | ``direction`` | rad | 0 or pi, equally likely |

    Source: Rakelly et al. 2019 (PEARL).
    """

    splits = ("train", "test")
    constant_model = True

    def _sample_task(self, split: str) -> Task:
        return {"direction": self.np_random.choice([0.0, np.pi])}


class AntGoal(Ant):
    """
    Go to a goal in the plane that is not told; the distance to it is paid at every step.

    | obs | content | unit |
    |---|---|---|
    | 0-14 | ``qpos``: torso x, y, z, orientation (quaternion w, x, y, z), eight joint angles | m, -, rad |
    | 15-28 | ``qvel``: torso velocity, torso angular velocity, eight joint velocities | m/s, rad/s |

    Action and reset: :class:`Ant`.

    | task parameter | unit | train, test | ood |
    |---|---|---|---|
    | ``goal`` g, x and y | m | uniform in the disc of radius 3 | uniform in the ring between radius 3 and 4 |

    Reward: ``-(|x - g_x| + |y - g_y|) - 0.1 sum a^2``; the terms are ``info["reward_goal"]`` and ``info["reward_ctrl"]``.
    The original's contact cost was in effect 0, see :class:`MujocoMetaEnv`. Never terminates.

    Source: Rakelly et al. 2019 (PEARL); the OOD split is ours.
    """

    splits = ("train", "test", "ood")
    task_shapes = MappingProxyType({"goal": (2,)})
    constant_model = True

    def _sample_task(self, split: str) -> Task:
        # Uniform over an area: the radius is the root of a uniform number.
        low, high = (3.0, 4.0) if split == "ood" else (0.0, 3.0)
        radius = np.sqrt(self.np_random.uniform(low**2, high**2))
        angle = self.np_random.uniform(0.0, 2 * np.pi)
        return {"goal": [radius * np.cos(angle), radius * np.sin(angle)]}

    def observe(self, state: PhysicsState) -> np.ndarray:
        """See :meth:`MujocoMetaEnv.observe`."""
        return np.concatenate([state.qpos, state.qvel], axis=-1)

    def rewards(
        self, before: PhysicsState, after: PhysicsState, action: np.ndarray, task: TaskArrays
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """See :meth:`MujocoMetaEnv.rewards`."""
        goal = -np.abs(after.qpos[:, :2] - task["goal"]).sum(axis=-1)
        ctrl = -0.1 * np.square(action).sum(axis=-1)
        return goal + ctrl, {"reward_goal": goal, "reward_ctrl": ctrl}

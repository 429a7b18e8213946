"""HalfCheetah families: run at a hidden velocity, run in a hidden direction."""

from types import MappingProxyType
from typing import Any

import mujoco
import numpy as np

from sb3_trmrl.envs.meta_env import Task
from sb3_trmrl.envs.mujoco.base import MujocoMetaEnv, PhysicsState, TaskArrays


class HalfCheetah(MujocoMetaEnv):
    """
    The robot of both families: observation, control cost, reset. Not a family itself.

    | obs | content | unit |
    |---|---|---|
    | 0-7 | ``qpos[1:]``: height offset, pitch, six joint angles | m, rad |
    | 8-16 | ``qvel``: velocities of x, z, pitch, six joints | m/s, rad/s |
    | 17-19 | torso position x, y, z | m |

    The torso position is (qpos[0], 0, 0.7 + qpos[1]). Action: six torques in [-1, 1]. An episode starts at
    the standing pose, positions + U(-0.1, 0.1), velocities + 0.1 N(0, 1), and never terminates.
    """

    xml_file = "half_cheetah.xml"

    def _load_model(self) -> mujoco.MjModel:
        # The file asks the compiler to scale the masses, which MuJoCo 4 deprecates with a warning at each load. This is
        # the way it recommends; all masses and inertias come out the same.
        spec = self._model_spec()
        total_mass = spec.compiler.settotalmass
        spec.compiler.settotalmass = -1
        model = spec.compile()
        mujoco.mj_setTotalmass(model, total_mass)
        mujoco.mj_setConst(model, mujoco.MjData(model))
        # (x, y, z) of the torso at qpos[:2] = 0
        self._torso_offset = model.body("torso").pos.copy()
        return model

    def observe(self, state: PhysicsState) -> np.ndarray:
        """See :meth:`MujocoMetaEnv.observe`."""
        qpos, qvel, _ = state
        torso = np.zeros((len(qpos), 3))
        torso[:, ::2] = qpos[:, :2]
        return np.concatenate((qpos[:, 1:], qvel, torso + self._torso_offset), axis=-1)

    def _velocity(self, before: PhysicsState, after: PhysicsState) -> np.ndarray:
        # -> (n,) m/s
        velocity: np.ndarray = (after.qpos[:, 0] - before.qpos[:, 0]) / self.dt
        return velocity

    def _ctrl_reward(self, action: np.ndarray) -> np.ndarray:
        # (n, nu) -> (n,)
        reward: np.ndarray = -0.05 * np.square(action).sum(axis=-1)
        return reward

    def sample_initial_state(self) -> tuple[np.ndarray, np.ndarray]:
        """See :meth:`MujocoMetaEnv.sample_initial_state`."""
        qpos = self.initial_qpos + self.np_random.uniform(-0.1, 0.1, self.model.nq)
        return qpos, 0.1 * self.np_random.standard_normal(self.model.nv)


class HalfCheetahVel(HalfCheetah):
    """
    Run at a velocity that is not told.

    Robot, observation and action: :class:`HalfCheetah`.

    | task parameter | unit | train, test | ood |
    |---|---|---|---|
    | ``velocity`` v* | m/s | U[0, 3] | U[3, 4] |

    Reward: ``-|v_x - v*| - 0.05 sum a^2`` with v_x = (x_after - x_before) / dt; the terms are ``info["reward_velocity"]`` and
    ``info["reward_ctrl"]``. Never terminates. Standing still earns -1.5 per step on average over the training range.

    Source: Finn et al. 2017 (MAML); range, observation and OOD tasks as in TrMRL (Melo, ICML 2022).
    """

    splits = ("train", "test", "ood")
    task_shapes = MappingProxyType({"velocity": ()})
    constant_model = True

    def _sample_task(self, split: str) -> Task:
        low, high = (3.0, 4.0) if split == "ood" else (0.0, 3.0)
        return {"velocity": self.np_random.uniform(low, high)}

    def rewards(
        self, before: PhysicsState, after: PhysicsState, action: np.ndarray, task: TaskArrays
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """See :meth:`MujocoMetaEnv.rewards`."""
        velocity = -np.abs(self._velocity(before, after) - task["velocity"])
        ctrl = self._ctrl_reward(action)
        return velocity + ctrl, {"reward_velocity": velocity, "reward_ctrl": ctrl}


class HalfCheetahDir(HalfCheetah):
    """
    Run forward or backward, which of them is not told.

    Robot, observation and action: :class:`HalfCheetah`.

    | task parameter | unit | train, test |
    |---|---|---|
    | ``direction`` d | - | -1 or +1, equally likely |

    There are two tasks, so there is no OOD split.

    Reward: ``d v_x - 0.05 sum a^2`` with v_x = (x_after - x_before) / dt; the terms are ``info["reward_forward"]`` and
    ``info["reward_ctrl"]``. Never terminates.

    Source: Finn et al. 2017 (MAML), observation as in TrMRL (Melo, ICML 2022).
    """

    task_shapes = MappingProxyType({"direction": ()})
    constant_model = True

    def _sample_task(self, split: str) -> Task:
        return {"direction": self.np_random.choice([-1.0, 1.0])}

    def check_task(self, task: dict[str, Any]) -> Task:
        """See :meth:`MetaEnv.check_task`."""
        checked = super().check_task(task)
        if abs(checked["direction"]) != 1.0:
            raise ValueError(f"task['direction'] of HalfCheetahDir must be -1 or 1, got {task['direction']!r}")
        return checked

    def rewards(
        self, before: PhysicsState, after: PhysicsState, action: np.ndarray, task: TaskArrays
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """See :meth:`MujocoMetaEnv.rewards`."""
        forward = task["direction"] * self._velocity(before, after)
        ctrl = self._ctrl_reward(action)
        return forward + ctrl, {"reward_forward": forward, "reward_ctrl": ctrl}

"""Humanoid family: run in a hidden direction."""

from types import MappingProxyType
from typing import Any

import mujoco
import numpy as np

from sb3_trmrl.envs.meta_env import Task
from sb3_trmrl.envs.mujoco.base import MujocoMetaEnv, PhysicsState, TaskArrays


class HumanoidDir(MujocoMetaEnv):
    """
    Run in a direction that is not told.

    | obs | content | unit |
    |---|---|---|
    | 0-21 | ``qpos[2:]``: torso height, orientation (quaternion w, x, y, z), 17 joint angles | m, -, rad |
    | 22-44 | ``qvel``: torso velocity, torso angular velocity, 17 joint velocities | m/s, rad/s |

    The original adds body inertias and velocities (``cinert``, ``cvel``), which are functions of these 45 numbers; motor
    forces, which are the previous action in the token; and external contact forces, which were zero (see
    :class:`MujocoMetaEnv`). They add 331 entries and no knowledge, so they are left out.

    Action: 17 numbers in [-1, 1], rescaled to the motors' range +-0.4. An episode starts at the standing pose, positions
    and velocities + U(-0.01, 0.01).

    | task parameter | unit | train, test |
    |---|---|---|
    | ``direction`` g | rad | U[0, 2 pi) |

    Training covers the full circle, so there is no OOD split.

    Reward: ``0.25 (c_after - c_before) . (cos g, sin g) / timestep - 0.1 sum ctrl^2 + 5``, where c is the centre of mass,
    ctrl the rescaled action and timestep the physics step of 0.003 s (as in the original, not the environment's dt); the
    terms are ``info["reward_forward"]``, ``info["reward_ctrl"]`` and ``info["reward_survive"]``. The original's impact cost
    was in effect 0, see :class:`MujocoMetaEnv`.

    The centre of mass is read from a ``subtreecom`` sensor, because sensors are what a batched stepper gets back. After a step
    it is that of the last sub-step's start, where the original's ``xipos`` is of that sub-step's last Runge-Kutta stage. So
    displacements lag by one sub-step of 0.003 s, and the first one of an episode spans four sub-steps instead of five.

    Terminates if the torso's height is outside [1, 2] m or the simulation blows up.

    Source: Rakelly et al. 2019 (PEARL), VariBAD (Zintgraf et al. 2020).
    """

    xml_file = "humanoid.xml"
    task_shapes = MappingProxyType({"direction": ()})
    terminates_when_unstable = True
    constant_model = True

    def _model_spec(self) -> Any:
        spec = super()._model_spec()
        spec.add_sensor(
            name="centre_of_mass",
            type=mujoco.mjtSensor.mjSENS_SUBTREECOM,
            objtype=mujoco.mjtObj.mjOBJ_BODY,
            objname="torso",
        )
        return spec

    def _load_model(self) -> mujoco.MjModel:
        model = super()._load_model()
        self._ctrl_scale = model.actuator_ctrlrange[:, 1].copy()  # the range is symmetric
        self._timestep = float(model.opt.timestep)
        return model

    def _sample_task(self, split: str) -> Task:
        return {"direction": self.np_random.uniform(0.0, 2 * np.pi)}

    def controls(self, action: np.ndarray) -> np.ndarray:
        """See :meth:`MujocoMetaEnv.controls`."""
        ctrl: np.ndarray = action * self._ctrl_scale
        return ctrl

    def observe(self, state: PhysicsState) -> np.ndarray:
        """See :meth:`MujocoMetaEnv.observe`."""
        return np.concatenate([state.qpos[:, 2:], state.qvel], axis=-1)

    def rewards(
        self, before: PhysicsState, after: PhysicsState, action: np.ndarray, task: TaskArrays
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """See :meth:`MujocoMetaEnv.rewards`."""
        displacement = after.sensordata[:, :2] - before.sensordata[:, :2]  # (n, 2)
        angle = task["direction"]
        forward = 0.25 * (displacement[:, 0] * np.cos(angle) + displacement[:, 1] * np.sin(angle)) / self._timestep
        ctrl = -0.1 * np.square(self.controls(action)).sum(axis=-1)
        survive = np.full(len(forward), 5.0)
        return forward + ctrl + survive, {"reward_forward": forward, "reward_ctrl": ctrl, "reward_survive": survive}

    def terminations(self, state: PhysicsState) -> np.ndarray:
        """See :meth:`MujocoMetaEnv.terminations`."""
        height = state.qpos[:, 2]
        return (height < 1.0) | (height > 2.0)

    def sample_initial_state(self) -> tuple[np.ndarray, np.ndarray]:
        """See :meth:`MujocoMetaEnv.sample_initial_state`."""
        qpos = self.initial_qpos + self.np_random.uniform(-0.01, 0.01, self.model.nq)
        return qpos, self.np_random.uniform(-0.01, 0.01, self.model.nv)

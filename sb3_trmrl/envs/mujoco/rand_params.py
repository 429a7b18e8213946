"""What the families with random dynamics share."""

import mujoco
import numpy as np

from sb3_trmrl.envs.meta_env import Task
from sb3_trmrl.envs.mujoco.base import MujocoMetaEnv, PhysicsState, TaskArrays

MULTIPLIER_BASES = {"body_mass": 1.5, "body_inertia": 1.5, "geom_friction": 1.5, "dof_damping": 1.3}
"""Arrays of the model that a task multiplies, entry by entry with ``base^u``."""
MAX_EXPONENT = 3.0
"""Training tasks have u in [-3, 3]."""
MAX_OOD_EXPONENT = 3.5
"""OOD tasks have |u| in [3, 3.5]."""


class RandParams(MujocoMetaEnv):
    """
    Robots whose *dynamics* differ per task. Not a family itself.

    | task parameter | multiplies | train, test | ood |
    |---|---|---|---|
    | ``body_mass`` (nbody,) | mass of every body | 1.5^u, u ~ U[-3, 3] for each entry | the same with \\|u\\| ~ U[3, 3.5] |
    | ``body_inertia`` (nbody, 3) | every principal inertia | 1.5^u | |
    | ``geom_friction`` (ngeom, 3) | every friction coefficient | 1.5^u | |
    | ``dof_damping`` (nv,) | every joint damping | 1.3^u | |

    The multipliers apply to the values in Gymnasium's model file. Unlike ``rand_param_envs`` we let MuJoCo recompute the
    constants that follow from mass and inertia (``mj_setConst``), as its documentation asks for: contacts and joint
    limits are then as stiff as in a model that was written with these masses.

    Reward: ``v_x + 1 - 0.001 sum a^2`` with v_x = (x_after - x_before) / dt; the terms are ``info["reward_forward"]``,
    ``info["reward_survive"]`` and ``info["reward_ctrl"]``. An episode starts at the standing pose, positions and velocities
    + U(-0.005, 0.005).

    Observation: ``qpos[1:]``, then ``qvel`` clipped to +-10.
    """

    splits = ("train", "test", "ood")
    terminates_when_unstable = True

    def _load_model(self) -> mujoco.MjModel:
        model = super()._load_model()
        self._pristine = {name: getattr(model, name).copy() for name in MULTIPLIER_BASES}
        self.task_shapes = {name: values.shape for name, values in self._pristine.items()}
        return model

    def _sample_task(self, split: str) -> Task:
        task: Task = {}
        for name, base in MULTIPLIER_BASES.items():
            shape = self.task_shapes[name]
            if split == "ood":
                sign = self.np_random.choice([-1.0, 1.0], shape)
                exponent = sign * self.np_random.uniform(MAX_EXPONENT, MAX_OOD_EXPONENT, shape)
            else:
                exponent = self.np_random.uniform(-MAX_EXPONENT, MAX_EXPONENT, shape)
            task[name] = base**exponent
        return task

    def check_task(self, task: Task) -> Task:
        """See :meth:`MetaEnv.check_task`."""
        checked = super().check_task(task)
        for name, multipliers in checked.items():
            smallest = np.min(multipliers)
            if smallest <= 0:
                family = type(self).__name__
                raise ValueError(f"task[{name!r}] of {family} must be positive multipliers, got {smallest} among them")
        return checked

    def _apply_task(self, task: Task) -> None:
        for name, pristine in self._pristine.items():
            getattr(self.model, name)[:] = pristine * np.asarray(task[name])
        # Uses the simulation as scratch space; a reset has to follow set_task anyway.
        mujoco.mj_setConst(self.model, self.data)

    def observe(self, state: PhysicsState) -> np.ndarray:
        """See :meth:`MujocoMetaEnv.observe`."""
        return np.concatenate([state.qpos[:, 1:], np.clip(state.qvel, -10.0, 10.0)], axis=-1)

    def rewards(
        self, before: PhysicsState, after: PhysicsState, action: np.ndarray, task: TaskArrays
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """See :meth:`MujocoMetaEnv.rewards`."""
        forward = (after.qpos[:, 0] - before.qpos[:, 0]) / self.dt
        survive = np.ones(len(forward))
        ctrl = -1e-3 * np.square(action).sum(axis=-1)
        return forward + survive + ctrl, {"reward_forward": forward, "reward_survive": survive, "reward_ctrl": ctrl}

    def sample_initial_state(self) -> tuple[np.ndarray, np.ndarray]:
        """See :meth:`MujocoMetaEnv.sample_initial_state`."""
        qpos = self.initial_qpos + self.np_random.uniform(-0.005, 0.005, self.model.nq)
        return qpos, self.np_random.uniform(-0.005, 0.005, self.model.nv)

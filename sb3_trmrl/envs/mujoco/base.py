"""What all MuJoCo families share: model, stepping, reset, rendering; rewards and observations are array methods."""

import os
import warnings
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import gymnasium.envs.mujoco
import mujoco
import numpy as np
from gymnasium import spaces

from sb3_trmrl.envs.meta_env import EnvState, MetaEnv
from sb3_trmrl.envs.mujoco.rendering import Renderer

FULL_STATE = mujoco.mjtState.mjSTATE_FULLPHYSICS
USER_INPUTS = int(mujoco.mjtState.mjSTATE_USER) & ~int(mujoco.mjtState.mjSTATE_CTRL)
"""What a family may set beside the controls: forces, mocap bodies, equality constraints, user data."""
MAX_STATE = 1e10
"""MuJoCo calls a position or velocity beyond this "bad" (mjMAXVAL)."""


class PhysicsState(NamedTuple):
    """State of ``n`` simulations, float64."""

    qpos: np.ndarray
    """Generalised positions ``(n, nq)``."""
    qvel: np.ndarray
    """Generalised velocities ``(n, nv)``."""
    sensordata: np.ndarray
    """Sensor values ``(n, nsensordata)``; after a step, those of the last sub-step's start (MuJoCo's convention)."""


TaskArrays = Mapping[str, np.ndarray]
"""Task parameters of ``n`` simulations by name, each ``(n, *task_shapes[name])``."""


def is_unstable(state: PhysicsState) -> np.ndarray:
    """
    :param state: State of ``n`` simulations.
    :return: Whether each has blown up, ``(n,)`` bool: the norm of positions and velocities is beyond ``MAX_STATE`` or NaN.
    """
    # einsum, because it overflows without a floating-point warning
    squared_norm = np.einsum("ij,ij->i", state.qpos, state.qpos) + np.einsum("ij,ij->i", state.qvel, state.qvel)
    stable: np.ndarray = squared_norm < MAX_STATE**2
    return ~stable


class MujocoMetaEnv(MetaEnv):
    """
    Base of the MuJoCo families: a thin layer over ``mujoco``, with the models that Gymnasium ships.

    What a family computes from the physics (:meth:`observe`, :meth:`rewards`, :meth:`terminations`, :meth:`controls`)
    are array methods over a leading axis of ``n`` simulations. Of ``self`` they read constants of the model only
    (``dt``, a body's offset, ...), never the running simulation: a single environment calls them with ``n = 1``, a
    batched stepper with all its simulations, and both give the same numbers.

    Positions come from ``qpos``. ``data.xpos``, which the original environments read, is one sub-step older.

    External contact forces (``cfrc_ext``) are not computed (Gymnasium's ``mj_rnePostConstraint``): in the MuJoCo
    versions that the original results were made with they were zero, and with them every "contact" or "impact" cost.

    A simulation that blows up (a value that is not finite, or beyond 1e10) ends its episode at once: the last good
    observation again, reward 0 for this step, ``info["unstable"] = True``. That is a termination in families whose
    episodes can terminate, and a truncation in those that run to the horizon: where each step costs, blowing up must
    not pay.

    :param horizon: Steps per episode.
    :param render_mode: ``"rgb_array"`` or None.
    """

    xml_file: ClassVar[str]
    """Model file in Gymnasium's assets."""
    frame_skip: ClassVar[int] = 5
    """Physics steps per environment step."""
    terminates_when_unstable: ClassVar[bool] = False
    """Whether a simulation that blows up terminates (True) or truncates (False) its episode."""
    constant_model: ClassVar[bool] = False
    """Whether no task, reset or method ever changes the model, so that the slots of a ``MujocoVecEnv`` may share one. Counts
    only for the class that says it, not for its subclasses."""
    default_cam_config: ClassVar[dict[str, Any]] = {
        "trackbodyid": 1,
        "type": mujoco.mjtCamera.mjCAMERA_TRACKING,
        "distance": 4.0,
    }
    """The viewer's camera follows the torso."""

    def __init__(self, horizon: int = 200, render_mode: str | None = None):
        self.metadata = {"render_modes": ["rgb_array"]}
        super().__init__(horizon, render_mode)
        self.model = self._load_model()
        # A blown-up simulation must show as such. MuJoCo's default is to put it back to the initial state in mid-step,
        # which looks like a teleport that earns a reward.
        self.model.opt.disableflags |= mujoco.mjtDisableBit.mjDSBL_AUTORESET
        self.data = mujoco.MjData(self.model)
        self.dt = float(self.model.opt.timestep) * self.frame_skip
        """Seconds per environment step."""
        self.metadata["render_fps"] = round(1 / self.dt)
        self.initial_qpos = self.model.qpos0.copy()
        self._task_arrays: dict[str, np.ndarray] = {}
        self._renderer: Renderer | None = None
        self._warned_unstable = False
        self.observation_space = spaces.Box(-np.inf, np.inf, self.observe(self._state)[0].shape, dtype=np.float64)
        self.action_space = spaces.Box(-1.0, 1.0, (self.model.nu,), dtype=np.float32)

    # ---- what a family computes, for n simulations at once -------------------------------------------------------

    @abstractmethod
    def observe(self, state: PhysicsState) -> np.ndarray:
        """
        :param state: State of ``n`` simulations.
        :return: Observations ``(n, observation_size)``, float64.
        """

    @abstractmethod
    def rewards(
        self, before: PhysicsState, after: PhysicsState, action: np.ndarray, task: TaskArrays
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """
        :param before: State of ``n`` simulations before the step.
        :param after: State after it.
        :param action: Actions ``(n, nu)`` in [-1, 1], float64.
        :param task: Task parameters.
        :return: Rewards ``(n,)`` and their terms by name, each ``(n,)``, which add up to the reward.
        """

    def terminations(self, state: PhysicsState) -> np.ndarray:
        """
        :param state: State of ``n`` simulations after a step.
        :return: Whether each episode has ended, ``(n,)`` bool. Unless a family overrides this: never.
        """
        return np.zeros(len(state.qpos), dtype=bool)

    def controls(self, action: np.ndarray) -> np.ndarray:
        """
        :param action: Actions ``(n, nu)`` in [-1, 1].
        :return: What the motors get, ``(n, nu)``.
        """
        return action

    @abstractmethod
    def sample_initial_state(self) -> tuple[np.ndarray, np.ndarray]:
        """:return: Initial ``qpos (nq,)`` and ``qvel (nv,)`` of an episode, drawn with ``self.np_random``."""

    # ---- one simulation ------------------------------------------------------------------------------------------

    @property
    def _state(self) -> PhysicsState:
        # Views of the simulation's memory with the leading axis, (nq,) -> (1, nq). Made anew each time: a copy of the
        # environment has a simulation of its own
        return PhysicsState(self.data.qpos[None], self.data.qvel[None], self.data.sensordata[None])

    def _model_spec(self) -> mujoco.MjSpec:
        """:return: The model before compilation; a family may add to it."""
        assets = os.path.join(os.path.dirname(gymnasium.envs.mujoco.__file__), "assets")
        return mujoco.MjSpec.from_file(os.path.join(assets, self.xml_file))

    def _load_model(self) -> mujoco.MjModel:
        return self._model_spec().compile()

    def _reset(self) -> np.ndarray:
        # Clears the warm start and time as well: the same state gives the same episode, bit for bit.
        mujoco.mj_resetData(self.model, self.data)
        self.data.qpos[:], self.data.qvel[:] = self.sample_initial_state()
        mujoco.mj_forward(self.model, self.data)  # for the sensors
        self._make_task_arrays()
        observation: np.ndarray = self.observe(self._state)[0]
        return observation

    def _make_task_arrays(self) -> None:
        self._task_arrays = {name: np.asarray(value)[None] for name, value in self._task.items()}

    def _step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        action = np.asarray(action, np.float64)[None]  # (nu,) -> (1, nu)
        state = self._state
        before = PhysicsState(state.qpos.copy(), state.qvel.copy(), state.sensordata.copy())
        self.data.ctrl[:] = self.controls(action)[0]
        if self._step_physics() or is_unstable(state)[0]:
            return self._blown_up(self.observe(before)[0])
        terminated = bool(self.terminations(state)[0])
        reward, terms = self.rewards(before, state, action, self._task_arrays)
        info = {name: float(term[0]) for name, term in terms.items()}
        return self.observe(state)[0], float(reward[0]), terminated, False, info

    def _step_physics(self) -> bool:
        """
        The physics steps of one environment step, exactly as ``mujoco.rollout`` makes them for :class:`MujocoVecEnv`.

        :return: Whether MuJoCo gave up (a warning, such as a bad acceleration) before the last of them.
        """
        # Rollouts hand back no warm start of the constraint solver. Starting it cold at each environment step makes the
        # state complete (positions and velocities say it all), and cost nothing that could be measured.
        self.data.qacc_warmstart[:] = 0.0
        # Rollouts stop at a warning and count afresh at each call, so one at the last step goes unseen.
        self.data.warning.number[:] = 0
        mujoco.mj_step(self.model, self.data, nstep=self.frame_skip - 1)
        gave_up = bool(self.data.warning.number.any())
        mujoco.mj_step(self.model, self.data)
        return gave_up

    def _blown_up(self, observation: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """:return: What a step returns in which the simulation has blown up; ``observation`` is the last good one."""
        if not self._warned_unstable:
            self._warned_unstable = True
            warnings.warn(
                f"The physics of {type(self).__name__} blew up (task {self._task}); such episodes end at once. "
                "Said once per environment; count info['unstable'] to see how often it happens.",
                stacklevel=2,
            )
        terminated = self.terminates_when_unstable
        return observation, 0.0, terminated, not terminated, {"unstable": True}

    def user_inputs(self) -> np.ndarray:
        """:return: What the family has set beside the controls, ``(mj_stateSize(model, USER_INPUTS),)``."""
        inputs = np.empty(mujoco.mj_stateSize(self.model, USER_INPUTS))
        mujoco.mj_getState(self.model, self.data, inputs, USER_INPUTS)
        return inputs

    def _get_state(self) -> EnvState:
        physics = np.zeros(mujoco.mj_stateSize(self.model, FULL_STATE))
        mujoco.mj_getState(self.model, self.data, physics, FULL_STATE)
        return {"physics": physics, "sensordata": self.data.sensordata.copy(), "user_inputs": self.user_inputs()}

    def _set_state(self, state: EnvState) -> None:
        mujoco.mj_resetData(self.model, self.data)
        # Version 0.1.0 wrote none at first
        parts = {"physics": state["physics"], "sensordata": state["sensordata"]}
        parts["user_inputs"] = state.get("user_inputs", self.user_inputs())
        physics, sensordata, user_inputs = (np.array(part, np.float64) for part in parts.values())
        sizes = mujoco.mj_stateSize(self.model, FULL_STATE), self.model.nsensordata, len(self.user_inputs())
        shapes = physics.shape, sensordata.shape, user_inputs.shape
        if shapes != tuple((size,) for size in sizes):
            raise ValueError(f"{', '.join(parts)} of {type(self).__name__} must have {sizes} numbers, got the shapes {shapes}")
        mujoco.mj_setState(self.model, self.data, physics, FULL_STATE)
        mujoco.mj_setState(self.model, self.data, user_inputs, USER_INPUTS)
        mujoco.mj_forward(self.model, self.data)  # what rendering reads
        self.data.sensordata[:] = sensordata
        self._make_task_arrays()

    # ---- rendering -----------------------------------------------------------------------------------------------

    def render(self) -> np.ndarray | None:
        """
        :return: Image ``(height, width, 3)`` uint8, or None without a ``render_mode``.
        :raises RuntimeError: If no OpenGL backend works; the message names the packages to install.
        """
        if self.render_mode is None:
            return None
        if self._renderer is None:
            self._renderer = Renderer(self.model, self.data, self.default_cam_config)
        return self._renderer.rgb_array()

    def close(self) -> None:
        """Free the rendering context, if there is one."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None

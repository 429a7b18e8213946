"""Meta-World's simulations with the same numbers in less time and memory. Importing this needs the extra ``metaworld``."""

import math
from functools import cache
from types import FunctionType
from typing import Any

import mujoco
import numpy as np
from gymnasium.envs.mujoco import MujocoEnv
from metaworld.env_dict import ALL_V3_ENVIRONMENTS
from metaworld.sawyer_xyz_env import SawyerXYZEnv

STATE = mujoco.mjtState.mjSTATE_INTEGRATION
"""All that the next step depends on."""
HAND_DOWN = np.array([1.0, 0.0, 1.0, 0.0])
_HAND, _OBJECTS, _GOAL = SawyerXYZEnv._HAND_SPACE, np.full(14, np.inf), np.full(3, np.inf)
OBSERVATION_LOW = np.concatenate([*[_HAND.low, [-1.0], -_OBJECTS] * 2, -_GOAL])
OBSERVATION_HIGH = np.concatenate([*[_HAND.high, [1.0], _OBJECTS] * 2, _GOAL])
"""What Meta-World clips observations to."""


class SharedModel:
    """
    A compiled model that all simulations of its file in this process share: 20 MB and 0.1 s each time it is not.

    What tells their tasks apart in the model are the positions of bodies and sites, which resets write; a simulation puts its
    own there when another one has been at it. So the simulations of one process must not be stepped by several threads at a
    time.

    :param model: The model as it is after compilation.
    """

    def __init__(self, model: mujoco.MjModel):
        self.model = model
        self.pristine = (model.body_pos.copy(), model.site_pos.copy())
        self.user: object | None = None
        """Whose positions are in the model."""
        self.hand_states: dict[tuple[str, bytes], np.ndarray] = {}
        """By class (some have the same model) and task: the state just before the hand is in its place."""


_models: dict[str, SharedModel] = {}


class OneRotation:
    """
    A rotation matrix as a quaternion: what Meta-World's observations use of ``scipy.spatial.transform.Rotation``, with the
    arithmetic of scipy's single-matrix case in its order, but without the 40 us that scipy takes for checks.
    """

    def __init__(self, quaternion: np.ndarray):
        self._quaternion = quaternion

    @classmethod
    def from_matrix(cls, matrix: np.ndarray) -> "OneRotation":
        """
        :param matrix: A rotation matrix of MuJoCo's, (3, 3).
        :return: The rotation.
        """
        rows = matrix.tolist()
        diagonal = [rows[0][0], rows[1][1], rows[2][2]]
        trace = diagonal[0] + diagonal[1] + diagonal[2]
        largest = max(diagonal)
        quaternion = [0.0, 0.0, 0.0, 0.0]
        if trace > largest:
            quaternion[0] = rows[2][1] - rows[1][2]
            quaternion[1] = rows[0][2] - rows[2][0]
            quaternion[2] = rows[1][0] - rows[0][1]
            quaternion[3] = 1 + trace
        else:
            i = diagonal.index(largest)
            j = (i + 1) % 3
            k = (j + 1) % 3
            quaternion[i] = 1 - trace + 2 * rows[i][i]
            quaternion[j] = rows[j][i] + rows[i][j]
            quaternion[k] = rows[k][i] + rows[i][k]
            quaternion[3] = rows[k][j] - rows[j][k]
        x, y, z, w = quaternion
        norm = math.sqrt(x * x + y * y + z * z + w * w)
        return cls(np.array([x / norm, y / norm, z / norm, w / norm]))

    def as_quat(self) -> np.ndarray:
        """:return: Scalar-last quaternion, (4,)."""
        return self._quaternion


EPISODE_FLAGS = ("pickCompleted", "placeCompleted", "reachCompleted", "_target_to_obj_init")
"""What rewards of some environments write down in the course of an episode."""


class SharedModelEnv(SawyerXYZEnv):  # type: ignore[misc, unused-ignore]
    """
    Mixin for Meta-World's classes, see :func:`simulation_class`: the same numbers, bit for bit (tests/test_metaworld_sim.py).

    * The compiled model is shared (:class:`SharedModel`).
    * A reset does not move the hand to its place twice, and within a process only once for each task.
    * Contacts, observations and rotations are read without Meta-World's detours, which took more time than the physics.
    """

    _simulates = True
    _generator: np.random.RandomState | None = None

    def _initialize_simulation(self) -> tuple[mujoco.MjModel, mujoco.MjData]:
        shared = _models.get(self.fullpath)
        if shared is None:
            model, data = super()._initialize_simulation()
            shared = _models[self.fullpath] = SharedModel(model)
        else:
            data = mujoco.MjData(shared.model)
        self._shared = shared
        self._positions = shared.pristine
        self._claim_model()
        # Views of the simulation's memory by name
        self._bodies: dict[str, np.ndarray] = {}
        self._fingers = data.site("rightEndEffector").xpos, data.site("leftEndEffector").xpos
        self._pads = shared.model.geom("leftpad_geom").id, shared.model.geom("rightpad_geom").id
        return shared.model, data

    def _claim_model(self) -> None:
        """Put this simulation's positions into the model."""
        self._shared.model.body_pos[:], self._shared.model.site_pos[:] = self._positions
        self._shared.user = self

    # ---- tasks -------------------------------------------------------------------------------------------------

    def fix_task(self, random_vector: np.ndarray) -> None:
        """
        What Meta-World's ``set_task`` does with a task of its meta-learning benchmarks: the goal is hidden.

        :param random_vector: Positions of objects and goal in metres, Meta-World's "rand_vec".
        """
        self._set_task_called = True
        self._freeze_rand_vec = True
        self._last_rand_vec = random_vector
        self._positions = self._shared.pristine
        self._claim_model()
        # Meta-World's reset() runs reset_model() twice, and the hand moves to its place among bodies that the task wants
        # elsewhere only after the first time. This is the first time, without moving the hand.
        self._simulates = False
        mujoco.mj_resetData(self.model, self.data)
        mujoco.mj_forward(self.model, self.data)
        self.reset_model()
        self._simulates = True
        self._positions = self.model.body_pos.copy(), self.model.site_pos.copy()

    def draw_random_vectors(self, n: int, generator: np.random.RandomState) -> np.ndarray:
        """
        What ``n`` resets of Meta-World draw where the task is not fixed, without simulating them. To be used before any task.

        :param n: Number of vectors.
        :param generator: In the place of numpy's global one.
        :return: Shape (n, size), float64.
        """
        self._generator, self._freeze_rand_vec, self._simulates = generator, False, False
        drawn = []
        for _ in range(n):
            self.reset_model()  # twice, as in Meta-World's reset()
            self.reset_model()
            drawn.append(self._last_rand_vec)
        self._generator, self._freeze_rand_vec, self._simulates = None, True, True
        return np.array(drawn)

    def _get_state_rand_vec(self) -> np.ndarray:
        if self._generator is None:
            vector: np.ndarray = super()._get_state_rand_vec()
            return vector
        space = self._random_reset_space
        self._last_rand_vec = self._generator.uniform(space.low, space.high, size=space.low.size)
        return self._last_rand_vec

    # ---- episodes ----------------------------------------------------------------------------------------------

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """As in Meta-World, without the first ``reset_model()``, which :meth:`fix_task` has made."""
        self._claim_model()
        observation, info = MujocoEnv.reset(self)
        self._positions = self.model.body_pos.copy(), self.model.site_pos.copy()
        self._prev_obs = observation[:18].copy()
        observation[18:36] = self._prev_obs
        return observation.astype(np.float64), info

    def _reset_hand(self, steps: int = 50) -> None:
        # These steps come out the same in every episode of a task. The last one is always made, because what is read next
        # (positions of bodies, say) is no part of the state.
        if not self._simulates:
            super()._reset_hand(steps)
            return
        task = (type(self).__name__, self._last_rand_vec.tobytes())
        state = self._shared.hand_states.get(task)
        if state is None:
            super()._reset_hand(steps - 1)
            state = self._shared.hand_states[task] = self._physics()
        mujoco.mj_setState(self.model, self.data, state, STATE)
        super()._reset_hand(1)

    def do_simulation(self, ctrl: Any, n_frames: int) -> None:
        """As in Meta-World."""
        if self._simulates:
            super().do_simulation(ctrl, n_frames)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, Any, bool, bool, dict[str, Any]]:
        """As in Meta-World, but that it neither counts the steps nor asks whether there is a task: ``MetaEnv`` does."""
        if self._shared.user is not self:
            self._claim_model()
        self.set_xyz_action(action[:3])
        self._step_mujoco_simulation([action[-1], -action[-1]], self.frame_skip)
        for site, position in self._target_site_config:
            self._set_pos_site(site, position)
        mujoco.mj_forward(self.model, self.data)
        observation = self._get_obs()
        np.maximum(observation, OBSERVATION_LOW, out=observation)
        np.minimum(observation, OBSERVATION_HIGH, out=observation)
        reward, info = self.evaluate_state(observation, action)
        return observation, reward, False, False, info

    # ---- the state of a running episode ------------------------------------------------------------------------

    def _physics(self) -> np.ndarray:
        state = np.zeros(mujoco.mj_stateSize(self.model, STATE))
        mujoco.mj_getState(self.model, self.data, state, STATE)
        return state

    def get_episode_state(self) -> dict[str, Any]:
        """:return: What has changed since the reset: JSON with arrays as leaves."""
        flags = {name: float(value) for name in EPISODE_FLAGS if (value := self.__dict__.get(name)) is not None}
        return {
            "physics": self._physics(),
            "previous_observation": self._prev_obs.copy(),
            "flags": flags,
        }

    def set_episode_state(self, state: dict[str, Any]) -> None:
        """
        Go on from a state of the same task.

        :param state: What :meth:`get_episode_state` returned.
        :raises ValueError: If it does not fit.
        """
        physics, previous = np.array(state["physics"], np.float64), np.array(state["previous_observation"], np.float64)
        shapes = (mujoco.mj_stateSize(self.model, STATE),), (18,)
        if (physics.shape, previous.shape) != shapes:
            raise ValueError(
                f"physics and previous_observation of {type(self).__name__} must have the shapes {shapes}, got "
                f"{physics.shape} and {previous.shape}"
            )
        self.reset()
        mujoco.mj_setState(self.model, self.data, physics, STATE)
        self._prev_obs = previous
        self.__dict__.update({name: state["flags"][name] for name in EPISODE_FLAGS if name in state["flags"]})

    # ---- what was slow in a step ---------------------------------------------------------------------------------

    def get_body_com(self, body_name: str) -> np.ndarray:
        """As in Meta-World: a view of the body's position."""
        position = self._bodies.get(body_name)
        if position is None:
            position = self._bodies[body_name] = self.data.body(body_name).xpos
        return position

    def get_endeff_pos(self) -> np.ndarray:
        """As in Meta-World: a view of the hand's position."""
        return self.get_body_com("hand")

    @property
    def tcp_center(self) -> np.ndarray:
        """As in Meta-World: the middle between the fingers."""
        right, left = self._fingers
        center: np.ndarray = (right + left) / 2.0
        return center

    def set_xyz_action(self, action: np.ndarray) -> None:
        """As in Meta-World: move the hand's target, within bounds."""
        displacement = np.minimum(np.maximum(action, -1), 1) * self.action_scale
        target = self.data.mocap_pos
        target[0] = np.minimum(np.maximum(target[0] + displacement, self.mocap_low), self.mocap_high)
        self.data.mocap_quat = HAND_DOWN

    def _get_obs(self) -> np.ndarray:
        # Of this step and the one before; zeros in the place of the goal
        observation = np.zeros(39)
        current = observation[:18]
        self._read_objects(current)
        observation[18:36] = self._prev_obs
        self._prev_obs = current.copy()
        return observation

    def _get_curr_obs_combined_no_goal(self) -> np.ndarray:
        observation = np.zeros(18)
        self._read_objects(observation)
        return observation

    def _read_objects(self, observation: np.ndarray) -> None:
        """
        :param observation: Zeros, (18,): gets what Meta-World observes of hand, gripper and objects.
        """
        observation[:3] = self.get_body_com("hand")
        apart = self.get_body_com("rightclaw") - self.get_body_com("leftclaw")
        observation[3] = min(max(math.sqrt(apart.dot(apart)) / 0.1, 0.0), 1.0)
        # One or two objects: (3,) and (4,), or (6,) and (8,)
        positions, quaternions = self._get_pos_objects(), self._get_quat_objects()
        for index in range(len(positions) // 3):
            start = 4 + 7 * index
            observation[start : start + 3] = positions[3 * index : 3 * index + 3]
            observation[start + 3 : start + 7] = quaternions[4 * index : 4 * index + 4]

    def touching_object(self, object_geom_id: int) -> bool:
        """As in Meta-World: whether both pads press on the object."""
        left, right = self._pads
        left_force = right_force = 0.0
        contact, forces = self.data.contact, self.data.efc_force
        contacts = zip(contact.geom1.tolist(), contact.geom2.tolist(), contact.efc_address.tolist(), strict=True)
        for geom1, geom2, address in contacts:
            if object_geom_id in (geom1, geom2):
                if left in (geom1, geom2):
                    left_force += forces[address]
                if right in (geom1, geom2):
                    right_force += forces[address]
        return 0 < left_force and 0 < right_force


@cache
def simulation_class(environment: str) -> type[SharedModelEnv]:
    """
    :param environment: Name of one of Meta-World's 50 environments.
    :return: Its class with :class:`SharedModelEnv`.
    """
    cls = ALL_V3_ENVIRONMENTS[environment]
    methods: dict[str, Any] = {}
    read = vars(cls).get("_get_quat_objects")
    if read is not None and "Rotation" in read.__code__.co_names:
        # The class's own code with another Rotation: the mixin can't have it, because each class reads other objects
        names = {**read.__globals__, "Rotation": OneRotation}
        methods["_get_quat_objects"] = FunctionType(read.__code__, names, read.__name__)
    # Meta-World looks classes up by their names
    return type(cls.__name__, (SharedModelEnv, cls), methods)

"""
All MuJoCo simulations of a VecEnv in one native call per step (docs/guide/vec_env.md).

Shapes: ``n_envs`` slots, ``frame_skip`` physics steps per environment step, ``state_size`` numbers of MuJoCo's full
physics state ``[time | qpos | qvel | ...]``.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import gymnasium as gym
import mujoco
import numpy as np
from gymnasium.wrappers import OrderEnforcing, PassiveEnvChecker
from mujoco.rollout import Rollout
from stable_baselines3.common.env_util import is_wrapped
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env.base_vec_env import VecEnv, VecEnvIndices, VecEnvStepReturn

from sb3_trmrl.common.arguments import is_integer
from sb3_trmrl.common.vec_env.work_sharing import WorkSharing, n_usable_cores, share_out
from sb3_trmrl.envs.meta_env import MetaEnv
from sb3_trmrl.envs.mujoco.base import FULL_STATE, MAX_STATE, USER_INPUTS, MujocoMetaEnv, PhysicsState, is_unstable
from sb3_trmrl.envs.trial import TokenSpace, TrialWrapper

CONTROL = int(mujoco.mjtState.mjSTATE_CTRL)
TRANSPARENT_WRAPPERS = (Monitor, PassiveEnvChecker, OrderEnforcing)
"""Wrappers that neither change what an environment does nor need to see steps inside an episode."""
REMEDY = "use DummyVecEnv, which steps any environments"


StepResult = tuple[Any, float, bool, bool, dict[str, Any]]
"""What ``step`` of a gymnasium environment returns."""


class Slot(NamedTuple):
    """One environment of the list and what it is made of."""

    env: gym.Env[Any, Any]
    """As the function made it."""
    monitor: Monitor[Any, Any] | None
    """SB3's monitor, if there is one."""
    trial: TrialWrapper
    """The trial environment."""
    meta_env: MujocoMetaEnv
    """The task family."""


def find_slots(envs: Sequence[Any]) -> list[Slot]:
    """
    Look into environments that are to be stepped natively together.

    :param envs: The environments, one for each slot.
    :return: Their parts.
    :raises ValueError: If one of them can't be stepped natively, or not together with the first.
    """
    if len(envs) == 0:
        raise ValueError("env_fns must hold at least one function, got none")
    slots = [_find_slot(env, index) for index, env in enumerate(envs)]
    if len({id(slot.trial) for slot in slots}) != len(slots):
        raise ValueError("env_fns must make a new environment at each call, some of them returned the same one")
    for index, slot in enumerate(slots[1:], start=1):
        _check_alike(slots[0], slot, index)
    return slots


def _find_slot(env: Any, index: int) -> Slot:
    inner, monitor = env, None
    while type(inner) in TRANSPARENT_WRAPPERS:
        if type(inner) is Monitor:
            if monitor is not None:
                raise ValueError(f"slot {index} is wrapped in Monitor twice; leave one out, or {REMEDY}")
            monitor = inner
        inner = inner.env
    if type(inner) is not TrialWrapper:
        names = [wrapper.__name__ for wrapper in TRANSPARENT_WRAPPERS]
        raise ValueError(
            f"MujocoVecEnv steps TrialWrapper environments wrapped in nothing but {names}, "
            f"slot {index} holds {inner!r}; {REMEDY}"
        )
    family = inner.env
    if not isinstance(family, MujocoMetaEnv):
        raise ValueError(
            f"MujocoVecEnv steps families of MujocoMetaEnv without wrappers, slot {index} holds {family!r}; {REMEDY}"
        )
    own: dict[str, Any] = {"step": MetaEnv.step, "reset": MetaEnv.reset}
    own |= {name: getattr(MujocoMetaEnv, name) for name in ("_step", "_step_physics")}
    changed = [name for name, method in own.items() if getattr(type(family), name) is not method]
    if changed:
        raise ValueError(f"MujocoVecEnv would pass by {type(family).__name__}.{changed[0]}() of slot {index}; {REMEDY}")
    return Slot(env, monitor, inner, family)


def _constants(slot: Slot) -> dict[str, Any]:
    """:return: What has to be the same in all slots, by name: the arrays of all are computed by the methods of the first."""
    model = slot.meta_env.model
    kinds = (bool, int, float, str, tuple, list, type(None), np.ndarray)
    public = {
        name: value
        for name, value in vars(slot.meta_env).items()
        if not name.startswith("_") and isinstance(value, kinds) and name != "render_mode"
    }
    sizes = {name: getattr(model, name) for name in ("nq", "nv", "nu", "nsensordata")}
    state_size = mujoco.mj_stateSize(model, FULL_STATE)
    return {"episodes_per_trial": slot.trial.episodes_per_trial, **public, **sizes, "state_size": state_size}


def _check_alike(first: Slot, slot: Slot, index: int) -> None:
    kinds = type(first.meta_env), type(slot.meta_env)
    if kinds[0] is not kinds[1]:
        raise ValueError(
            f"all slots must be of one family, slot 0 is {kinds[0].__name__}, slot {index} {kinds[1].__name__}; {REMEDY}"
        )
    expected, found = _constants(first), _constants(slot)
    for name in sorted(expected.keys() | found.keys()):
        if (name in expected) != (name in found) or not np.array_equal(expected[name], found[name]):
            values = expected.get(name), found.get(name)
            raise ValueError(
                f"all slots must have the same {name}, slot 0 has {values[0]!r}, slot {index} {values[1]!r}; {REMEDY}"
            )


def share_models(slots: Sequence[Slot]) -> None:
    """
    Let slots whose models are equal have one in common, which stays in the processor's cache (half a megabyte for a humanoid).

    :param slots: The slots, of one family; nothing is done unless it says itself that it never changes its model
    """
    # Not what it inherits: it may do what its parents don't
    if not vars(type(slots[0].meta_env)).get("constant_model", False):
        return
    known: dict[bytes, mujoco.MjModel] = {}
    for slot in slots:
        content = np.empty(mujoco.mj_sizeModel(slot.meta_env.model), np.uint8)
        mujoco.mj_saveModel(slot.meta_env.model, None, content)
        slot.meta_env.model = known.setdefault(content.tobytes(), slot.meta_env.model)


class BatchedPhysics:
    """
    The simulations of all slots: their state as arrays, their steps by ``mujoco.rollout``.

    :param models: One model for each slot, of the same sizes.
    :param frame_skip: Physics steps per environment step.
    :param n_threads: Number of threads, with the calling one.
    """

    def __init__(self, models: list[mujoco.MjModel], frame_skip: int, n_threads: int):
        first, n_envs = models[0], len(models)
        state_size = mujoco.mj_stateSize(first, FULL_STATE)
        self.state = np.zeros((n_envs, state_size))
        """Where the next step starts."""
        self.sensordata = np.zeros((n_envs, first.nsensordata))
        """Sensor values there, in MuJoCo's convention for them, see :class:`PhysicsState`."""
        self._control = np.zeros((n_envs, frame_skip, first.nu))
        self._trajectory = np.zeros((n_envs, frame_skip, state_size))
        self._sensor_trajectory = np.zeros((n_envs, frame_skip, first.nsensordata))
        self._new_state = self._trajectory[:, -1]  # (n_envs, state_size)
        self._new_sensordata = self._sensor_trajectory[:, -1]
        self.before = self._view(self.state, self.sensordata, first)
        """Positions, velocities and sensor values where the step started (views)."""
        self.after = self._view(self._new_state, self._new_sensordata, first)
        """The same where it ended."""
        self._new_moving = self._new_state[:, 1 : 1 + first.nq + first.nv]
        # Time before and after the last physics step
        self._last_times = (self._trajectory[:, -2, 0] if frame_skip > 1 else self.state[:, 0]), self._new_state[:, 0]
        data = [mujoco.MjData(first) for _ in range(n_threads)]
        arrays = [self.state, np.zeros((n_envs, first.nv)), self._control, self._trajectory]
        if first.nsensordata:
            arrays.append(self._sensor_trajectory)
        cuts = share_out(n_envs, n_threads)
        self._run = WorkSharing([_rollout(models[cut], data, *(array[cut] for array in arrays)) for cut in cuts], n_threads)

    @staticmethod
    def _view(state: np.ndarray, sensordata: np.ndarray, model: mujoco.MjModel) -> PhysicsState:
        end_qpos = 1 + model.nq
        return PhysicsState(state[:, 1:end_qpos], state[:, end_qpos : end_qpos + model.nv], sensordata)

    def step(self, control: np.ndarray) -> None:
        """
        One environment step of all slots, from :attr:`before` to :attr:`after`.

        :param control: What the motors get, ``(n_envs, nu)``.
        """
        self._control[:] = control[:, None]
        self._run()

    def take_back_blow_ups(self) -> np.ndarray | None:
        """
        Put simulations that blew up in the last step back to where it started.

        :return: Which slots, ``(n_envs,)`` bool, or None if there is none.
        """
        # A rollout stops at a warning, and time with it.
        gave_up = self._last_times[0] == self._last_times[1]
        moving = self._new_moving
        # All together first: no slot is beyond the limit if the sum isn't. A NaN is below no limit.
        if np.einsum("ij,ij->", moving, moving) < MAX_STATE**2 and not gave_up.any():
            return None
        blown_up = is_unstable(self.after) | gave_up
        self._new_state[blown_up] = self.state[blown_up]
        self._new_sensordata[blown_up] = self.sensordata[blown_up]
        return blown_up

    def advance(self) -> None:
        """Let the next step start where the last one ended."""
        self.state[:] = self._new_state
        self.sensordata[:] = self._new_sensordata

    def stop_threads(self) -> None:
        """End the threads, if there are any."""
        self._run.stop()


def _rollout(
    models: list[mujoco.MjModel],
    data: list[mujoco.MjData],
    state: np.ndarray,
    warmstart: np.ndarray,
    control: np.ndarray,
    trajectory: np.ndarray,
    sensors: np.ndarray | None = None,
) -> Callable[[int], None]:
    """
    :param models: Models of some slots, ``n`` in number.
    :param data: A simulation for each thread, scratch space.
    :param state: Where they start, ``(n, state_size)``.
    :param warmstart: Zeros ``(n, nv)``: rollouts hand back no warm start to go on with.
    :param control: Motors' inputs ``(n, frame_skip, nu)``.
    :param trajectory: For the states, ``(n, frame_skip, state_size)``.
    :param sensors: For the sensor values, ``(n, frame_skip, nsensordata)``.
    :return: The rollout as a function of the thread's number.
    """
    rollout = Rollout(nthread=0).rollout
    spaces = [[one] for one in data]

    def run(thread: int) -> None:
        rollout(
            models,
            spaces[thread],
            state,
            control,
            control_spec=CONTROL,
            skip_checks=True,
            nstep=control.shape[1],
            initial_warmstart=warmstart,
            state=trajectory,
            sensordata=sensors,
        )

    return run


class MujocoVecEnv(VecEnv):
    """
    Trial environments of one MuJoCo family, with the physics of all slots stepped natively on all cores.

    Made like ``DummyVecEnv``, with the same trials, bit for bit (docs/guide/vec_env.md). Two things differ: the terms of the
    reward are in the infos of an episode's last step only, and slots with equal models share one (:func:`share_models`).

    Observations, rewards and terminations of all slots are computed as arrays by the family's own methods. Where an episode
    ends, the slot's environment takes over: it gets the step's result as if it had simulated it, so that monitor, trial,
    infos and resets are those of the single environment, and so are all random numbers.

    :param env_fns: Functions that make the environments, each a ``TrialWrapper`` around a MuJoCo family; ``Monitor`` and what
        ``gym.make`` adds may be around it. All of one family, with equal constructor arguments; ``split`` and ``tasks``
        may differ.
    :param n_threads: Threads for the physics; None is one for each core that this process may use. Results do not depend
        on it.
    :raises ValueError: If an environment can't be stepped this way, or not with the others.
    """

    actions: np.ndarray

    def __init__(self, env_fns: list[Callable[[], gym.Env[Any, Any]]], n_threads: int | None = None):
        if n_threads is None:
            n_threads = n_usable_cores()
        if not is_integer(n_threads, 1):
            raise ValueError(f"n_threads must be an integer >= 1, or None for the number of cores, got {n_threads!r}")
        self._slots = find_slots([env_fn() for env_fn in env_fns])
        self.envs = [slot.env for slot in self._slots]
        first, n_envs = self._slots[0], len(self._slots)
        self.n_threads = min(int(n_threads), n_envs)
        self._family = first.meta_env
        share_models(self._slots)
        models = [slot.meta_env.model for slot in self._slots]
        self._physics = BatchedPhysics(models, self._family.frame_skip, self.n_threads)
        self._user_inputs = np.empty(mujoco.mj_stateSize(models[0], USER_INPUTS))
        mujoco.mj_getState(models[0], mujoco.MjData(models[0]), self._user_inputs, USER_INPUTS)
        # The running episode of each slot
        self._episode_lengths = np.zeros(n_envs, np.int64)
        self._episode_returns = np.zeros(n_envs)
        self._runs = np.zeros(n_envs, bool)
        self._tasks = {name: np.zeros((n_envs, *shape)) for name, shape in self._family.task_shapes.items()}
        # The last rewards of all slots, as a ring that is long enough for a trial
        self._reward_log = np.zeros((self._family.horizon * first.trial.episodes_per_trial, n_envs))
        self._n_steps = 0
        self._started = False
        self._closed = False
        super().__init__(n_envs, first.env.observation_space, first.env.action_space)
        assert isinstance(first.trial.observation_space, TokenSpace)
        self._token_space = first.trial.observation_space
        self.metadata = first.env.metadata

    @staticmethod
    def can_step(envs: Sequence[gym.Env[Any, Any]]) -> bool:
        """
        :param envs: Environments, one for each slot.
        :return: Whether they could make a ``MujocoVecEnv``.
        """
        try:
            find_slots(envs)
        except ValueError:
            return False
        return True

    # ---- steps -------------------------------------------------------------------------------------------------------

    def reset(self) -> np.ndarray:
        """
        Start a new trial in every slot.

        :return: Tokens ``(n_envs, token_size)``.
        """
        self._require_open()
        tokens = np.zeros((self.num_envs, *self._token_space.shape), np.float32)
        for index, env in enumerate(self.envs):
            self._store(index)
            options = {"options": self._options[index]} if self._options[index] else {}
            tokens[index], self.reset_infos[index] = env.reset(seed=self._seeds[index], **options)
            self._load(index)
        self._reset_seeds()
        self._reset_options()
        self._started = True
        return tokens

    def step_async(self, actions: np.ndarray) -> None:
        """
        :param actions: Actions ``(n_envs, nu)`` for :meth:`step_wait`.
        """
        self.actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """
        One step of all slots; a trial that ends is followed by a new one.

        :return: Tokens ``(n_envs, token_size)``, rewards ``(n_envs,)`` float32, dones ``(n_envs,)`` bool, infos.
        :raises ValueError: On actions that are not finite or do not fit.
        :raises gymnasium.error.ResetNeeded: Before :meth:`reset`, and after ``env_method("step")`` to the end of a trial.
        """
        self._require_open()
        if not self._runs.all():
            index = int(np.argmin(self._runs))
            raise gym.error.ResetNeeded(f"MujocoVecEnv.step() needs a reset() first: no trial is running in slot {index}")
        family, physics = self._family, self._physics
        actions = self._clip_actions()
        wide_actions = actions.astype(np.float64)
        physics.step(family.controls(wide_actions))
        blown_up = physics.take_back_blow_ups()
        rewards, terms = family.rewards(physics.before, physics.after, wide_actions, self._tasks)
        terminated = family.terminations(physics.after)
        ended = terminated | (self._episode_lengths == family.horizon - 1)
        if blown_up is not None:
            rewards = np.where(blown_up, 0.0, rewards)
            ended |= blown_up
        observations = family.observe(physics.after)
        tokens = self._make_tokens(observations, actions, rewards)
        dones = np.zeros(self.num_envs, dtype=bool)
        infos: list[dict[str, Any]] = [{"TimeLimit.truncated": False} for _ in range(self.num_envs)]

        physics.advance()
        if ended.any():
            for index in np.flatnonzero(ended).tolist():
                if blown_up is not None and blown_up[index]:
                    result = self._slots[index].meta_env._blown_up(observations[index])
                else:
                    info = {name: float(term[index]) for name, term in terms.items()}
                    result = observations[index], float(rewards[index]), bool(terminated[index]), False, info
                tokens[index], dones[index], infos[index] = self._end_episode(index, result)
        going_on = ~ended
        self._episode_lengths += going_on
        self._episode_returns += rewards * going_on
        self._reward_log[self._n_steps % len(self._reward_log)] = rewards
        self._n_steps += 1
        return tokens, rewards.astype(np.float32), dones, infos

    def _clip_actions(self) -> np.ndarray:
        """:return: The actions within their bounds, ``(n_envs, nu)``."""
        actions = np.asarray(self.actions)
        space = self._family.action_space
        assert isinstance(space, gym.spaces.Box)
        expected = (self.num_envs, *space.shape)
        if actions.dtype.kind not in "fiu" or actions.shape != expected:
            raise ValueError(f"actions must be an array of numbers of shape {expected}, got {self.actions!r}")
        if not np.isfinite(actions).all():
            index = int(np.argmin(np.isfinite(actions).all(axis=1)))
            self._slots[index].trial._check_action(actions[index])  # raises
        clipped: np.ndarray = np.minimum(np.maximum(actions, space.low), space.high)
        return clipped

    def _make_tokens(self, observations: np.ndarray, actions: np.ndarray, rewards: np.ndarray) -> np.ndarray:
        """
        :param observations: Observations ``(n_envs, observation_size)``.
        :param actions: Actions that led to them, ``(n_envs, nu)``.
        :param rewards: Rewards ``(n_envs,)``.
        :return: Tokens ``(n_envs, token_size)`` within an episode.
        """
        size = observations.shape[1]
        tokens = np.empty((self.num_envs, *self._token_space.shape), np.float32)
        tokens[:, :size] = observations
        tokens[:, size:-2] = actions
        tokens[:, -2] = rewards
        tokens[:, -1] = 0.0
        if not np.isfinite(tokens).all():
            index = int(np.argmin(np.isfinite(tokens).all(axis=1)))
            raise ValueError(
                f"{self._slots[index].trial._name()} returned the observation {observations[index]!r} and the reward "
                f"{rewards[index]} in slot {index}, which are not all finite in float32"
            )
        return tokens

    # ---- ends of episodes ------------------------------------------------------------------------------------------

    def _end_episode(self, index: int, result: StepResult) -> tuple[np.ndarray, bool, dict[str, Any]]:
        """
        Let the slot's environment make the last step of an episode, with a result that is known already.

        :param index: Slot.
        :param result: The step's result.
        :return: Next token (after the reset that follows), whether the trial has ended, info.
        """
        env, _, _, meta_env = self._slots[index]
        self._store_progress(index)
        # An attribute of the instance goes before the method of the class
        meta_env._step = lambda action: result  # type: ignore[method-assign]
        try:
            token, _, terminated, truncated, info = env.step(self.actions[index])
        finally:
            del meta_env._step
        # As DummyVecEnv
        done = terminated or truncated
        info["TimeLimit.truncated"] = truncated and not terminated
        if done:
            info["terminal_observation"] = token
            token, self.reset_infos[index] = env.reset()
        self._load_state(index)
        return token, done, info

    # ---- between the arrays and the slots' environments --------------------------------------------------------------

    def _store_progress(self, index: int) -> None:
        """Tell a slot's environment how far its running episode is."""
        _, monitor, trial, meta_env = self._slots[index]
        length = int(self._episode_lengths[index])
        meta_env._elapsed_steps = length
        trial._episode_length = length
        trial._episode_return = float(self._episode_returns[index])
        if monitor is not None:
            rows = np.arange(self._n_steps - sum(trial._lengths) - length, self._n_steps)
            rewards = self._reward_log[rows % len(self._reward_log), index].tolist()
            monitor.total_steps += len(rewards) - len(monitor.rewards)
            monitor.rewards = rewards

    def _store(self, index: int) -> None:
        """Bring a slot's environment up to date, its simulation included."""
        if not self._started:
            return
        self._store_progress(index)
        model, data = self._slots[index].meta_env.model, self._slots[index].meta_env.data
        mujoco.mj_setState(model, data, self._physics.state[index], FULL_STATE)
        mujoco.mj_forward(model, data)  # what rendering reads
        data.sensordata[:] = self._physics.sensordata[index]

    def _load_state(self, index: int) -> None:
        """Take over a slot's simulation and task, and how far its episode is."""
        _, _, trial, meta_env = self._slots[index]
        if not np.array_equal(meta_env.user_inputs(), self._user_inputs):
            raise ValueError(
                f"MujocoVecEnv steps with controls alone, {type(meta_env).__name__} of slot {index} has set forces, mocap "
                f"bodies or other inputs of MuJoCo; {REMEDY}"
            )
        mujoco.mj_getState(meta_env.model, meta_env.data, self._physics.state[index], FULL_STATE)
        self._physics.sensordata[index] = meta_env.data.sensordata
        self._episode_lengths[index] = trial._episode_length
        self._episode_returns[index] = trial._episode_return
        for name, value in meta_env._task_arrays.items():
            self._tasks[name][index] = value[0]

    def _load(self, index: int) -> None:
        """Take over everything from a slot's environment that may have been stepped or reset by itself."""
        self._load_state(index)
        _, monitor, trial, _ = self._slots[index]
        self._runs[index] = trial._running
        self._keep_rewards(self._family.horizon * trial.episodes_per_trial)
        if monitor is not None:
            rows = np.arange(self._n_steps - len(monitor.rewards), self._n_steps)
            self._reward_log[rows % len(self._reward_log), index] = monitor.rewards

    def _keep_rewards(self, n_steps: int) -> None:
        """Remember the rewards of as many steps as a trial has: more than before, if it has got more episodes."""
        kept = len(self._reward_log)
        if n_steps > kept:
            steps = np.arange(max(0, self._n_steps - kept), self._n_steps)
            log = np.zeros((n_steps, self.num_envs))
            log[steps % n_steps] = self._reward_log[steps % kept]
            self._reward_log = log

    def _require_open(self) -> None:
        if self._closed:
            raise ValueError("this MujocoVecEnv is closed; make a new one")

    def __getstate__(self) -> dict[str, Any]:
        raise TypeError(f"MujocoVecEnv can't be copied or pickled, its physics runs in native arrays and threads; {REMEDY}")

    # ---- the rest of SB3's interface -----------------------------------------------------------------------------------

    def close(self) -> None:
        """Close the environments and end the threads. Doing it again changes nothing."""
        self._closed = True
        self._physics.stop_threads()
        for env in self.envs:
            env.close()

    def get_images(self) -> Sequence[np.ndarray | None]:
        """:return: Image of every slot; None without ``render_mode="rgb_array"``."""
        if self.render_mode != "rgb_array":
            warnings.warn(f"render_mode is {self.render_mode!r}, images need render_mode='rgb_array'")
            return [None for _ in self.envs]
        return self.env_method("render")

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """
        :param attr_name: Name of an attribute of the environments, or of what they wrap.
        :param indices: Slots, None is all.
        :return: Its values. Simulations (``meta_env.data``) are copies of the current state: changing them changes nothing.
            What is simulated is ``meta_env.model``, perhaps that of all slots (:func:`share_models`), not ``data.model``.
        """
        return [self._current_env(index).get_wrapper_attr(attr_name) for index in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """
        :param attr_name: Name of an attribute of the environments (as they come from ``env_fns``).
        :param value: Value for it.
        :param indices: Slots, None is all.
        """
        for index in self._get_indices(indices):
            setattr(self.envs[index], attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        """
        :param method_name: Name of a method of the environments, or of what they wrap.
        :param method_args: Its arguments.
        :param indices: Slots, None is all.
        :param method_kwargs: Its keyword arguments.
        :return: What it returns in each slot.
        """
        results = []
        for index in self._get_indices(indices):
            results.append(self._current_env(index).get_wrapper_attr(method_name)(*method_args, **method_kwargs))
            self._load(index)
        return results

    def _current_env(self, index: int) -> gym.Env[Any, Any]:
        self._store(index)
        return self.envs[index]

    def env_is_wrapped(
        self, wrapper_class: type[gym.Wrapper[Any, Any, Any, Any]], indices: VecEnvIndices = None
    ) -> list[bool]:
        """
        :param wrapper_class: A wrapper.
        :param indices: Slots, None is all.
        :return: Whether each is wrapped in it.
        """
        return [is_wrapped(self.envs[index], wrapper_class) for index in self._get_indices(indices)]

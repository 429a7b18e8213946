"""
Everything that training goes on from, bit for bit, beside weights and settings: optimizers, counters, random generators, the
context of running trials, and the state of the environments.

It is data all the way: ``training.json`` with numbers, ``training.safetensors`` with arrays, ``optimizer.safetensors``.
"""

import contextlib
import math
import random
import re
import sys
import warnings
from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecNormalize, VecTransposeImage

from sb3_trmrl.common.evaluation import derived_seed
from sb3_trmrl.common.on_policy_algorithm import MemoryPPO
from sb3_trmrl.common.vec_env import MujocoVecEnv, ProcessVecEnv
from sb3_trmrl.envs.meta_env import Task, check_generator_state, generator_from_state, generator_state
from sb3_trmrl.envs.trial import is_of
from sb3_trmrl.hub.errors import MalformedFileError, NotDescribableError, PretrainedError, WrongTensorsError
from sb3_trmrl.hub.files import decode_float, encode_float

COUNTERS = ("num_timesteps", "_total_timesteps", "_episode_num", "_n_updates", "n_iterations", "_current_progress_remaining")
"""Attributes of the algorithm that count."""
INFO_BUFFERS = ("ep_info_buffer", "ep_success_buffer", "trial_info_buffer")
"""Attributes of the algorithm that keep the last trials for the log."""
VEC_ENVS = (DummyVecEnv, SubprocVecEnv, MujocoVecEnv, ProcessVecEnv)
"""Vectorised environments whose slots' state can be read and set."""
STATELESS_WRAPPERS = ("PassiveEnvChecker", "OrderEnforcing")
"""Wrappers around a trial environment that a reset brings into the state they need."""

State = dict[str, Any]


# -- Arrays in JSON --------------------------------------------------------------------------------------------------------


def split_arrays(value: Any, arrays: dict[str, np.ndarray], path: str = "") -> Any:
    """
    :param value: Nested dicts, lists and tuples of numbers, strings and numpy arrays
    :param arrays: Where the arrays are put, by their path
    :param path: Path of the value
    :return: The same as JSON, with ``{"$array": path}`` for every array
    :raises NotDescribableError: for anything else
    """
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        arrays[path] = np.array(value, order="C")
        return {"$array": path}
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, np.generic):
        return split_arrays(value.item(), arrays, path)
    if isinstance(value, float):
        return encode_float(value)
    if isinstance(value, (list, tuple)):
        return [split_arrays(item, arrays, f"{path}.{index}") for index, item in enumerate(value)]
    if isinstance(value, dict) and all(isinstance(key, str) and not key.startswith("$") for key in value):
        return {key: split_arrays(item, arrays, f"{path}.{key}" if path else key) for key, item in value.items()}
    raise NotDescribableError(f"{path} of the training state can't be written as data: {value!r}")


def join_arrays(value: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    """
    :param value: What :func:`split_arrays` returned
    :param arrays: The arrays
    :return: The nested value, with lists for tuples
    :raises MalformedFileError: if an array is missing
    """
    if isinstance(value, list):
        return [join_arrays(item, arrays) for item in value]
    if not isinstance(value, dict):
        return value
    if "$float" in value:
        return decode_float(value)
    if "$array" in value:
        if not isinstance(value["$array"], str) or value["$array"] not in arrays:
            raise MalformedFileError(f"training.safetensors holds no array {str(value['$array'])[:100]!r}.")
        return arrays[value["$array"]]
    return {key: join_arrays(item, arrays) for key, item in value.items()}


# -- Reading the state of a model ------------------------------------------------------------------------------------------


def collect(model: MemoryPPO) -> State:
    """
    :param model: A model between two rollouts; in the middle of a step (a callback's ``on_step``) the environments are ahead
        of the model, and their state is left out
    :return: Its training state, without weights and optimizers
    """
    if model.pending_training_state:
        # Loaded and not trained since: what is still to be resumed. What has been put in place at loading is the model's now
        return {**model.pending_training_state, **_collect_progress(model)}
    state = _collect_progress(model)
    state["rng"] = _collect_rng(model)
    state["log"] = _collect_log(model)
    state["vec_normalize"] = _collect_vec_normalize(model.get_vec_normalize_env())
    slots = None if model._last_obs is None or model.in_step else collect_slots(model.env)
    state["rollout"] = None
    if slots is not None:
        state["rollout"] = {
            "slots": slots,
            "last_obs": model._last_obs,
            "last_episode_starts": np.asarray(model._last_episode_starts, dtype=bool),
            "last_original_obs": model._last_original_obs,
            "context": model.rollout_buffer.context_state(),
        }
    return state


def _collect_progress(model: MemoryPPO) -> State:
    infos = {name: getattr(model, name) for name in INFO_BUFFERS}
    return {
        "counters": {name: getattr(model, name) for name in COUNTERS},
        "infos": {name: None if buffer is None else list(map(_plain, buffer)) for name, buffer in infos.items()},
    }


def _plain(info: Any) -> Any:
    if not isinstance(info, dict):
        return bool(info)
    plain = {}
    for key, value in info.items():
        # Monitor(info_keywords=...) copies what it is told to, which may be anything
        with contextlib.suppress(NotDescribableError):
            split_arrays({key: value}, {})
            if not isinstance(value, np.ndarray):  # pictures, say, of a hundred trials
                plain[key] = value
    return plain


def _collect_rng(model: MemoryPPO) -> State:
    version, internal, gauss = random.getstate()
    legacy = np.random.get_state(legacy=False)  # noqa: NPY002 (the generator that SB3 and users seed)
    state: State = {
        "python": {"version": version, "internal": list(internal), "gauss": gauss},
        "numpy": legacy,
        "torch": th.get_rng_state().numpy(),
        "action_space": generator_state(model.action_space._np_random),
        "observation_space": generator_state(model.observation_space._np_random),
        "cuda": None,
    }
    if model.device.type == "cuda":
        state["cuda"] = th.cuda.get_rng_state(model.device).numpy()
    return state


def _collect_log(model: MemoryPPO) -> list[State]:
    # What the last update recorded is written with the next rollout's numbers
    if not hasattr(model, "_logger"):
        return []
    logger = model.logger
    return [
        {"key": key, "value": float(value), "count": logger.name_to_count[key], "exclude": logger.name_to_excluded.get(key)}
        for key, value in logger.name_to_value.items()
        if isinstance(value, (int, float, np.integer, np.floating))
    ]


def _statistics(env: VecNormalize) -> dict[str, RunningMeanStd]:
    if not env.norm_obs:
        return {"ret_rms": env.ret_rms}
    parts = env.obs_rms if isinstance(env.obs_rms, dict) else {"": env.obs_rms}
    return {"ret_rms": env.ret_rms, **{f"obs_rms.{key}": rms for key, rms in parts.items()}}


def _collect_vec_normalize(env: VecNormalize | None) -> State | None:
    if env is None:
        return None
    return {
        "statistics": {key: {"mean": rms.mean, "var": rms.var, "count": rms.count} for key, rms in _statistics(env).items()},
        "returns": env.returns,
    }


def _base_vec_env(env: VecEnv | None) -> VecEnv | None:
    """:return: The vectorised environment whose slots can be read, or None if a wrapper has a state that we don't know."""
    while type(env) in (VecNormalize, VecTransposeImage):
        env = env.venv  # type: ignore[union-attr]
    return env if type(env) in VEC_ENVS else None


def collect_slots(env: VecEnv | None) -> list[State] | None:
    """
    :param env: The training environment
    :return: State of every slot; None if one of them is foreign, or in a wrapper that is
    """
    base = _base_vec_env(env)
    if base is None or not base.has_attr("get_trial_state"):
        return None
    trials = base.env_method("get_trial_state")
    if any(trial is None for trial in trials) or any(map(_foreign_wrappers, base.env_method("__str__"))):
        return None
    slots = []
    for index, trial in enumerate(trials):
        monitor = None
        if base.env_is_wrapped(Monitor, indices=index)[0]:
            names = ("rewards", "needs_reset", "total_steps")
            monitor = {name: base.get_attr(name, indices=index)[0] for name in names}
            # Of a trial of thousands of steps
            monitor["rewards"] = np.array(monitor["rewards"], np.float64)
        slots.append({"trial": trial, "monitor": monitor})
    return slots


def _foreign_wrappers(chain: str) -> list[str]:
    """
    :param chain: ``str`` of an environment: ``<Monitor<OrderEnforcing<TrialWrapper<PointRobot-v0>>>>``
    :return: Names of the wrappers that may have a state of their own
    """
    around = re.split(r"<TrialWrapper\b", chain)[0]
    return [name for name in re.findall(r"<(\w+)", around) if name not in (*STATELESS_WRAPPERS, "Monitor")]


# -- Putting the state into a model ----------------------------------------------------------------------------------------


def restore_progress(model: MemoryPPO, state: State) -> None:
    """
    Set counters and the buffers of the log, when a model is loaded.

    :param model: The model
    :param state: Its training state
    """
    counters = state["counters"]
    for name in COUNTERS:
        value = counters[name]
        kind: type = float if name == "_current_progress_remaining" else int
        lowest = -1 if kind is float else 0  # what remains may lie a rollout behind the end
        if (
            isinstance(value, bool)
            or not isinstance(value, (int, float))
            or not lowest <= value < 2**53
            or kind(value) != value
        ):
            raise MalformedFileError(f"counter {name} of the training state must be a number, got {str(value)[:50]!r}.")
        setattr(model, name, kind(value))
    for name in INFO_BUFFERS:
        infos = state["infos"][name]
        _check_infos(name, infos)
        setattr(model, name, None if infos is None else deque(infos, maxlen=model._stats_window_size))


def _check_infos(name: str, infos: Any) -> None:
    """:raises MalformedFileError: if these are not what the log makes means of"""
    if infos is None:
        return
    fits = isinstance(infos, list)
    for info in infos if fits else []:
        if name == "ep_success_buffer":
            fits &= isinstance(info, bool)
        elif name == "ep_info_buffer":
            fits &= isinstance(info, dict) and all(_is_number(info.get(key)) for key in ("r", "l"))
        else:
            returns = info.get("returns") if isinstance(info, dict) else None
            fits &= isinstance(returns, list) and len(returns) > 0 and all(map(_is_number, returns))
    if not fits:
        raise MalformedFileError(f"{name} of the training state does not hold what training logs: {str(infos)[:100]}.")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < sys.float_info.max


def restore_environment(model: MemoryPPO, state: State, env_is_given: bool) -> None:
    """
    Put the environments where they were, when training begins. Where that can't be, training goes on with fresh trials, and a
    warning says so.

    :param model: The model, with its environment
    :param state: Its training state
    :param env_is_given: Whether the caller has given the environment, whose lists of tasks then count, and not the saved ones
    :raises MalformedFileError: if the state does not fit the model
    """
    assert model.env is not None
    try:
        restore_vec_normalize(model.get_vec_normalize_env(), state["vec_normalize"])
        rollout = state["rollout"]
        reason = _why_fresh(model, rollout, env_is_given)
        if reason is None and (state["vec_normalize"] is None) != (model.get_vec_normalize_env() is None):
            reason = "only one of the two environments is behind VecNormalize"
        if reason is None:
            model.env.reset()
            _set_slots(model.env, rollout["slots"])
            model._last_obs = _checked_observation(model, rollout["last_obs"])
            original = rollout["last_original_obs"]
            model._last_original_obs = None if original is None else _checked_observation(model, original)
            model._last_episode_starts = _checked(rollout["last_episode_starts"], (model.n_envs,), np.dtype(bool))
            model.rollout_buffer.set_context_state(rollout["context"])
            # VecNormalize's own reset has emptied its running returns
            restore_vec_normalize(model.get_vec_normalize_env(), state["vec_normalize"])
            return
    except PretrainedError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, OverflowError) as error:
        raise MalformedFileError(f"The state of the environments in training.json does not fit: {error!r}.") from error
    warnings.warn(
        f"Training resumes with fresh trials, not in the middle of those that ran when it was saved: {reason}. Weights, "
        "optimizer, statistics, counters and random generators are those of the checkpoint.",
        stacklevel=2,
    )
    model._last_obs = None
    # With their first seed the environments would play the trials of the training's start again
    model.env.seed(derived_seed(model.seed or 0, model.num_timesteps))


def _same_tasks(first: list[Task] | None, second: list[Task] | None) -> bool:
    if first is None or second is None:
        return first is second
    return len(first) == len(second) and all(
        one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)
        for one, other in zip(first, second, strict=True)
    )


def _why_fresh(model: MemoryPPO, rollout: State | None, env_is_given: bool) -> str | None:
    """:return: Why the trials can't go on, or None if they can."""
    assert model.env is not None
    base = _base_vec_env(model.env)
    if base is not None:
        base.reset()  # before that, an environment need not have a state that can be read
    slots = collect_slots(model.env)
    if slots is None:
        return (
            "the state of this environment is not known (only that of this package's environments without foreign wrappers, "
            "in DummyVecEnv, SubprocVecEnv, MujocoVecEnv or ProcessVecEnv, and of families with _get_state and _set_state)"
        )
    if rollout is None:
        return "the checkpoint holds no state of the environments (they were foreign, or it was saved in the middle of a step)"
    saved = rollout["slots"]
    if len(saved) != len(slots):
        return f"the checkpoint has {len(saved)} environment slots, this environment {len(slots)}"
    for old, new in zip(saved, slots, strict=True):
        if not is_of(new["trial"]["identity"], old["trial"]["identity"]):
            return f"the checkpoint is of {old['trial']['identity']}, this environment of {new['trial']['identity']}"
        if env_is_given and not _same_tasks(old["trial"]["tasks"], new["trial"]["tasks"]):
            return "the environment plays other tasks than the checkpoint's, which had a list of its own or drew them"
        if (old["monitor"] is None) != (new["monitor"] is None):
            return "only one of the two environments is wrapped in Monitor"
    return None


def _set_slots(env: VecEnv, slots: list[State]) -> None:
    base = _base_vec_env(env)
    assert base is not None
    for index, slot in enumerate(slots):
        base.env_method("set_trial_state", slot["trial"], indices=index)
        if slot["monitor"] is not None:
            # The rewards first: MujocoVecEnv works out the number of steps from them
            monitor = slot["monitor"]
            values = {
                "rewards": np.asarray(monitor["rewards"], np.float64).reshape(-1).tolist(),
                "needs_reset": bool(monitor["needs_reset"]),
                "total_steps": int(monitor["total_steps"]),
            }
            for name, value in values.items():
                base.env_method("set_wrapper_attr", name, value, indices=index)


def _checked(array: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
    if not isinstance(array, np.ndarray) or array.shape != shape or array.dtype != dtype:
        got = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else repr(array)[:50]
        raise ValueError(f"expected an array of {dtype} {shape}, got {got}")
    return array.copy()


def _checked_observation(model: MemoryPPO, observation: Any) -> Any:
    space = model.observation_space
    parts = getattr(space, "spaces", None)
    if parts is None:
        return _checked(observation, (model.n_envs, *space.shape), space.dtype)  # type: ignore[misc, arg-type]
    return {key: _checked(observation[key], (model.n_envs, *part.shape), part.dtype) for key, part in parts.items()}


def restore_vec_normalize(env: VecNormalize | None, state: State | None) -> None:
    """
    :param env: The statistics of the training environment, if it keeps some
    :param state: Those of the checkpoint, if there were some
    :raises ValueError: if these are statistics of something else
    """
    if env is None or state is None:
        return
    saved, statistics = state["statistics"], _statistics(env)
    if set(statistics) != set(saved):
        raise ValueError(f"VecNormalize keeps {sorted(statistics)}, the checkpoint {sorted(saved)}")
    for key, rms in statistics.items():
        for name in ("mean", "var"):
            value = _checked(np.asarray(saved[key][name]), np.shape(getattr(rms, name)), np.dtype(np.float64))
            if not np.isfinite(value).all():
                raise ValueError(f"the {name} of {key} is not finite")
            setattr(rms, name, value)
        rms.count = float(saved[key]["count"])
    returns = np.array(state["returns"], np.float64)
    if returns.shape == (env.num_envs,):  # else they are of other slots
        env.returns = returns


def _check_torch_state(state: Any) -> None:
    """
    torch takes the position in the generator's buffer of 624 numbers as it is told, and would read there.

    :param state: State of torch's generator on the CPU: a Mersenne twister, behind its seed how many numbers are left, whether
        it was seeded, and the position of the next one
    :raises ValueError: if it is none
    """
    expected = th.get_rng_state().numpy()
    content = bytes(_checked(state, expected.shape, expected.dtype))
    left, position = int.from_bytes(content[8:12], sys.byteorder), int.from_bytes(content[16:24], sys.byteorder)
    # Seeded and not used yet; or used
    if (left, position) != (1, 0) and not (1 <= left <= 624 and left + position == 625):
        raise ValueError(f"position {position} with {left} numbers left lies outside of the generator's buffer")


def restore_rng(model: MemoryPPO, state: State) -> None:
    """
    Set all random generators, and what waits to be logged, when training begins.

    :param model: The model
    :param state: Its training state
    :raises MalformedFileError: if it is no state of these generators
    """
    try:
        rng = state["rng"]
        python = rng["python"]
        if python["gauss"] is not None and not math.isfinite(python["gauss"]):
            raise ValueError(f"gauss must be a finite number, got {python['gauss']}")
        random.setstate((python["version"], tuple(python["internal"]), python["gauss"]))
        check_generator_state(rng["numpy"])
        np.random.set_state(rng["numpy"])  # noqa: NPY002
        _check_torch_state(rng["torch"])
        th.set_rng_state(th.as_tensor(rng["torch"]))
        if rng["cuda"] is not None and model.device.type == "cuda":
            th.cuda.set_rng_state(th.as_tensor(rng["cuda"]), model.device)
        for name in ("action_space", "observation_space"):
            getattr(model, name)._np_random = generator_from_state(rng[name])
        for entry in state["log"]:
            key, exclude = str(entry["key"]), entry["exclude"]
            model.logger.name_to_value[key] = float(entry["value"])
            model.logger.name_to_count[key] = int(entry["count"])
            if exclude is not None:
                model.logger.name_to_excluded[key] = tuple(map(str, exclude))
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RuntimeError, OverflowError) as error:
        raise MalformedFileError(f"The state of the random generators in training.json does not fit: {error!r}.") from error


# -- Optimizers ------------------------------------------------------------------------------------------------------------


def collect_optimizers(model: MemoryPPO) -> tuple[dict[str, th.Tensor], State]:
    """
    :param model: The model
    :return: The state of its optimizers: tensors by ``optimizer/parameter/name``, and the numbers of the parameter groups
    """
    tensors: dict[str, th.Tensor] = {}
    numbers: State = {}
    for name, optimizer in model.optimizers().items():
        data = optimizer.state_dict()
        for index, entries in data["state"].items():
            for key, value in entries.items():
                if value is not None:  # SGD without momentum keeps a None
                    tensors[f"{name}/{index}/{key}"] = th.as_tensor(value)
        numbers[name] = [_numbers(group) for group in data["param_groups"]]
    return tensors, numbers


def _numbers(group: dict[str, Any]) -> State:
    # Which code path the optimizer takes (fused, foreach, ...) is no state
    return {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in group.items()
        if key in ("lr", "betas", "eps", "weight_decay", "momentum", "alpha", "dampening", "initial_lr")
    }


def restore_optimizers(model: MemoryPPO, tensors: Mapping[str, th.Tensor], numbers: State) -> None:
    """
    :param model: The model, freshly built, with its counters
    :param tensors: What :func:`collect_optimizers` returned
    :param numbers: What :func:`collect_optimizers` returned
    :raises WrongTensorsError: if they are not those of the model's optimizers
    """
    optimizers = model.optimizers()
    others = sorted(path for path in tensors if path.partition("/")[0] not in optimizers)
    if others:
        raise WrongTensorsError(f"optimizer.safetensors holds tensors of no optimizer: {others[:3]}.")
    for name, optimizer in optimizers.items():
        own = {path.removeprefix(f"{name}/"): tensor for path, tensor in tensors.items() if path.startswith(f"{name}/")}
        data = optimizer.state_dict()
        _restore_groups(name, data["param_groups"], numbers.get(name))
        optimizer.load_state_dict(data)
        # Empty for SGD without momentum, and for a model that was loaded without training state
        optimizer.load_state_dict({**data, "state": _checked_optimizer_state(name, optimizer, own)})


def _restore_groups(name: str, groups: list[State], saved_groups: Any) -> None:
    if not isinstance(saved_groups, list) or len(saved_groups) != len(groups):
        raise WrongTensorsError(f"training.json must hold {len(groups)} parameter group(s) of {name}.")
    for group, saved in zip(groups, saved_groups, strict=True):
        expected = _numbers(group)
        if not isinstance(saved, dict) or set(saved) != set(expected):
            raise WrongTensorsError(f"training.json: a parameter group of {name} must have the keys {sorted(expected)}.")
        for key, value in saved.items():
            like = expected[key] if isinstance(expected[key], list) else [expected[key]]
            values = value if isinstance(expected[key], list) and isinstance(value, list) else [value]
            if len(values) != len(like) or not all(map(_is_number, values)):
                raise WrongTensorsError(f"training.json: {key} of {name} must be like {expected[key]}, got {str(value)[:50]}.")
            group[key] = tuple(values) if isinstance(group[key], tuple) else value


def _checked_optimizer_state(
    name: str, optimizer: th.optim.Optimizer, tensors: Mapping[str, th.Tensor]
) -> dict[int, dict[str, th.Tensor]]:
    """
    :param name: Of the optimizer
    :param optimizer: The optimizer, with its settings
    :param tensors: Its tensors by ``parameter/name``
    :return: Its state by parameter
    :raises WrongTensorsError: if it is not what such an optimizer keeps of these parameters
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    shared = _shapes_of_state(optimizer)
    state: dict[int, dict[str, th.Tensor]] = {}
    for path, tensor in tensors.items():
        index, _, key = path.partition("/")
        if not index.isdecimal() or int(index) >= len(parameters) or key not in shared:
            raise WrongTensorsError(f"optimizer.safetensors: {name}/{path[:100]} belongs to no parameter of {name}.")
        parameter = parameters[int(index)]
        shape, dtype = (th.Size(), th.float32) if shared[key] else (parameter.shape, parameter.dtype)
        if tensor.shape != shape or tensor.dtype != dtype or not tensor.isfinite().all() or (shared[key] and tensor < 0):
            raise WrongTensorsError(
                f"optimizer.safetensors: {name}/{path[:100]} must be finite {dtype} of shape {tuple(shape)}, got "
                f"{tensor.dtype} {tuple(tensor.shape)}."
            )
        state.setdefault(int(index), {})[key] = tensor
    for index_, entries in state.items():
        if set(entries) != set(shared):
            raise WrongTensorsError(
                f"optimizer.safetensors: parameter {index_} of {name} must have {sorted(shared)}, got {sorted(entries)}."
            )
    return state


def _shapes_of_state(optimizer: th.optim.Optimizer) -> dict[str, bool]:
    """:return: What the optimizer keeps of a parameter by name, and whether that is one number, such as the steps."""
    probe = th.nn.Parameter(th.zeros(2))
    probe.grad = th.zeros(2)
    probing = type(optimizer)([probe])  # type: ignore[call-arg]
    probing.param_groups[0].update({key: value for key, value in optimizer.param_groups[0].items() if key != "params"})
    probing.step()
    return {key: value.dim() == 0 for key, value in probing.state[probe].items() if value is not None}

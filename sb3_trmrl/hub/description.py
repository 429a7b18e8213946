"""``config.json``: a model as data. What is code (a lambda as schedule, an unknown class) is refused when it is saved."""

import dataclasses
import inspect
import math
import types
import typing
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from stable_baselines3.common.utils import ConstantSchedule, FloatSchedule, LinearSchedule, check_for_correct_spaces
from stable_baselines3.common.vec_env import (
    VecCheckNan,
    VecEnv,
    VecEnvWrapper,
    VecMonitor,
    VecTransposeImage,
    VecVideoRecorder,
)

from sb3_trmrl.common.env_util import make_meta_vec_env, plays_trials
from sb3_trmrl.common.on_policy_algorithm import MemoryPPO
from sb3_trmrl.envs.registration import TASK_FAMILIES
from sb3_trmrl.envs.trial import TokenSpace
from sb3_trmrl.hub.errors import MalformedFileError, NotDescribableError, PretrainedError
from sb3_trmrl.hub.files import decode_float, encode_float
from sb3_trmrl.hub.registry import (
    ACTIVATIONS,
    FEATURES_EXTRACTORS,
    OPTIMIZERS,
    ROLLOUT_BUFFERS,
    look_up,
    name_of,
)
from sb3_trmrl.memory_encoders import MEMORY_ENCODERS

MAX_SPACE_ELEMENTS = 1 << 24
"""Numbers in one observation or action, all parts of a Dict together: an image of 4096 x 4096 pixels."""
MAX_ENVS = 1 << 14
"""Environment slots."""
MAX_STEPS = 10**8
"""Steps of the trials of all slots of an environment that is made from a file (``MujocoVecEnv`` keeps their rewards)."""
MAX_ARMS = 1 << 16
"""Arms of a bandit that is made from a file."""

CHANGES_NOTHING = (VecCheckNan, VecMonitor, VecTransposeImage, VecVideoRecorder)
"""What may be around the training environment, and is not missed where it is made again."""
RECORDERS = ("Monitor", "RecordEpisodeStatistics", "RecordVideo")
"""The same around a slot, by name."""
MAKES_OTHERWISE = frozenset({"env_id", "render_mode", "max_episode_steps", "disable_env_checker", "additional_wrappers"})
"""Keywords of ``gym.make`` that are no property of the environment."""

#: Arguments of the constructor that are no property of the model
NOT_SAVED = ("self", "policy", "env", "device", "tensorboard_log", "verbose", "_init_setup_model")
DTYPES = ("bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64", "float16", "float32", "float64")


# -- Values --------------------------------------------------------------------------------------------------------------


def encode_value(value: Any, what: str) -> Any:
    """
    :param value: Numbers, strings, lists, tuples, dicts and arrays
    :param what: Its name, for errors
    :return: The same as JSON: a tuple becomes ``{"$tuple": [...]}``
    :raises NotDescribableError: for anything else
    """
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, (int, np.integer)):
        return int(value)
    if isinstance(value, (float, np.floating)):
        return encode_float(float(value))
    if isinstance(value, np.bool_):
        return bool(value)
    if isinstance(value, np.ndarray):
        return encode_value(value.tolist(), what)
    if isinstance(value, list):
        return [encode_value(item, what) for item in value]
    if isinstance(value, tuple):
        return {"$tuple": [encode_value(item, what) for item in value]}
    if isinstance(value, dict) and all(isinstance(key, str) and not key.startswith("$") for key in value):
        return {key: encode_value(item, f"{what}[{key!r}]") for key, item in value.items()}
    raise NotDescribableError(
        f"{what}={value!r} can't be written as data: only numbers, strings, lists, tuples and dicts of these can. "
        "(SB3's model.save() pickles it.)"
    )


def decode_value(value: Any) -> Any:
    """
    :param value: What :func:`encode_value` returned
    :return: The value
    :raises MalformedFileError: for an unknown ``$`` form
    """
    if isinstance(value, list):
        return [decode_value(item) for item in value]
    if not isinstance(value, dict):
        return value
    if "$float" in value:
        return decode_float(value)
    if set(value) == {"$tuple"} and isinstance(value["$tuple"], list):
        return tuple(decode_value(item) for item in value["$tuple"])
    if any(key.startswith("$") for key in value):
        raise MalformedFileError(f"{sorted(value)[:5]} is no known form of a value.")
    return {key: decode_value(item) for key, item in value.items()}


# -- Spaces --------------------------------------------------------------------------------------------------------------


def _encode_bound(bound: np.ndarray) -> Any:
    numbers = [number if math.isfinite(number) else str(number) for number in bound.ravel().tolist()]
    # Most bounds are one number, those of an image above all
    return numbers[0] if len(set(numbers)) == 1 else numbers


def _decode_bound(data: Any, dtype: np.dtype[Any], shape: tuple[int, ...]) -> np.ndarray:
    infinite, listed = {"inf": math.inf, "-inf": -math.inf}, data if isinstance(data, list) else [data]
    numbers = [infinite[number] if isinstance(number, str) else number for number in listed]
    return np.broadcast_to(np.array(numbers, dtype), (math.prod(shape),)).reshape(shape)


def encode_space(space: spaces.Space[Any]) -> dict[str, Any]:
    """
    :param space: TokenSpace, Box, Discrete, MultiDiscrete, MultiBinary or a Dict of these
    :return: The space as data
    :raises NotDescribableError: for another kind of space
    """
    kind = type(space).__name__
    if isinstance(space, (TokenSpace, spaces.Box)):
        data: dict[str, Any] = {"type": kind, "shape": list(space.shape), "dtype": str(space.dtype)}
        if isinstance(space, TokenSpace):
            data.update(observation_size=space.observation_size, action_size=space.action_size)
        return {**data, "low": _encode_bound(space.low), "high": _encode_bound(space.high)}
    # Nearly always int64, which is left out
    dtype = {} if space.dtype == np.int64 else {"dtype": str(space.dtype)}
    if isinstance(space, spaces.Discrete):
        return {"type": kind, "n": int(space.n), "start": int(space.start), **dtype}
    if isinstance(space, spaces.MultiDiscrete):
        return {"type": kind, "nvec": space.nvec.tolist(), "start": space.start.tolist(), **dtype}
    if isinstance(space, spaces.MultiBinary):
        return {"type": kind, "n": int(space.n) if isinstance(space.n, (int, np.integer)) else list(map(int, space.n))}
    if isinstance(space, spaces.Dict):
        return {"type": kind, "spaces": {key: encode_space(part) for key, part in space.spaces.items()}}
    raise NotDescribableError(f"{space} can't be saved: only Box, Discrete, MultiDiscrete, MultiBinary and Dict spaces can.")


def _size(value: Any, what: str, limit: int = MAX_SPACE_ELEMENTS) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= limit:
        raise MalformedFileError(f"{what} must be an integer in [0, {limit}], got {str(value)[:50]}.")
    return value


def _sizes(values: Any, what: str) -> tuple[int, ...]:
    if not isinstance(values, list) or len(values) > 32:
        raise MalformedFileError(f"{what} must be a list of sizes, got {str(values)[:50]}.")
    sizes, total = tuple(_size(value, what) for value in values), 1
    for size in sizes:
        total = _size(total * size, what)
    return sizes


def _decode_box(data: dict[str, Any]) -> spaces.Box:
    if data["dtype"] not in DTYPES:
        raise MalformedFileError(f"dtype of a Box must be one of {DTYPES}, got {str(data['dtype'])[:50]!r}.")
    shape, dtype = _sizes(data["shape"], "shape of a Box"), np.dtype(data["dtype"])
    low, high = (_decode_bound(data[side], dtype, shape) for side in ("low", "high"))
    return spaces.Box(low, high, shape, dtype.type)


def decode_space(data: Any) -> spaces.Space[Any]:
    """
    :param data: What :func:`encode_space` returned
    :return: The space
    :raises MalformedFileError: if it is no space, or too large
    """
    # Before any is made: each Box holds four arrays, and a Dict thousands of Boxes
    _size(_n_elements(data), "number of elements of all parts of a space")
    return _decode_space(data)


def _n_elements(data: Any) -> int:
    """:return: Numbers in all Boxes of a space; what else is wrong is told by who decodes them."""
    if not isinstance(data, dict):
        return 0
    parts = data.get("spaces")
    own = math.prod(_sizes(data["shape"], "shape of a Box")) if "shape" in data else 0
    return own + (sum(map(_n_elements, parts.values())) if isinstance(parts, dict) else 0)


def _decode_space(data: Any) -> spaces.Space[Any]:
    decoders: dict[str, Callable[[dict[str, Any]], spaces.Space[Any]]] = {
        "Box": _decode_box,
        "TokenSpace": _decode_token_space,
        "Discrete": lambda data: spaces.Discrete(
            _size(data["n"], "n of a Discrete space"), start=int(data["start"]), **_integers(data)
        ),
        "MultiDiscrete": lambda data: spaces.MultiDiscrete(
            [_size(n, "nvec of a MultiDiscrete space") for n in data["nvec"]], start=data["start"], **_integers(data)
        ),
        "MultiBinary": lambda data: spaces.MultiBinary(
            _size(data["n"], "n of a MultiBinary space")
            if isinstance(data["n"], int)
            else _sizes(data["n"], "n of a MultiBinary space")
        ),
        # In the order of the file: a plain dict would be sorted
        "Dict": lambda data: spaces.Dict(OrderedDict((key, _decode_space(part)) for key, part in data["spaces"].items())),
    }
    try:
        return look_up(decoders, data["type"], "type of a space")(data)
    except PretrainedError:
        raise
    except Exception as error:  # what gymnasium makes of bad numbers
        raise MalformedFileError(f"{str(data)[:200]} is no space: {error!r}.") from error


def _integers(data: dict[str, Any]) -> dict[str, Any]:
    if "dtype" not in data:
        return {}
    if data["dtype"] not in DTYPES:
        raise MalformedFileError(f"dtype of a space must be one of {DTYPES}, got {str(data['dtype'])[:50]!r}.")
    return {"dtype": np.dtype(data["dtype"]).type}


def _decode_token_space(data: dict[str, Any]) -> TokenSpace:
    box = _decode_box(data)
    observation, action = (_size(data[f"{part}_size"], f"{part}_size") for part in ("observation", "action"))
    if box.shape != (observation + action + 2,):
        raise MalformedFileError(f"a TokenSpace of {observation} + {action} + 2 numbers can't have the shape {box.shape}.")
    end = observation + action
    return TokenSpace(
        spaces.Box(box.low[:observation], box.high[:observation]),
        spaces.Box(box.low[observation:end], box.high[observation:end]),
    )


# -- Hyperparameters -----------------------------------------------------------------------------------------------------


ZOO_SCHEDULE = "rl_zoo3.utils.SimpleLinearSchedule"
"""What the zoo makes of ``lin_3e-4`` in its files; SB3's ``LinearSchedule`` to zero rounds otherwise."""


def encode_schedule(schedule: Any, what: str) -> Any:
    """
    :param schedule: A number, or one of SB3's or the zoo's schedules
    :param what: Its name, for errors
    :return: A number, or a linear schedule as data
    :raises NotDescribableError: for a function
    """
    if isinstance(schedule, FloatSchedule):
        return encode_schedule(schedule.value_schedule, what)
    if isinstance(schedule, ConstantSchedule):
        return encode_value(schedule.val, what)
    if isinstance(schedule, LinearSchedule):
        numbers = {name: getattr(schedule, name) for name in ("start", "end", "end_fraction")}
        return {"schedule": "linear", **encode_value(numbers, what)}
    if f"{type(schedule).__module__}.{type(schedule).__name__}" == ZOO_SCHEDULE:
        return {"schedule": "linear_to_zero", **encode_value({"start": schedule.initial_value}, what)}
    if callable(schedule):
        raise NotDescribableError(
            f"{what}={schedule!r} is a function, which is code: use a number or stable_baselines3.common.utils.LinearSchedule"
            "(start, end, end_fraction)."
        )
    return encode_value(schedule, what)


def decode_schedule(data: Any, what: str) -> Any:
    """
    :param data: What :func:`encode_schedule` returned
    :param what: Its name, for errors
    :return: A number, None, or a schedule
    :raises MalformedFileError: for anything else
    """
    if not (isinstance(data, dict) and "schedule" in data):
        return decode_value(data)
    names = {"linear": ("start", "end", "end_fraction"), "linear_to_zero": ("start",)}.get(str(data["schedule"]), ())
    numbers = [data.get(name) for name in names]
    is_linear = names != () and len(data) == 1 + len(names) and data.get("end_fraction") != 0
    if not is_linear or any(isinstance(number, bool) or not isinstance(number, (int, float)) for number in numbers):
        raise MalformedFileError(f"{what} must be a number or a linear schedule, got {str(data)[:200]}.")
    if len(names) == 1:
        # Not at the top: it brings all of the zoo along
        from rl_zoo3.utils import SimpleLinearSchedule

        return SimpleLinearSchedule(float(data["start"]))
    return LinearSchedule(*map(float, numbers))  # type: ignore[arg-type]


SCHEDULES = ("learning_rate", "clip_range", "clip_range_vf")
#: Keywords of the policy that take classes
CLASSES: dict[str, tuple[dict[str, Any], str]] = {
    "activation_fn": (ACTIVATIONS, ""),
    "optimizer_class": (OPTIMIZERS, ""),
    "features_extractor_class": (FEATURES_EXTRACTORS, ""),
    "memory_encoder": (MEMORY_ENCODERS, " Register yours first: sb3_trmrl.register_memory_encoder(name, cls)."),
}


def encode_policy_kwargs(policy_kwargs: dict[str, Any]) -> dict[str, Any]:
    """
    :param policy_kwargs: Keyword arguments of a policy
    :return: The same as data, with classes by name
    :raises NotDescribableError: for a class without name
    """
    data = {}
    for key, value in policy_kwargs.items():
        if key in CLASSES and isinstance(value, type):
            registry, remedy = CLASSES[key]
            data[key] = name_of(registry, value, f"policy_kwargs[{key!r}]", remedy)
        else:
            data[key] = encode_value(value, f"policy_kwargs[{key!r}]")
    return data


def decode_policy_kwargs(data: dict[str, Any]) -> dict[str, Any]:
    """
    :param data: What :func:`encode_policy_kwargs` returned
    :return: Keyword arguments of a policy
    :raises UnknownNameError: for a name in no registry
    """
    kwargs = {}
    for key, value in data.items():
        if key == "memory_encoder":
            # The name itself: it is what the policy remembers
            look_up(MEMORY_ENCODERS, value, key, CLASSES[key][1])
            kwargs[key] = value
        elif key in CLASSES and value is not None:
            kwargs[key] = look_up(CLASSES[key][0], value, f"policy_kwargs[{key!r}]")
        else:
            kwargs[key] = decode_value(value)
    return kwargs


def _parameters(algorithm: type[MemoryPPO]) -> dict[str, inspect.Parameter]:
    """:return: Arguments of the constructor, and those that it hands on as ``**kwargs``."""
    found: dict[str, inspect.Parameter] = {}
    for cls in algorithm.__mro__:
        if "__init__" not in vars(cls):
            continue
        own = inspect.signature(cls.__init__).parameters  # type: ignore[misc]
        named = {name: one for name, one in own.items() if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)}
        found = {**named, **found}
        if not any(one.kind is one.VAR_KEYWORD for one in own.values()):
            break
    return {name: found[name] for name in found if name not in NOT_SAVED}


def describe_hyperparameters(model: MemoryPPO) -> dict[str, Any]:
    """
    :param model: The model
    :return: The arguments of its constructor as data
    :raises NotDescribableError: for one that is code
    """
    data: dict[str, Any] = {}
    for name in _parameters(type(model)):
        if not hasattr(model, name) and not hasattr(model, f"_{name}"):
            raise NotDescribableError(
                f"{type(model).__name__} takes the argument {name!r} and keeps no attribute of that name: keep one, so that "
                "it can be saved."
            )
        value = getattr(model, name) if hasattr(model, name) else getattr(model, f"_{name}")
        if name in SCHEDULES:
            data[name] = encode_schedule(value, name)
        elif name == "n_steps" and value == model._default_n_steps:
            data[name] = None
        elif name == "policy_kwargs":
            data[name] = encode_policy_kwargs(value)
        elif name == "rollout_buffer_class":
            data[name] = None if value is None else name_of(ROLLOUT_BUFFERS, value, name)
        elif dataclasses.is_dataclass(value) and not isinstance(value, type):
            data[name] = encode_value(dataclasses.asdict(value), name)
        else:
            data[name] = encode_value(value, name)
    return data


def read_hyperparameters(algorithm: type[MemoryPPO], data: Any) -> dict[str, Any]:
    """
    :param algorithm: The class whose constructor takes them
    :param data: What :func:`describe_hyperparameters` returned, perhaps by an earlier version that had fewer
    :return: Arguments of the constructor
    :raises PretrainedError: for unknown names and values of the wrong type
    """
    if not isinstance(data, dict):
        raise MalformedFileError(f"hyperparameters must be an object, got {str(data)[:50]}.")
    parameters = _parameters(algorithm)
    values: dict[str, Any] = {}
    for name, value in data.items():
        look_up(parameters, name, f"hyperparameter of {algorithm.__name__}")
        if name in SCHEDULES:
            decoded = decode_schedule(value, name)
        elif name == "policy_kwargs" and isinstance(value, dict):
            decoded = decode_policy_kwargs(value)
        elif name == "rollout_buffer_class" and value is not None:
            decoded = look_up(ROLLOUT_BUFFERS, value, name)
        else:
            decoded = decode_value(value)
        if not _fits(decoded, parameters[name].annotation):
            raise MalformedFileError(f"{name} must be of type {parameters[name].annotation}, got {str(value)[:200]}.")
        values[name] = decoded
    return values


def _fits(value: Any, annotation: Any) -> bool:
    """:return: Whether a value from a file is of the type that the constructor asks for, as far as the annotation tells."""
    origin = typing.get_origin(annotation) or annotation
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, member) for member in typing.get_args(annotation))
    if origin in (int, float):
        return isinstance(value, (int, float) if origin is float else int) and not isinstance(value, bool)
    if annotation is None:
        return value is None
    # Schedules are Callable[[float], float]; only decode_schedule makes a callable
    return isinstance(value, origin) if isinstance(origin, type) and origin is not inspect.Parameter.empty else True


# -- Environment ---------------------------------------------------------------------------------------------------------


def describe_environment(env: VecEnv | None, n_envs: int) -> dict[str, Any]:
    """
    :param env: The training environment
    :param n_envs: Number of its slots
    :return: ``id`` and ``kwargs`` of what ``gym.make`` made (None where it was made otherwise or can't be written down),
        ``n_envs``, ``episodes_per_trial`` (None without trials; missing where there is no environment), and perhaps
        ``wrappers``: names of what was around it and would be missing if it were made again
    """
    data: dict[str, Any] = {"id": None, "kwargs": None, "n_envs": n_envs}
    if env is not None:
        data["episodes_per_trial"] = env.get_attr("episodes_per_trial", indices=0)[0] if plays_trials(env) else None
    specs = env.get_attr("spec") if env is not None and env.has_attr("spec") else []
    if not specs or specs[0] is None or any(spec is None or spec.id != specs[0].id for spec in specs):
        return data
    data["id"] = specs[0].id
    altered = {name for spec in specs for name in _alterations(spec)}
    while isinstance(env, VecEnvWrapper):
        if not isinstance(env, CHANGES_NOTHING):
            altered.add(type(env).__name__)
        env = env.venv
    if altered:
        data["wrappers"] = sorted(altered)
    # make_trial_env is told the id by the registry
    told = ("env_id", "render_mode")
    kwargs = [None if spec is None else {key: spec.kwargs[key] for key in spec.kwargs if key not in told} for spec in specs]
    try:
        encoded = [encode_value(slot, "env_kwargs") for slot in kwargs]
    except NotDescribableError:
        return data
    if all(slot == encoded[0] for slot in encoded):
        data["kwargs"] = encoded[0]
    return data


def wrappers_that_play(data: dict[str, Any]) -> list[str]:
    """
    :param data: What :func:`describe_environment` returned
    :return: Names of the wrappers without which the agent would be judged in another environment than that of its training.
        ``VecNormalize`` is none: where it changes what the agent sees, the file says so elsewhere, and else it scales rewards
    """
    return [name for name in data.get("wrappers", []) if name != "VecNormalize"]


def _alterations(spec: EnvSpec | None) -> list[str]:
    if spec is None:
        return []
    registered = gym.registry.get(spec.id)
    own_limit = None if registered is None else registered.max_episode_steps  # what gym.make puts around it anyway
    limit = [] if spec.max_episode_steps in (None, own_limit) else ["TimeLimit"]
    return limit + [wrapper.name for wrapper in spec.additional_wrappers if wrapper.name not in RECORDERS]


def environment_keywords(data: dict[str, Any]) -> dict[str, Any]:
    """
    :param data: What :func:`describe_environment` returned
    :return: Keywords of the environment; none if the file has none
    :raises MalformedFileError: if they are none: they are written into scripts and files
    """
    kwargs = decode_value(data["kwargs"] or {})
    if not isinstance(kwargs, dict) or not all(map(str.isidentifier, kwargs)) or set(kwargs) & MAKES_OTHERWISE:
        raise MalformedFileError(f"kwargs of the environment must be keywords of it, got {str(data['kwargs'])[:200]}.")
    return kwargs


def environment_kwargs(data: dict[str, Any], n_envs: int = 1) -> dict[str, Any]:
    """
    :param data: What :func:`describe_environment` returned
    :param n_envs: Slots that are to be made with them
    :return: Keywords of the environment; none if the file has none
    :raises MalformedFileError: if they ask for an environment that takes much memory
    """
    kwargs = environment_keywords(data)
    steps = [_size(kwargs[name], name, MAX_STEPS) for name in ("horizon", "episodes_per_trial") if name in kwargs]
    _size(math.prod([n_envs, *steps]), "number of steps in the trials of all slots", MAX_STEPS)
    if "n_arms" in kwargs:
        _size(kwargs["n_arms"], "n_arms", MAX_ARMS)
    return kwargs


def has_tasks(config: dict[str, Any]) -> bool:
    """
    :param config: ``config.json`` of a model
    :return: Whether it was trained in trials. Where nobody has told (SB3's zips, older files), a family of this package and
        observations that are tokens tell
    """
    if "episodes_per_trial" in config["environment"]:
        return config["environment"]["episodes_per_trial"] is not None
    space = config["observation_space"]
    is_token = space["type"] == "TokenSpace" or "prev_done" in space.get("spaces", {})
    return is_token or config["environment"]["id"] in TASK_FAMILIES


def make_environment(data: dict[str, Any], observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> VecEnv:
    """
    Make the training environment again. Only the package's own ids: others would import what a file names.

    :param data: What :func:`describe_environment` returned
    :param observation_space: Observation space that it must have
    :param action_space: Action space that it must have
    :return: The environment
    :raises PretrainedError: if the file does not say how, asks for too much or for another space
    """
    env_id, kwargs, n_envs = data.get("id"), data.get("kwargs"), data.get("n_envs")
    if env_id not in TASK_FAMILIES or not isinstance(kwargs, dict):
        raise PretrainedError(
            f"The training environment ({env_id!r}) is none that can be made from config.json (an id of this package, with "
            "arguments that are data): pass env to from_pretrained, or call set_env first."
        )
    if data.get("wrappers"):
        raise PretrainedError(
            f"{env_id} was trained in {str(data['wrappers'])[:200]}, which config.json does not tell how to make again: pass "
            "env to from_pretrained, or call set_env first."
        )
    n_envs = _size(n_envs, "n_envs", MAX_ENVS)
    kwargs = environment_kwargs(data, n_envs)
    try:
        # One first: nothing large is made for an environment that does not fit
        check_for_correct_spaces(gym.make(env_id, **kwargs), observation_space, action_space)
        return make_meta_vec_env(env_id, n_envs, env_kwargs=kwargs)
    except (TypeError, ValueError) as error:
        raise MalformedFileError(f"{env_id} can't be made from config.json: {error}") from error

"""Saving a model to a folder of data, and loading one from a folder or the Hub, whoever wrote it."""

import os
import platform
import re
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors.numpy
import safetensors.torch
import torch as th
from gymnasium import spaces
from stable_baselines3.common.base_class import maybe_make_env
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.utils import FloatSchedule, check_for_correct_spaces, get_device
from torch.distributions import Distribution
from torch.nn.modules import module as module_hooks

from sb3_trmrl.common.arguments import is_integer
from sb3_trmrl.common.on_policy_algorithm import MemoryPPO
from sb3_trmrl.common.versions import versions
from sb3_trmrl.hub import training_state as state_io
from sb3_trmrl.hub.description import (
    MAX_ENVS,
    MAX_STEPS,
    decode_space,
    describe_environment,
    describe_hyperparameters,
    encode_space,
    environment_keywords,
    read_hyperparameters,
)
from sb3_trmrl.hub.errors import (
    DownloadError,
    MalformedFileError,
    MissingFileError,
    NotDescribableError,
    PretrainedError,
    UnsupportedVersionError,
    WrongTensorsError,
)
from sb3_trmrl.hub.files import (
    MAX_CONFIG_BYTES,
    MAX_STATE_BYTES,
    TensorInfo,
    existing_folder,
    file_in,
    read_json,
    read_tensor_infos,
    replace_folder,
    sha256_of,
    to_json,
)
from sb3_trmrl.hub.registry import ALGORITHMS, look_up, name_of

FORMAT, FORMAT_VERSION = "sb3_trmrl", 1
CONFIG, WEIGHTS = "config.json", "model.safetensors"
OPTIMIZER, STATE, STATE_ARRAYS = "optimizer.safetensors", "training.json", "training.safetensors"
TRAINING_FILES = (OPTIMIZER, STATE, STATE_ARRAYS)
MODEL_FILES = frozenset({CONFIG, WEIGHTS, *TRAINING_FILES})
"""Names of the files of a model."""
MAX_BUFFER_BYTES = 1 << 33
"""Rollout buffer of a model that is loaded. Memory that is not written to takes no space."""
MAX_CONTEXT_BYTES = 1 << 31
"""The part of it that holds what was remembered before the rollout."""
MAX_TABLE_BYTES = 1 << 29
"""Tables that a model computes when it is made."""
MAX_STATE_PER_ENV = 1 << 28
"""Bytes of an empty memory."""
DTYPES = {"F64": th.float64, "F32": th.float32, "F16": th.float16, "BF16": th.bfloat16, "I64": th.int64, "BOOL": th.bool}


# -- Saving --------------------------------------------------------------------------------------------------------------


def save_pretrained(model: MemoryPPO, folder: str | Path, training_state: bool = True) -> Path:
    """
    Save a model as data, see :meth:`~sb3_trmrl.common.save_util.PretrainedMixin.save_pretrained`.

    :param model: The model
    :param folder: Where to
    :param training_state: Whether training is to resume from it exactly
    :return: The folder
    :raises PretrainedError: for what can't be written as data, and if the folder holds other files
    """
    config = describe(model)
    # A model of weights alone that has not been trained since has nothing to resume from
    state = state_io.collect(model) if training_state and model.pending_training_state != {} else None

    def write(target: Path) -> None:
        # The library's own save_file makes files that nobody else may read
        weights = {name: tensor.detach().cpu().clone() for name, tensor in model.policy.state_dict().items()}
        (target / WEIGHTS).write_bytes(safetensors.torch.save(weights, metadata={"format": "pt"}))
        if state is not None:
            tensors, numbers = state_io.collect_optimizers(model)
            copies = {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}
            (target / OPTIMIZER).write_bytes(safetensors.torch.save(copies, metadata={"format": "pt"}))
            arrays: dict[str, Any] = {}
            data = state_io.split_arrays({**state, "optimizers": numbers}, arrays)
            (target / STATE_ARRAYS).write_bytes(safetensors.numpy.save(arrays))
            (target / STATE).write_bytes(to_json(data))
        config["files"] = {path.name: {"sha256": sha256_of(path)} for path in sorted(target.iterdir())}
        (target / CONFIG).write_bytes(to_json(config))
        _check_that_it_loads(model, target)

    replace_folder(Path(folder), write, MODEL_FILES)
    return Path(folder)


def _check_that_it_loads(model: MemoryPPO, folder: Path) -> None:
    """
    :param model: A model
    :param folder: Where it was written to
    :raises NotDescribableError: if what is written there would be refused when it is loaded: now there still is a model
    """
    try:
        config = read_config(folder)
        read_hyperparameters(type(model), config["hyperparameters"])
        for part in ("observation_space", "action_space"):
            found, expected = decode_space(config[part]), getattr(model, part)
            if found != expected:
                raise MalformedFileError(f"{part} {expected} of {expected.dtype} comes back as {found} of {found.dtype}.")
        if STATE in config["files"]:
            read_json(folder, STATE, MAX_STATE_BYTES)
    except PretrainedError as error:
        raise NotDescribableError(f"This model can't be saved as data, it would not load: {error}") from error


def _sees_normalized(model: MemoryPPO) -> bool:
    vec_normalize = model.get_vec_normalize_env()
    return vec_normalize is not None and vec_normalize.norm_obs


def check_acts_alone(normalized: bool, name: str | Path) -> None:
    """
    :param normalized: Whether a model was trained behind ``VecNormalize(norm_obs=True)``
    :param name: Of the model, for the error
    :raises PretrainedError: if so: without these statistics, which are part of the state of its training, it acts on other
        observations than it has learned from
    """
    if normalized:
        raise PretrainedError(
            f"{name} was trained behind VecNormalize(norm_obs=True), whose statistics others would lack: train it with "
            "norm_obs=False, the policy normalises."
        )


def describe(model: MemoryPPO) -> dict[str, Any]:
    """
    :param model: A model
    :return: ``config.json``, but for the hashes of the files
    :raises NotDescribableError: for what can't be written as data
    """
    environment = describe_environment(model.env, model.n_envs)
    if model.env is None and model.saved_environment is not None:
        environment = model.saved_environment
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "algorithm": name_of(ALGORITHMS, type(model), "class of the model", " Register it: sb3_trmrl.hub.register_algorithm."),
        "policy": name_of(model.policy_aliases, model.policy_class, "policy", " Name it in policy_aliases of the algorithm."),
        "observation_space": encode_space(model.observation_space),
        "action_space": encode_space(model.action_space),
        "hyperparameters": describe_hyperparameters(model),
        "environment": environment,
        "normalization": {
            "policy": model.policy.normalize_observations,
            "vec_normalize_observations": model.saved_normalized if model.env is None else _sees_normalized(model),
        },
        "training": {
            "num_timesteps": model.num_timesteps,
            "total_timesteps": model._total_timesteps,
            "n_iterations": model.n_iterations,
            "n_updates": model._n_updates,
            "command": model.train_command,
        },
        "versions": {**versions(), "python": platform.python_version()},
    }


# -- Loading -------------------------------------------------------------------------------------------------------------


def load(
    folder_or_repo_id: str | Path,
    revision: str | None = None,
    env: GymEnv | str | None = None,
    device: th.device | str = "auto",
    algorithm: type[MemoryPPO] = MemoryPPO,
    **hub_kwargs: Any,
) -> MemoryPPO:
    """
    Load a model of any algorithm from a folder or from the Hugging Face Hub. Nothing in the files is run, whoever wrote them:
    they are JSON and safetensors, classes come from a fixed list, and everything is checked before it is built.

    :param folder_or_repo_id: Folder, or ``"owner/name"`` of a model on the Hub
    :param revision: Branch, tag or commit on the Hub
    :param env: Environment to go on training in; if None, ``learn`` makes the one that is described in the file
    :param device: Device (cpu, cuda, ...) on which the code should be run
    :param algorithm: The class that the model must have, or a base of it
    :param hub_kwargs: For the download: ``token``, ``cache_dir``, ``local_files_only``, ``endpoint``, ... (see
        ``huggingface_hub.snapshot_download``)
    :return: The model
    :raises PretrainedError: if the files are not those of such a model, see :mod:`sb3_trmrl.hub.errors`
    """
    folder = find_folder(folder_or_repo_id, revision, **hub_kwargs)
    config = read_config(folder)
    with _malformed(folder / CONFIG):
        cls = look_up(
            ALGORITHMS, config["algorithm"], "algorithm", " Yours needs sb3_trmrl.hub.register_algorithm(cls) first."
        )
        if not issubclass(cls, algorithm):
            raise PretrainedError(
                f"{folder} holds a {cls.__name__}: load it with {cls.__name__}.from_pretrained or sb3_trmrl.load, not with "
                f"{algorithm.__name__}."
            )
        observation_space, action_space = (decode_space(config[f"{part}_space"]) for part in ("observation", "action"))
    # What is wrong with these is not the file's fault
    device = get_device(device)
    try:
        th.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"device {str(device)!r} can't be used here: {error}") from error
    vec_env = None if env is None else cls._wrap_env(maybe_make_env(env, 0), 0)
    if vec_env is not None:
        try:
            check_for_correct_spaces(vec_env, observation_space, action_space)
        except ValueError as error:
            raise PretrainedError(f"env does not fit the model in {folder}: {error}") from error
    with _malformed(folder / CONFIG):
        n_envs = config["environment"]["n_envs"] if vec_env is None else vec_env.num_envs
        # How many environments there are is the caller's business, if it is the caller who gives them
        model = _build(cls, config, folder, observation_space, action_space, n_envs, device, n_trusted=vec_env is not None)
    if vec_env is not None:
        model.set_env(vec_env)
    if model.saved_normalized and not _sees_normalized(model):
        warnings.warn(
            f"The model in {folder} was trained behind VecNormalize(norm_obs=True) and does not act well without: pass an env "
            "behind VecNormalize, which gets the statistics if they were saved (training_state=True).",
            stacklevel=2,
        )
    weights = safetensors.torch.load_file(file_in(folder, WEIGHTS))
    broken = [name for name, tensor in weights.items() if tensor.is_floating_point() and tensor.isnan().any()]
    if broken:
        raise WrongTensorsError(f"{WEIGHTS} holds NaN in {broken[0]}: nothing that learns has such weights.")
    model.policy.load_state_dict(weights)
    if model.use_sde:  # the noise of these weights, not of those that the policy was made with
        with th.random.fork_rng(devices=[]):
            model.policy.reset_noise()
    model.pending_training_state = {}
    if set(TRAINING_FILES) <= set(config["files"]):
        _load_training_state(model, folder)
    elif model.saved_normalized and _sees_normalized(model):
        warnings.warn(
            f"{folder} was saved without the state of its training, and so without the statistics of VecNormalize: env has to "
            "have them already (VecNormalize.load).",
            stacklevel=2,
        )
    return model


def read_config(folder: Path) -> dict[str, Any]:
    """
    :param folder: Folder of a model
    :return: Its ``config.json``
    :raises PretrainedError: if it is none, of a later version, or if the other files are not those that it was written with
    """
    config = read_json(folder, CONFIG, MAX_CONFIG_BYTES)
    if config.get("format") != FORMAT:
        raise MalformedFileError(f"{folder / CONFIG} is not of this package: format must be {FORMAT!r}.")
    version = config.get("format_version")
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise MalformedFileError(f"format_version must be a number from 1 to {FORMAT_VERSION}, got {str(version)[:50]!r}.")
    if version > FORMAT_VERSION:
        raise UnsupportedVersionError(
            f"{folder} was written in format {version}, this version of sb3_trmrl reads up to {FORMAT_VERSION}: "
            "pip install --upgrade sb3_trmrl."
        )
    _check_sections(config, folder / CONFIG)
    environment_keywords(config["environment"])
    files = config["files"]
    if WEIGHTS not in files:
        raise MalformedFileError(f"files of {folder / CONFIG} must name {WEIGHTS}.")
    for name, entry in files.items():
        look_up(dict.fromkeys(MODEL_FILES - {CONFIG}), name, "name of a file")
        path = file_in(folder, name)
        expected = entry.get("sha256") if isinstance(entry, dict) else None
        if expected != sha256_of(path):
            # What is wrong with the file itself says more
            if name.endswith(".safetensors"):
                read_tensor_infos(folder, name)
            else:
                read_json(folder, name, MAX_STATE_BYTES)
            raise MalformedFileError(f"{folder / name} is not the file that config.json was written with (other SHA-256).")
    return config


def resumes_with(folder: Path, config: dict[str, Any]) -> str | None:
    """
    :param folder: Folder of a model
    :param config: Its ``config.json``
    :return: Where training goes on from: ``"running trials"``, bit for bit; ``"fresh trials"`` with optimizer, counters and
        random generators, where the state of the environments could not be saved; None for weights alone
    """
    if STATE not in config["files"]:
        return None
    return "fresh trials" if read_json(folder, STATE, MAX_STATE_BYTES).get("rollout") is None else "running trials"


def _check_sections(config: dict[str, Any], path: Path) -> None:
    text, section = (str, type(None)), (dict, type(None))
    expected: dict[str, dict[str, Any]] = {
        "environment": {"id": text, "kwargs": section, "n_envs": int},
        "training": {"num_timesteps": int, "total_timesteps": int, "n_iterations": int, "n_updates": int, "command": text},
        "hyperparameters": {},
        "normalization": {},
        "versions": {},
        "files": {},
    }
    for name in ("algorithm", "policy"):
        if not isinstance(config.get(name), str):
            raise MalformedFileError(f"{name} in {path} must be a name, got {str(config.get(name))[:100]}.")
    for name, keys in expected.items():
        values = config.get(name)
        if not isinstance(values, dict) or any(
            key not in values or not isinstance(values[key], kind) or isinstance(values[key], bool)
            for key, kind in keys.items()
        ):
            raise MalformedFileError(f"{name} in {path} must be an object with {sorted(keys)}, got {str(values)[:100]}.")
    wrappers = config["environment"].get("wrappers", [])
    if not isinstance(wrappers, list) or not all(isinstance(name, str) and name.isidentifier() for name in wrappers):
        raise MalformedFileError(f"wrappers in {path} must be a list of names, got {str(wrappers)[:100]}.")
    episodes = config["environment"].get("episodes_per_trial")
    if episodes is not None and not (is_integer(episodes, 1) and episodes <= MAX_STEPS):
        raise MalformedFileError(
            f"episodes_per_trial in {path} must be in [1, {MAX_STEPS}] or null, got {str(episodes)[:50]}."
        )
    for name, value in config["training"].items():
        if isinstance(value, int) and not 0 <= value < 2**53:
            raise MalformedFileError(f"{name} in {path} must be in [0, 2^53), got {str(value)[:50]}.")


def find_folder(folder_or_repo_id: str | Path, revision: str | None = None, **hub_kwargs: Any) -> Path:
    """
    :param folder_or_repo_id: Folder, or ``"owner/name"`` of a model on the Hub, which is downloaded into its cache
    :param revision: Branch, tag or commit on the Hub
    :param hub_kwargs: For the download
    :return: The folder
    :raises MissingFileError: if it is neither
    """
    if folder_or_repo_id is None:  # what latest_checkpoint returns
        raise MissingFileError("There is no folder to load from (None): is there no checkpoint yet?")
    folder = existing_folder(Path(os.path.abspath(folder_or_repo_id)))
    if folder.is_dir():
        if revision is not None or hub_kwargs:
            given = sorted(hub_kwargs) + (["revision"] if revision is not None else [])
            raise PretrainedError(f"{folder_or_repo_id} is a folder, {given} are for models on the Hub: leave them out.")
        return folder
    if isinstance(folder_or_repo_id, Path) or not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", folder_or_repo_id):
        raise MissingFileError(
            f"There is no folder {folder_or_repo_id}, and it is no name of a model on the Hub either ('owner/name')."
        )
    # Only now: not everybody loads from the Hub
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(
            snapshot_download(folder_or_repo_id, revision=revision, allow_patterns=sorted(MODEL_FILES), **hub_kwargs)
        )
    except LocalEntryNotFoundError as error:  # without a network, which may be no reason to look for
        raise LocalEntryNotFoundError(
            f"There is no folder {folder_or_repo_id} here, and the Hub can't be asked: {error}"
        ) from error
    except (OSError, ValueError, TypeError):  # the client's own errors tell what to do
        raise
    except Exception as error:  # those of its HTTP library, whichever that is
        raise DownloadError(f"The download of {folder_or_repo_id} broke off, try again: {error}") from error
    if not (folder / CONFIG).exists():
        raise MissingFileError(
            f"{folder_or_repo_id} on the Hub holds no {CONFIG}: it is no model that save_pretrained or push_to_hub of this "
            "package wrote. (SB3's zip files are for huggingface_sb3.load_from_hub.)"
        )
    return folder


@contextmanager
def _malformed(path: Path) -> Iterator[None]:
    """Whatever Python says to values that don't fit, it is the file's fault."""
    try:
        yield
    except PretrainedError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, OverflowError, RuntimeError, AssertionError) as error:
        raise MalformedFileError(f"{path} does not describe a model: {type(error).__name__}: {error}") from error


def _build(
    cls: type[MemoryPPO],
    config: dict[str, Any],
    folder: Path,
    observation_space: spaces.Space[Any],
    action_space: spaces.Space[Any],
    n_envs: Any,
    device: th.device,
    n_trusted: bool,
) -> MemoryPPO:
    """:return: The model without weights: whatever is too large, or does not fit the weights, is found before it is made."""
    policy_class = look_up(cls.policy_aliases, config["policy"], f"policy of {cls.__name__}")
    hyperparameters = read_hyperparameters(cls, config["hyperparameters"])
    infos = read_tensor_infos(folder, WEIGHTS)
    if isinstance(n_envs, bool) or not isinstance(n_envs, int) or not 1 <= n_envs <= MAX_ENVS:
        raise MalformedFileError(f"n_envs must be an integer in [1, {MAX_ENVS}], got {str(n_envs)[:50]}.")

    # Loading leaves the random numbers of the process alone
    with th.random.fork_rng(devices=[]):
        model = cls(policy_class, None, device=device, _init_setup_model=False, **hyperparameters)  # type: ignore[arg-type]
        model.observation_space, model.action_space, model.n_envs = observation_space, action_space, n_envs
        if hyperparameters.get("n_steps") is None:
            model.n_steps = None  # type: ignore[assignment]
        model._resolve_n_steps()
        _check_before_building(model, infos, 1 if n_trusted else n_envs)
        seed, model.seed = model.seed, None
        model._setup_model()
        model.seed = seed
    model.saved_environment = config["environment"]
    training = config["training"]
    model.num_timesteps, model._total_timesteps = training["num_timesteps"], training["total_timesteps"]
    # The decay of the paper's learning rates counts iterations
    model.n_iterations, model._n_updates = training["n_iterations"], training["n_updates"]
    model.saved_normalized = bool(config["normalization"].get("vec_normalize_observations", False))
    model.train_command = training["command"]
    return model


def _check_before_building(model: MemoryPPO, infos: Mapping[str, TensorInfo], n_envs: int) -> None:
    """
    Build the policy without memory for its tensors, compare these with the file's, and see how large the rest would be.

    :param model: The model, its attributes set
    :param infos: The tensors of ``model.safetensors``
    :param n_envs: For how many environments memory may be asked
    :raises PretrainedError: if something is wrong
    """
    for name, info in infos.items():
        if info.dtype not in DTYPES:
            raise WrongTensorsError(f"{WEIGHTS}: {name[:100]!r} has the type {info.dtype}, no model has.")
    model._setup_lr_schedule()
    with _building_at_most(len(infos)), th.device("meta"):
        policy = model.policy_class(
            model.observation_space, model.action_space, FloatSchedule(0.0), use_sde=model.use_sde, **model.policy_kwargs
        )
        empty_memory = sum(part.numel() * part.element_size() for part in policy.initial_state(1))  # type: ignore[operator]
    expected = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in policy.state_dict().items()}
    found = {name: (DTYPES[info.dtype], info.shape) for name, info in infos.items()}
    if expected != found:
        differing = sorted(name for name in {*expected, *found} if expected.get(name) != found.get(name))
        name = differing[0]
        raise WrongTensorsError(
            f"{WEIGHTS} does not hold the weights of the model in {CONFIG}: {len(differing)} tensor(s) differ, first "
            f"{name[:100]!r}: the model has {expected.get(name)}, the file {found.get(name)}."
        )
    # Tables that are not saved, such as those of positions
    unsaved = sum(buffer.numel() for buffer in policy.buffers()) * 8
    steps, context = model.n_steps, int(policy.context_length)  # type: ignore[arg-type]
    if isinstance(steps, bool) or steps < 1:
        raise MalformedFileError(f"n_steps must be at least 1, got {steps}.")
    parts = getattr(model.observation_space, "spaces", {"token": model.observation_space})
    # A minibatch's numbers beside the token: actions, rewards, values, ...
    per_step = sum(th.Size(part.shape).numel() * part.dtype.itemsize for part in parts.values()) + 8 * 8
    context_bytes = context * n_envs * per_step
    for what, size, limit in (
        ("the rollout buffer (n_steps, n_envs)", steps * n_envs * per_step + context_bytes, MAX_BUFFER_BYTES),
        ("what is remembered before a rollout (memory_length)", context_bytes, MAX_CONTEXT_BYTES),
        ("an empty memory (memory_encoder_kwargs)", empty_memory, MAX_STATE_PER_ENV),
        ("tables that are not saved (memory_encoder_kwargs)", unsaved, MAX_TABLE_BYTES),
    ):
        if size > limit:
            raise MalformedFileError(
                f"{CONFIG} asks for {size:.3g} bytes for {what} of {n_envs} environment(s), more than {limit:.3g}. If it is "
                "yours, and the number of environments makes it so large: pass env to from_pretrained."
            )


@contextmanager
def _building_at_most(n_tensors: int) -> Iterator[None]:
    """
    A model of more parts than the file has tensors is not built to its end: ``n_layers=10**6`` would take all memory even
    without tensors.

    :param n_tensors: Number of tensors in the file
    """
    thread, left = threading.get_ident(), n_tensors + 100

    def count(*_: Any) -> None:
        nonlocal left
        left -= threading.get_ident() == thread
        if left < 0:
            raise WrongTensorsError(f"{CONFIG} describes a model of more tensors than the {n_tensors} in {WEIGHTS}.")

    # gSDE draws a matrix when it is built, and torch looks whether its deviations are positive, which only real ones are
    validate = Distribution._validate_args
    Distribution.set_default_validate_args(False)
    handles = [
        module_hooks.register_module_parameter_registration_hook(count),
        module_hooks.register_module_buffer_registration_hook(count),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        Distribution.set_default_validate_args(validate)


def _load_training_state(model: MemoryPPO, folder: Path) -> None:
    infos = read_tensor_infos(folder, OPTIMIZER)
    n_weights = sum(th.Size(info.shape).numel() for info in read_tensor_infos(folder, WEIGHTS).values())
    # Adam keeps two numbers for each weight, with two optimizers of the shared ones four
    if sum(th.Size(info.shape).numel() for info in infos.values()) > 8 * n_weights + 1000:
        raise WrongTensorsError(f"{OPTIMIZER} is much larger than {WEIGHTS}: it is not of this model.")
    read_tensor_infos(folder, STATE_ARRAYS)
    data = read_json(folder, STATE, MAX_STATE_BYTES)
    size, limit = file_in(folder, STATE_ARRAYS).stat().st_size, MAX_CONTEXT_BYTES + MAX_BUFFER_BYTES // 64
    if size > limit:
        raise MalformedFileError(f"{folder / STATE_ARRAYS} has {size} bytes, more than {limit}.")
    with _malformed(folder / STATE):
        state = state_io.join_arrays(data, safetensors.numpy.load_file(file_in(folder, STATE_ARRAYS)))
        state_io.restore_progress(model, state)
        state_io.restore_optimizers(model, safetensors.torch.load_file(file_in(folder, OPTIMIZER)), state.pop("optimizers"))
        if model.saved_normalized and _sees_normalized(model):
            # It acts as it did, also before training goes on
            try:
                state_io.restore_vec_normalize(model.get_vec_normalize_env(), state["vec_normalize"])
            except ValueError as error:
                raise PretrainedError(f"env does not fit the statistics of the model in {folder}: {error}.") from error
    model.pending_training_state = state

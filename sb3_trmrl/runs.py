"""Trained models wherever they lie: RL Zoo's log folders, SB3's zip files, pretrained folders, the Hugging Face Hub."""

import pickle
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium as gym
import yaml
from sb3_contrib import ARS, QRDQN, TQC, TRPO, CrossQ, RecurrentPPO
from stable_baselines3 import A2C, DDPG, DQN, PPO, SAC, TD3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.vec_env import VecNormalize

from sb3_trmrl.common.arguments import did_you_mean
from sb3_trmrl.common.evaluation import PredictsActions, SeesNormalized
from sb3_trmrl.common.logs import LearningCurve, read_learning_curves
from sb3_trmrl.envs.registration import evaluation_kwargs
from sb3_trmrl.rl2_ppo import RL2PPO
from sb3_trmrl.trmrl_ppo import TrMRLPPO

ALGORITHMS: dict[str, type[BaseAlgorithm]] = {
    "trmrl": TrMRLPPO, "rl2": RL2PPO,
    "ppo": PPO, "a2c": A2C, "ddpg": DDPG, "dqn": DQN, "sac": SAC, "td3": TD3,
    "ppo_lstm": RecurrentPPO, "ars": ARS, "crossq": CrossQ, "qrdqn": QRDQN, "tqc": TQC, "trpo": TRPO,
}  # fmt: skip
"""By the name that ``--algo`` takes, here and in RL Zoo: ours, SB3's, sb3-contrib's."""

STATISTICS = ("vecnormalize.pkl", "vec_normalize.pkl")
"""Statistics of ``VecNormalize`` in RL Zoo's log folders, and as it pushes them."""


class _ZooLoader(yaml.SafeLoader):
    """Reads the zoo's files, which name ``OrderedDict`` by a Python tag, and executes nothing."""


# Classes in policy_kwargs; nothing here needs more of them than that they are there
_ZooLoader.add_multi_constructor("tag:yaml.org,2002:python/name:", lambda loader, suffix, node: suffix)
_ZooLoader.add_constructor(
    "tag:yaml.org,2002:python/object/apply:collections.OrderedDict",
    lambda loader, node: dict(loader.construct_sequence(node, deep=True)[0]),  # type: ignore[arg-type]
)


_ZooLoader.add_constructor(
    "tag:yaml.org,2002:python/tuple",
    lambda loader, node: tuple(loader.construct_sequence(node, deep=True)),  # type: ignore[arg-type]
)


@dataclass(frozen=True)
class Run:
    """
    A trained model and what is known about its training.

    :param name: Short name
    :param model: The model
    :param env_id: Registered id that it is to play; None if unknown
    :param env_kwargs: Keywords of the training environment
    :param folder: Folder with the logs of its training; None if there is none
    :param trained_on: Registered id that it was trained on; None if unknown
    :param vec_normalize: Statistics of observations that it was trained behind; None if it sees them as they come
    """

    name: str
    model: BaseAlgorithm
    env_id: str | None
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    folder: Path | None = None
    trained_on: str | None = None
    vec_normalize: VecNormalize | None = None

    @property
    def player(self) -> PredictsActions:
        """The model, for environments that are not behind ``VecNormalize``."""
        return self.model if self.vec_normalize is None else SeesNormalized(self.model, self.vec_normalize)

    @property
    def playing_kwargs(self) -> dict[str, Any]:
        """Keywords to evaluate it with, without trial length and split; none if it was trained on another environment."""
        if self.trained_on is not None and not _same_id(self.trained_on, self.env_id):
            return {}
        return evaluation_kwargs(self.env_kwargs)

    @property
    def episodes_per_trial(self) -> int | None:
        """Episodes of a trial in training, if known."""
        return self.env_kwargs.get("episodes_per_trial")


def load_run(source: str | Path, algo: str | None = None, env_id: str | None = None, device: str = "cpu") -> Run:
    """
    :param source: One of: RL Zoo's log folder (``logs/trmrl/HalfCheetahVel-v0_1``, or ``logs/trmrl``: its latest run); a zip
        file of ``model.save``; a folder of ``save_pretrained``; a repository of the Hugging Face Hub (``user/name``)
    :param algo: One of ``ALGORITHMS``; needed for a zip file that lies in no log folder
    :param env_id: Id of the environment, if the run does not tell
    :param device: Where the model goes
    :return: The run
    :raises ValueError: if there is no model, the file is broken, the algorithm is unknown, or the zoo put wrappers around the
        environment of training
    """
    if algo is not None and algo not in ALGORITHMS:
        raise ValueError(f"algo must be one of {list(ALGORITHMS)}, got {algo!r}.{did_you_mean(algo, ALGORITHMS)}")
    from sb3_trmrl.hub.files import existing_folder

    path = existing_folder(Path(source))
    if path.is_dir() and not (path / "config.json").exists():
        return _from_log_folder(path, algo, env_id, device)
    if path.is_file() and path.name in ("config.json", "model.safetensors"):
        raise ValueError(f"{path} is part of a saved model: give its folder, {path.parent}.")
    if path.is_file():
        folder = path.parent if any(path.parent.glob("*monitor.csv")) else None
        return _from_zip(path, path.stem, _facts(path.parent, path.stem), algo, env_id, device, folder)
    if path.is_dir() or (str(source).count("/") == 1 and not str(source).startswith((".", "/"))):
        return _from_pretrained(str(source), env_id, device)
    raise ValueError(
        f"there is no model at {str(source)!r}: give RL Zoo's log folder, a zip file, a folder of save_pretrained, or the "
        "name user/repository of a model on the Hugging Face Hub."
    )


def learning_curves(source: str | Path) -> dict[str, LearningCurve]:
    """
    :param source: A log folder of SB3 or RL Zoo, or a folder of the zoo's runs of one algorithm: its latest run
    :return: Its curves, see :func:`~sb3_trmrl.common.logs.read_learning_curves`; per episode where the zoo's files tell how
        many a trial has
    :raises ValueError: if it is no folder, or one without logs
    """
    folder = Path(source)
    if not folder.is_dir():
        raise ValueError(f"{str(source)!r} is no folder: give that of a run, for example logs/trmrl/HalfCheetahVel-v0_1.")
    folder = _latest_run(folder)
    try:
        facts = _facts(folder)
    except ValueError:  # nobody can tell how long the trials were
        facts = folder
    in_training = _read_env_kwargs(facts)
    in_evaluation = _read(facts, "args.yml").get("eval_env_kwargs") or {}
    return read_learning_curves(folder, in_training.get("episodes_per_trial"), in_evaluation.get("episodes_per_trial"))


def _from_pretrained(source: str, env_id: str | None, device: str) -> Run:
    # Not at the top: nobody needs the Hub for a zip file
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    from sb3_trmrl.hub import load
    from sb3_trmrl.hub.description import environment_kwargs, wrappers_that_play
    from sb3_trmrl.hub.pretrained import check_acts_alone

    try:
        model = load(source, device=device)
    except LocalEntryNotFoundError as error:  # says already that there is no such folder either
        raise ValueError(" ".join(str(error).split())) from error
    except (HfHubHTTPError, HFValidationError) as error:
        reason = " ".join(str(error).split())  # the Hub's texts have several lines
        raise ValueError(f"there is no folder {source!r}, and the Hub does not give a model of that name: {reason}") from error
    check_acts_alone(model.saved_normalized, source)
    environment = model.saved_environment or {}
    trained_on = environment.get("id")
    # Only what is registered here: gym.make imports what stands before a colon, and the file may be anybody's
    known = trained_on if trained_on in gym.registry else None
    is_played = known is not None if env_id is None else trained_on is not None and _same_id(trained_on, env_id)
    if (is_played or env_id is None) and (wrappers := wrappers_that_play(environment)):
        raise ValueError(
            f"{source} was trained in {', '.join(wrappers)}, which are not put around the environment here: register an "
            "environment that has them, and name it with --env."
        )
    # What is played with other keywords than the file's need not fit
    kwargs = environment_kwargs(environment) if is_played else {}
    return Run(Path(source).name, model, env_id or known, kwargs, None, known)


def _from_log_folder(folder: Path, algo: str | None, env_id: str | None, device: str) -> Run:
    folder = _latest_run(folder)
    facts = _facts(folder)
    trained_on = _read(facts, "args.yml").get("env")
    # The final model first, named as the zoo does; then the best ones
    names = [f"{str(trained_on).replace('/', '-')}.zip", "best_meta_model.zip", "best_model.zip"]
    zips = [folder / name for name in names if (folder / name).is_file()]
    zips = zips or sorted(folder.glob("[!.]*.zip"), key=_last_change)[-1:]
    if not zips:
        raise ValueError(f"{folder} holds no model: no zip file, no config.json of save_pretrained, no run of RL Zoo.")
    return _from_zip(zips[0], folder.name, facts, algo, env_id, device, folder)


def _from_zip(
    path: Path, name: str, facts: Path, algo: str | None, env_id: str | None, device: str, folder: Path | None
) -> Run:
    args = _read(facts, "args.yml")
    _check_no_wrappers(facts)
    model = _load_zip(path, algo or args.get("algo"), device)
    trained_on = args.get("env")
    return Run(name, model, env_id or trained_on, _read_env_kwargs(facts), folder, trained_on, _read_statistics(facts))


def _same_id(first: str, second: str | None) -> bool:
    """:return: Whether both are one environment; ids may have the module to import before a colon."""
    return second is not None and first.rpartition(":")[2] == second.rpartition(":")[2]


def _latest_run(folder: Path) -> Path:
    """:return: The run that was written last, if ``folder`` holds runs of the zoo; else ``folder`` itself."""
    if any(folder.glob("*/args.yml")):
        return folder
    runs = sorted((child for child in folder.iterdir() if child.is_dir() and any(child.glob("*/args.yml"))), key=_last_change)
    return runs[-1] if runs else folder


def _last_change(path: Path) -> float:
    return path.stat().st_mtime


def _facts(folder: Path, model: str | None = None) -> Path:
    """
    :param folder: Where models lie.
    :param model: Name of one of them, if that is known.
    :return: Folder of what the zoo has written down of its run, ``args.yml``, ``config.yml``, ``vecnormalize.pkl``: the one of
        the model's name, else the only one there, else ``folder``, where pushed models have it. There need be nothing in it.
    :raises ValueError: If there are several.
    """
    if model is not None and (folder / model / "args.yml").is_file():
        return folder / model
    found = sorted(path.parent for path in folder.glob("*/args.yml"))
    if len(found) > 1:
        raise ValueError(
            f"{folder} holds what was written down of several runs ({', '.join(path.name for path in found)}): give a zip "
            "file that is named as one of these folders, or put the model into a folder of its own."
        )
    return found[0] if found else folder


def _read(facts: Path, name: str) -> dict[str, Any]:
    """:return: What the zoo has written down in its ``args.yml`` or ``config.yml``; nothing where it was not the zoo."""
    return _read_yaml(facts / name) if (facts / "args.yml").is_file() else {}


def _read_env_kwargs(facts: Path) -> dict[str, Any]:
    config, args = _read(facts, "config.yml"), _read(facts, "args.yml")
    return {**(config.get("env_kwargs") or {}), **(args.get("env_kwargs") or {})} if config else {}


def _check_no_wrappers(facts: Path) -> None:
    # Here nobody would put them around the environment, and the model would be judged without
    config = _read(facts, "config.yml")
    wrappers = {name: config[name] for name in ("env_wrapper", "vec_env_wrapper", "frame_stack") if config.get(name)}
    if wrappers:
        raise ValueError(
            f"{facts.parent} was trained in wrappers of RL Zoo, {wrappers}, which are not put around the environment here: "
            "play it with rl_zoo3.enjoy, or register an environment that has them and train in that one."
        )


def _read_statistics(facts: Path) -> VecNormalize | None:
    """:return: What the zoo's run was trained behind, if that changed what it saw; a pickle, as the model beside it."""
    if not (facts / "args.yml").is_file():  # it was not the zoo
        return None
    path = next((facts / name for name in STATISTICS if (facts / name).is_file()), None)
    if path is None:
        if _read(facts, "config.yml").get("normalize"):
            raise ValueError(
                f"{facts.parent} was trained behind VecNormalize, whose statistics are not in {facts}: put its "
                f"{STATISTICS[0]} there."
            )
        return None
    try:
        with path.open("rb") as file:
            statistics = pickle.load(file)
    except (pickle.UnpicklingError, EOFError, AttributeError, ImportError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is broken: {error}") from error
    if not isinstance(statistics, VecNormalize):
        raise ValueError(f"{path} holds no VecNormalize but {type(statistics).__name__}.")
    statistics.training = False
    return statistics if statistics.norm_obs else None


def _read_yaml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_ZooLoader)
    except (yaml.YAMLError, ValueError, IndexError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} can't be read: {error}") from error
    return dict(content) if isinstance(content, dict) else {}


def _load_zip(path: Path, algo: str | None, device: str) -> BaseAlgorithm:
    if algo is None:
        raise ValueError(f"which algorithm is {path} of? Give algo, one of {list(ALGORITHMS)}.")
    if algo not in ALGORITHMS:
        raise ValueError(f"{path} is of the algorithm {algo!r}; there are {list(ALGORITHMS)} here.")
    try:
        # No replay buffer for what is only played
        buffer = {"buffer_size": 1} if issubclass(ALGORITHMS[algo], OffPolicyAlgorithm) else {}
        return ALGORITHMS[algo].load(path, device=device, **buffer)  # type: ignore[arg-type]
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, AssertionError, EOFError, OSError) as error:
        raise ValueError(
            f"{path} is no model of {ALGORITHMS[algo].__name__} (--algo {algo}), or it is broken: {error}"
        ) from error
    except (zipfile.BadZipFile, pickle.UnpicklingError) as error:
        raise ValueError(f"{path} is broken: {error}") from error

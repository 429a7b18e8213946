"""Models to the Hugging Face Hub and back, in one commit each way."""

import contextlib
import re
import shutil
import tempfile
import warnings
import zipfile
from pathlib import Path
from typing import Any

import gymnasium as gym
import yaml
from huggingface_hub import HfApi
from huggingface_sb3 import EnvironmentName, ModelName
from stable_baselines3.common.base_class import BaseAlgorithm

from sb3_trmrl.common.evaluation import AdaptationResult, evaluate_adaptation, make_trials
from sb3_trmrl.common.on_policy_algorithm import MemoryPPO
from sb3_trmrl.envs.registration import TASK_FAMILIES, evaluation_kwargs
from sb3_trmrl.hub.description import decode_value, environment_kwargs, has_tasks, wrappers_that_play
from sb3_trmrl.hub.errors import PretrainedError, UploadError
from sb3_trmrl.hub.files import replace_folder
from sb3_trmrl.hub.model_card import PICTURE, VIDEO, model_card
from sb3_trmrl.hub.pretrained import (
    MODEL_FILES,
    check_acts_alone,
    find_folder,
    load,
    read_config,
    resumes_with,
    save_pretrained,
)
from sb3_trmrl.plots import plot_adaptation_curve
from sb3_trmrl.runs import ALGORITHMS

CARD = "README.md"
SB3_FILES = ("args.yml", "config.yml", "env_kwargs.yml", "train_eval_metrics.zip", "vec_normalize.pkl")
"""What stands beside SB3's zip, for RL Zoo."""
ZOO_NAMES = {algorithm.__name__: name for name, algorithm in ALGORITHMS.items()}
"""``--algo`` of RL Zoo."""


def push_to_hub(
    model: MemoryPPO,
    repo_id: str,
    adaptation: AdaptationResult | None = None,
    n_eval_tasks: int = 20,
    video: str | Path | None = None,
    train_command: str | None = None,
    training_state: bool = True,
    sb3_zip: bool = False,
    private: bool | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
    create_pr: bool = False,
    token: str | None = None,
    endpoint: str | None = None,
) -> str:
    """
    Publish a model with its model card, in one commit.

    :param model: The model
    :param repo_id: ``"owner/name"``; made if it is not there
    :param adaptation: How it adapts, for the card; evaluated on unseen tasks if None
    :param n_eval_tasks: On how many; 0 for a card without numbers
    :param video: A video of the agent (mp4) to show
    :param train_command: The command that trained it, the model's until ``learn`` is called again; by default the one that
        called ``learn``, which is published as it was typed, with its paths and whatever secrets it holds. ``""`` publishes
        none
    :param training_state: Whether training can be resumed from it (three times as large)
    :param sb3_zip: Add SB3's zip for ``huggingface_sb3.load_from_hub``, and what RL Zoo wants beside it. It is a pickle
    :param private: Whether a new repository is private; by default as the owner's settings say
    :param revision: Branch
    :param commit_message: Message of the commit
    :param create_pr: Open a pull request instead of changing the branch
    :param token: Token of the Hub; by default the one of ``hf auth login`` or ``HF_TOKEN``
    :param endpoint: Address of another Hub
    :return: Address of the commit
    :raises PretrainedError: for what can't be written as data, and if the upload breaks off
    """
    if train_command is not None:
        # Before anything is written: the files hold it, and not the card alone
        model.train_command = train_command or None
    with tempfile.TemporaryDirectory() as temporary:
        folder = save_pretrained(model, Path(temporary) / "model", training_state)
        config = read_config(folder)
        check_acts_alone(config["normalization"]["vec_normalize_observations"], "The model")
        if adaptation is None:
            adaptation = evaluate_for_card(model, config, n_eval_tasks)
        zip_name = add_sb3_files(model, config, folder) if sb3_zip else None
        if video is not None:
            shutil.copy(video, folder / VIDEO)
        if adaptation is not None:
            title = str(config["environment"]["id"])
            plot_adaptation_curve({config["algorithm"]: adaptation}, folder / PICTURE, title=title)
        card = model_card(config, repo_id, adaptation, zip_name, resumes_with(folder, config))
        (folder / CARD).write_text(card, encoding="utf-8")
        api = HfApi(endpoint=endpoint, token=token)
        try:
            repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
            commit = api.upload_folder(
                repo_id=repo_id,
                folder_path=folder,
                revision=revision,
                create_pr=create_pr,
                commit_message=commit_message or f"{config['algorithm']} after {model.num_timesteps:,} steps",
                # Files of an earlier push that this one does not have
                delete_patterns=[*sorted(MODEL_FILES), PICTURE, VIDEO, *SB3_FILES, zip_file_name(config)],
            )
        except (OSError, ValueError, TypeError):  # the client's own errors tell what to do
            raise
        except Exception as error:  # those of its HTTP library, whichever that is
            raise UploadError(f"The upload to {repo_id} broke off, try again: {error}") from error
    return commit.pr_url or commit.commit_url


def evaluate_for_card(model: MemoryPPO, config: dict[str, Any], n_tasks: int) -> AdaptationResult | None:
    """
    :param model: The model
    :param config: Its ``config.json``
    :param n_tasks: Number of unseen tasks
    :return: How it adapts, in trials as long as those of training; None in an environment without tasks, and, with a warning,
        where it can't be told or made
    """
    environment = config["environment"]
    if n_tasks == 0 or not has_tasks(config):
        return None
    reason = _why_unknown(environment)
    if reason is None:
        try:
            return _evaluate_as_trained(model, environment, n_tasks)
        except (ValueError, TypeError, gym.error.Error) as error:
            if environment["id"] in TASK_FAMILIES:
                raise
            # One's own family may have other keywords and splits than ours, which is no reason not to publish its agent
            reason = str(error)
    warnings.warn(f"The model card has no adaptation results: {reason} (n_eval_tasks=0: none are wanted.)", stacklevel=3)
    return None


def _evaluate_as_trained(model: MemoryPPO, environment: dict[str, Any], n_tasks: int) -> AdaptationResult:
    env_id, kwargs = environment["id"], environment_kwargs(environment)
    with contextlib.closing(make_trials(env_id, kwargs)) as trials:
        n_episodes = trials.episodes_per_trial
    return evaluate_adaptation(
        model,
        env_id,
        n_tasks=n_tasks,
        n_episodes=n_episodes,
        env_kwargs=evaluation_kwargs(kwargs),
    )


def _why_unknown(environment: dict[str, Any]) -> str | None:
    """:return: Why an environment can't be made from its description, None if it can."""
    env_id = environment["id"]
    if env_id is None:
        return "which environment the model was trained in is not known (load it with env)."
    if env_id not in gym.registry:
        return f"{env_id} is not registered here: import the module that does (sb3-trmrl: --gym-packages)."
    if environment["kwargs"] is None:
        return f"the arguments of {env_id} are no data."
    wrappers = wrappers_that_play(environment)
    return f"it was trained in {', '.join(wrappers)}, which are not put around the environment here." if wrappers else None


def add_sb3_files(model: MemoryPPO, config: dict[str, Any], folder: Path) -> str:
    """
    Write SB3's zip, and what ``rl_zoo3.load_from_hub`` asks for beside it.

    :param model: The model
    :param config: Its ``config.json``
    :param folder: Where to
    :return: Name of the zip
    :raises PretrainedError: if the environment has no id
    """
    if config["environment"]["id"] is None:
        raise PretrainedError("sb3_zip needs an environment that gym.make has made: its id is part of the zip's name.")
    name = zip_file_name(config)
    write_zoo_files(model, config, folder, folder / name)
    (folder / "env_kwargs.yml").write_text(
        yaml.safe_dump(decode_value(config["environment"]["kwargs"] or {})), encoding="utf-8"
    )
    with zipfile.ZipFile(folder / "train_eval_metrics.zip", "w"):
        pass
    return name


def zip_file_name(config: dict[str, Any]) -> str:
    """
    :param config: ``config.json`` of a model
    :return: Name of its zip of SB3 on the Hub
    """
    return str(ModelName(_zoo_name(config), EnvironmentName(str(config["environment"]["id"]))).filename)


def _zoo_name(config: dict[str, Any]) -> str:
    return ZOO_NAMES.get(config["algorithm"], config["algorithm"].lower())


def write_zoo_files(model: BaseAlgorithm, config: dict[str, Any], folder: Path, zip_path: Path) -> None:
    """
    :param model: The model
    :param config: Its ``config.json``
    :param folder: Where the zoo's ``args.yml`` and ``config.yml`` go
    :param zip_path: Where SB3's zip goes
    """
    environment = config["environment"]
    model.save(zip_path)
    arguments = {
        "algo": _zoo_name(config),
        "env": environment["id"],
        "env_kwargs": decode_value(environment["kwargs"] or {}),
        "n_timesteps": config["training"]["total_timesteps"],
        "seed": config["hyperparameters"].get("seed"),
    }
    (folder / "args.yml").write_text(yaml.safe_dump(arguments), encoding="utf-8")
    # What the zoo's enjoy reads of it; the model's own settings are in the zip
    settings = {"policy": config["policy"], "n_envs": environment["n_envs"], "n_timesteps": arguments["n_timesteps"]}
    (folder / "config.yml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    vec_normalize = model.get_vec_normalize_env()
    if vec_normalize is not None:
        vec_normalize.save(str(folder / "vec_normalize.pkl"))


def pull(repo_id: str, folder: str | Path, revision: str | None = None, **hub_kwargs: Any) -> Path:
    """
    Download a model, check it, and put it into a folder of its own.

    :param repo_id: ``"owner/name"``
    :param folder: Where to; replaced if there is a saved model
    :param revision: Branch, tag or commit
    :param hub_kwargs: See ``huggingface_hub.snapshot_download``
    :return: The folder
    :raises PretrainedError: if it is no model of this package
    """
    downloaded = find_folder(repo_id, revision, **hub_kwargs)
    # The whole check, so that what is on the disk loads
    load(downloaded, device="cpu")

    def write(target: Path) -> None:
        for name in sorted(MODEL_FILES):
            if (downloaded / name).exists():
                shutil.copyfile(downloaded / name, target / name)

    replace_folder(Path(folder), write, MODEL_FILES)
    return Path(folder)


def pull_for_zoo(repo_id: str, logs: str | Path, revision: str | None = None, **hub_kwargs: Any) -> Path:
    """
    Download a model into RL Zoo's log folder, for ``python -m rl_zoo3.enjoy``: what ``rl_zoo3.load_from_hub`` does, but from
    the files that can't run code (the zip is made here), and for models without normalisation statistics, too.

    :param repo_id: ``"owner/name"``, or a folder
    :param logs: The zoo's log folder
    :param revision: Branch, tag or commit
    :param hub_kwargs: See ``huggingface_hub.snapshot_download``
    :return: Folder of the new run, ``<logs>/<algo>/<env>_<number>``
    :raises PretrainedError: if it is no model of this package, or of an environment without id
    """
    downloaded = find_folder(repo_id, revision, **hub_kwargs)
    config = read_config(downloaded)
    check_acts_alone(config["normalization"].get("vec_normalize_observations", False), repo_id)
    env_id = config["environment"]["id"]
    # It becomes part of a path
    if env_id is None or not re.fullmatch(r"(?=.{1,100}$)\w[\w.-]*(:\w[\w.-]*)?(/\w[\w.-]*)?", env_id):
        raise PretrainedError(f"The environment of {repo_id} has no id that RL Zoo could use: {env_id!r}.")
    model = load(downloaded, device="cpu")
    name = EnvironmentName(env_id)
    algo_folder = Path(logs) / _zoo_name(config)
    numbers = [path.name.removeprefix(f"{name}_") for path in algo_folder.glob(f"{name}_*")]
    run = algo_folder / f"{name}_{max([int(number) for number in numbers if number.isdecimal()], default=0) + 1}"
    (run / name).mkdir(parents=True)
    write_zoo_files(model, config, run / name, run / f"{name}.zip")
    return run

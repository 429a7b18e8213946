"""Files of references: what makes them, evaluates them, and finds those of a result."""

import datetime
import hashlib
import importlib
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces

from sb3_trmrl.common.arguments import check_integers
from sb3_trmrl.common.evaluation import AdaptationResult, evaluate_adaptation, make_trials
from sb3_trmrl.common.references.exact import CLOSED_FORMS, SCRIPTS, RandomAgent
from sb3_trmrl.common.references.trained import SeesTasks, train_reference, training_settings
from sb3_trmrl.common.safe_write import alone_in, replace_file
from sb3_trmrl.common.statistics import adaptation_score, score_interval
from sb3_trmrl.common.versions import versions
from sb3_trmrl.envs.meta_env import Task
from sb3_trmrl.envs.registration import evaluation_kwargs, family_kwargs, relevant_kwargs
from sb3_trmrl.trmrl_ppo import TrMRLPPO

AGENTS = ("oracle", "reactive", "blind", "random")
SHIPPED = Path(__file__).resolve().parents[2] / "references"
"""Folder of the references that come with the package."""


def cache_dir() -> Path:
    """:return: Where trained references are kept: ``$SB3_TRMRL_CACHE``, else ``~/.cache/sb3_trmrl``."""
    return Path(os.environ.get("SB3_TRMRL_CACHE", Path.home() / ".cache" / "sb3_trmrl")).expanduser() / "references"


def file_name(env_id: str, env_kwargs: dict[str, Any] | None = None) -> str:
    """
    :param env_id: A registered id.
    :param env_kwargs: Keywords of the environment.
    :return: Name of the file of its references.
    """
    env_id = env_id.rpartition(":")[2]  # without the module to import
    kwargs = relevant_kwargs(env_id, env_kwargs)
    env_id = env_id.replace("/", "-").replace("\\", "-")  # a namespace, not a folder
    digest = hashlib.sha256(json.dumps(kwargs, sort_keys=True, default=str).encode()).hexdigest()[:8]
    return f"{env_id}-{digest}.json" if kwargs else f"{env_id}.json"


def make_references(
    env_id: str,
    agents: Sequence[str] = AGENTS,
    timesteps: int | None = None,
    seeds: Sequence[int] = (0,),
    n_tasks: int = 40,
    n_episodes: int = 6,
    eval_seed: int = 0,
    env_kwargs: dict[str, Any] | None = None,
    output: str | Path | None = None,
    command: str = "",
    progress_bar: bool = False,
    conf_file: Path | None = None,
) -> Path:
    """
    Make references of a family, evaluate them on all its splits and write their returns to a file. What is trained is kept in
    :func:`cache_dir` and not trained again, by the same versions with the same settings; agents that the file has already and
    that are not asked for stay in it.

    :param env_id: A registered id.
    :param agents: Which, of ``AGENTS``.
    :param timesteps: Steps of training; those of the yaml file if None.
    :param seeds: Seeds of training.
    :param n_tasks: Tasks of each split.
    :param n_episodes: Episodes of each task.
    :param eval_seed: Seed of tasks and episodes: evaluations with this seed meet the same ones.
    :param env_kwargs: Keywords of the environment, beside those of the yaml file.
    :param output: The file, or a folder for it; in :func:`cache_dir` if None.
    :param command: How to make them again, for the file.
    :param progress_bar: Show SB3's progress bar.
    :param conf_file: Where PPO's settings are, see :func:`training_settings`; ``hyperparams/trmrl.yml`` if None.
    :return: The file.
    :raises ValueError: For an unknown agent, no seeds, an environment without trials; if the file is broken, or has other
        agents on other tasks, which returns on these could not stand beside.
    """
    unknown = sorted(set(agents) - set(AGENTS))
    if unknown or len(agents) == 0:
        raise ValueError(f"agents must be some of {list(AGENTS)}, got {list(agents)}.")
    if len(seeds) == 0:
        raise ValueError("seeds must hold at least one seed, got none.")
    if len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise ValueError(f"seeds must differ and be at least 0, got {list(seeds)}.")
    check_integers(dict(n_tasks=n_tasks, n_episodes=n_episodes, timesteps=1 if timesteps is None else timesteps))
    module, _, env_id = env_id.rpartition(":")  # as in gym.make: a module to import before
    if module:
        importlib.import_module(module)
    # What they are trained on, they are evaluated on, and it is what an agent of the same file was trained on
    of_file = evaluation_kwargs(training_settings(env_id, conf_file).get("env_kwargs", {}))
    training_kwargs = {**of_file, **family_kwargs(env_kwargs or {})}
    env_kwargs = relevant_kwargs(env_id, training_kwargs)
    path = cache_dir() if output is None else Path(output)
    path = path if path.suffix == ".json" else path / file_name(env_id, env_kwargs)
    env = make_trials(env_id, env_kwargs)
    splits, horizon, action_space = env.meta_env.splits, env.meta_env.horizon, env.action_space
    env.close()
    drawn = {
        split: evaluate_adaptation(
            RandomAgent(action_space, 0), env_id, n_tasks, 1, split, seed=eval_seed, env_kwargs=env_kwargs
        )
        for split in splits
    }
    tasks = {split: result.tasks for split, result in drawn.items()}
    facts = dict(env_id=env_id, env_kwargs=env_kwargs, n_tasks=n_tasks, n_episodes=n_episodes, seed=eval_seed, tasks=tasks)
    _known(path, facts, agents)  # an error now, not after hours
    for agent in agents:
        start = time.perf_counter()
        if agent in CLOSED_FORMS.get(env_id, {}):
            how, reward = CLOSED_FORMS[env_id][agent]
            entry: dict[str, Any] = {"how": how}
            returns = {split: [np.tile(horizon * reward(tasks[split])[:, None], n_episodes)] for split in splits}
        else:
            entry, players = _players(agent, env_id, action_space, timesteps, seeds, training_kwargs, progress_bar, conf_file)
            returns = {
                split: [
                    evaluate_adaptation(
                        player(tasks[split]),
                        env_id,
                        n_episodes=n_episodes,
                        seed=eval_seed,
                        env_kwargs=env_kwargs,
                        tasks=tasks[split],
                    ).returns
                    for player in players
                ]
                for split in splits
            }
        entry["seconds"] = round(time.perf_counter() - start, 1)
        entry["date"] = datetime.date.today().isoformat()
        entry["command"] = command
        entry["versions"] = versions()
        # (n_seeds, n_tasks, n_episodes)
        entry["returns"] = {split: np.round(np.stack(arrays), 3).tolist() for split, arrays in returns.items()}
        # After each agent: a broken-off run goes on where it was. What another process has written meanwhile stays
        path.parent.mkdir(parents=True, exist_ok=True)
        with alone_in(path.parent):
            content = json.dumps({**facts, "agents": {**_known(path, facts, agents), agent: entry}}) + "\n"
            replace_file(path, lambda partial, content=content: partial.write_text(content, encoding="utf-8"))  # type: ignore[misc]
    return path


def _known(path: Path, facts: dict[str, Any], agents: Sequence[str]) -> dict[str, Any]:
    """
    :param path: File of references
    :param facts: What they are to be made with
    :param agents: Which are to be made
    :return: Agents that are in the file
    :raises ValueError: If it has others that were made otherwise
    """
    if not path.exists():
        return {}
    old = _read(path)
    others = [name for name in facts if json.dumps(old.get(name)) != json.dumps(facts[name])]
    kept = sorted(set(old["agents"]) - set(agents))
    if others and kept:
        raise ValueError(
            f"{path} has {kept} with other {others}: make them too (agents), make it elsewhere (output), or delete it."
        )
    return {} if others else dict(old["agents"])


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        for part in ("tasks", "agents"):
            content[part].items()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is no file of references, or it is broken ({error!r}): make it again, or delete it."
        ) from error
    return dict(content)


def _players(
    agent: str,
    env_id: str,
    action_space: spaces.Space[Any],
    timesteps: int | None,
    seeds: Sequence[int],
    env_kwargs: dict[str, Any],
    progress_bar: bool,
    conf_file: Path | None,
) -> tuple[dict[str, Any], list[Callable[[Sequence[Task]], Any]]]:
    """:return: What the file says of the agent, and for each seed a function that makes the agent for given tasks."""
    if agent == "random":
        return {"how": "uniform actions"}, [lambda tasks: RandomAgent(action_space, seed=0)]
    if agent in SCRIPTS.get(env_id, {}):
        how, make = SCRIPTS[env_id][agent]
        return {"how": how}, [make]
    seen = dict(
        oracle="observation and task (half of its trials OOD, if there are any)",
        reactive="the current token",
        blind="the observation",
    )[agent]
    models = [_trained(agent, env_id, seed, timesteps, env_kwargs, progress_bar, conf_file) for seed in seeds]
    entry = {
        "how": f"PPO, two layers of 128, on {seen}",
        "timesteps": models[0].num_timesteps,
        "seeds": list(seeds),
    }

    def player(model: TrMRLPPO) -> Callable[[Sequence[Task]], Any]:
        return lambda tasks: SeesTasks(model, tasks) if agent == "oracle" else model

    return entry, [player(model) for model in models]


def _trained(
    agent: str,
    env_id: str,
    seed: int,
    timesteps: int | None,
    env_kwargs: dict[str, Any],
    progress_bar: bool,
    conf_file: Path | None,
) -> TrMRLPPO:
    settings = training_settings(env_id, conf_file)
    settings["env_kwargs"] = {**settings.get("env_kwargs", {}), **env_kwargs}
    steps = int(settings["n_timesteps"]) if timesteps is None else timesteps
    folder = cache_dir() / file_name(env_id, env_kwargs).removesuffix(".json")
    # Schedules are objects: what they hold, not where they lie
    made_with = json.dumps([settings, versions()], sort_keys=True, default=lambda value: f"{type(value)} {vars(value)}")
    path = folder / f"{agent}_seed{seed}_{steps}_steps_{hashlib.sha256(made_with.encode()).hexdigest()[:8]}.zip"
    if path.exists():
        return TrMRLPPO.load(path, device="cpu")
    model = train_reference(agent, env_id, seed, steps, env_kwargs, progress_bar, conf_file=conf_file)
    replace_file(path, model.save)
    return model


@dataclass(frozen=True)
class References:
    """
    What the references of a family return.

    :param returns: By agent, ``(n_tasks, n_episodes)``, mean over the seeds of training
    :param paired: Whether the tasks are those of the result asked for, row by row; else they are others of the same split
    :param how: How each agent was made
    """

    returns: dict[str, np.ndarray]
    paired: bool
    how: dict[str, str]

    def curves(self) -> dict[str, np.ndarray]:
        """:return: Mean returns by agent, ``(n_episodes,)``."""
        return {agent: part.mean(axis=0) for agent, part in self.returns.items()}

    def drawn_curves(self) -> dict[str, np.ndarray]:
        """:return: Mean returns by agent, ``(n_episodes,)``, for pictures: random, far below all else, only without blind."""
        left_out = {"random"} if "blind" in self.returns else set()
        return {agent: curve for agent, curve in self.curves().items() if agent not in left_out}

    def scores(self, returns: np.ndarray) -> dict[str, Any]:
        """
        :param returns: Returns of an agent, (n_runs, n_tasks, n_episodes).
        :return: ``score``, ``score_interval`` (lower and upper bounds) and, if it is known, ``reactive_score``, (n_episodes,)
            each; empty without oracle and blind.
        """
        if not {"oracle", "blind"} <= set(self.returns):
            return {}
        blind, oracle = self.returns["blind"], self.returns["oracle"]
        scores: dict[str, Any] = {
            "score": adaptation_score(returns.mean(axis=0), blind, oracle),
            "score_interval": score_interval(returns, blind, oracle, self.paired),
        }
        if "reactive" in self.returns:
            scores["reactive_score"] = adaptation_score(self.returns["reactive"], blind, oracle)
        return scores


def load_references(result: AdaptationResult) -> References | None:
    """
    Look up the references for a result: in :func:`cache_dir`, then among those that come with the package.

    :param result: Of ``evaluate_adaptation`` with a registered id.
    :return: Returns of the agents that are known, with as many episodes as the result has (references do not adapt, so that
        episodes after the last known one are like it); None if there are none for this family, its keywords and split.
    :raises ValueError: If a file is broken.
    """
    env_id, split, env_kwargs = (result.settings.get(name) for name in ("env_id", "split", "env_kwargs"))
    if not isinstance(env_id, str) or not isinstance(split, str) or not isinstance(env_kwargs, (dict, type(None))):
        return None
    name = file_name(env_id, env_kwargs)
    returns: dict[str, np.ndarray] = {}
    how: dict[str, str] = {}
    paired: dict[str, bool] = {}
    for path in (SHIPPED / name, cache_dir() / name):  # the latter wins, but returns on the result's own tasks stay
        if not path.exists():
            continue
        content = _read(path)
        try:
            rows = _matching_rows(result.tasks, content["tasks"].get(split, []))
            for agent, entry in content["agents"].items():
                if split in entry["returns"] and (rows is not None or not paired.get(agent, False)):
                    mean = np.mean(entry["returns"][split], axis=0)
                    mean = mean if rows is None else mean[rows]
                    episodes = np.minimum(np.arange(result.n_episodes), mean.shape[1] - 1)
                    returns[agent], how[agent] = mean[:, episodes], _describe(entry)
                    paired[agent] = rows is not None
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise ValueError(
                f"{path} is no file of references, or it is broken ({error}): make it again, or delete it."
            ) from error
    ordered = {agent: returns[agent] for agent in AGENTS if agent in returns}
    return References(ordered, all(paired.values()), how) if ordered else None


def _matching_rows(tasks: Sequence[Task], known: Sequence[Task]) -> np.ndarray | None:
    """:return: Where each task stands among the known ones, the n-th of equal tasks at the n-th; None if one is unknown."""
    places: dict[str, list[int]] = {}
    for row, task in enumerate(known):
        places.setdefault(json.dumps(task, sort_keys=True), []).append(row)
    rows, met = [], dict.fromkeys(places, 0)
    for task in tasks:
        key = json.dumps(task, sort_keys=True)
        if key not in places:
            return None
        rows.append(places[key][met[key] % len(places[key])])
        met[key] += 1
    return np.array(rows)


def _describe(entry: dict[str, Any]) -> str:
    if "timesteps" not in entry:
        return str(entry["how"])
    n_seeds = len(entry["seeds"])
    return f"{entry['how']}; {entry['timesteps']:,} steps, {n_seeds} seed{'s' if n_seeds > 1 else ''}"

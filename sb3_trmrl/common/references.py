"""
What is there to be gained? References of a family between which an agent's adaptation curve is read (docs/guide/concepts.md):

- *oracle*: sees the task. In closed form or scripted where that is exact, else PPO with the task in its observation, which is
  trained on OOD tasks too,
- *reactive*: PPO on the current token, without memory,
- *blind*: PPO on the observation alone: no previous action, reward or done, no memory,
- *random*: uniform actions.

``sb3-trmrl references FAMILY`` makes them; the returns of some families come with the package, in ``references/*.json``.
"""

import datetime
import hashlib
import importlib.metadata
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import MaybeCallback
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn

from sb3_trmrl.common.env_util import make_meta_vec_env
from sb3_trmrl.common.evaluation import (
    AdaptationResult,
    PredictsActions,
    evaluate_adaptation,
    make_trials,
    relevant_kwargs,
)
from sb3_trmrl.envs.meta_env import Task
from sb3_trmrl.envs.mujoco.base import MujocoMetaEnv
from sb3_trmrl.envs.point_robot import STEP_LENGTH
from sb3_trmrl.envs.registration import TASK_FAMILIES
from sb3_trmrl.envs.trial import TokenSpace
from sb3_trmrl.memory_encoders import WindowMemoryEncoder
from sb3_trmrl.trmrl_ppo import TrMRLPPO

AGENTS = ("oracle", "reactive", "blind", "random")
SHIPPED = Path(__file__).resolve().parent.parent / "references"
"""Folder of the references that come with the package."""


def cache_dir() -> Path:
    """:return: Where trained references are kept: ``$SB3_TRMRL_CACHE``, else ``~/.cache/sb3_trmrl``."""
    return Path(os.environ.get("SB3_TRMRL_CACHE", Path.home() / ".cache" / "sb3_trmrl")).expanduser() / "references"


# ---- exact references ------------------------------------------------------------------------------------------------


class GoTo:
    """
    Walks straight to a target as fast as it can: each axis by itself, so that the distance is the smallest possible at every
    step.

    :param targets: One for each slot, ``(n_envs, 2)`` in metres.
    """

    def __init__(self, targets: np.ndarray):
        self.targets = targets

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[np.ndarray, Any]:
        """See ``PredictsActions``; the first two entries of the token are the position."""
        return np.clip((self.targets - observation[:, :2]) / STEP_LENGTH, -1.0, 1.0).astype(np.float32), state


class RandomAgent:
    """
    Uniform actions.

    :param action_space: Where they are drawn from.
    :param seed: Seed of the drawing.
    """

    def __init__(self, action_space: spaces.Space[Any], seed: int):
        self.action_space = action_space
        self.action_space.seed(seed)

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[np.ndarray, Any]:
        """See ``PredictsActions``."""
        n_envs = len(next(iter(observation.values())) if isinstance(observation, dict) else observation)
        return np.stack([self.action_space.sample() for _ in range(n_envs)]), state


def _zero_actions(observation: np.ndarray) -> np.ndarray:
    return np.zeros((len(observation), 6), dtype=np.float32)


def _goals(tasks: Sequence[Task]) -> np.ndarray:
    return np.array([task["goal"] for task in tasks])


def _arm_probabilities(tasks: Sequence[Task]) -> np.ndarray:
    return np.array([task["probabilities"] for task in tasks])


CLOSED_FORMS: dict[str, dict[str, tuple[str, Callable[[Sequence[Task]], np.ndarray]]]] = {
    "MetaBandit-v0": {
        "oracle": ("expected return of the best arm", lambda tasks: _arm_probabilities(tasks).max(axis=1)),
        "blind": (
            "expected return of any arm, which are alike a priori",
            lambda tasks: _arm_probabilities(tasks).mean(axis=1),
        ),
        "random": ("expected return", lambda tasks: _arm_probabilities(tasks).mean(axis=1)),
    }
}
"""Expected reward of a step, ``(n_tasks,)``, by family and agent."""

SCRIPTS: dict[str, dict[str, tuple[str, Callable[[Sequence[Task]], Any]]]] = {
    "PointRobot-v0": {
        "oracle": ("scripted, exact: straight to the goal", lambda tasks: GoTo(_goals(tasks))),
        "blind": ("scripted, exact for the training range: to its middle", lambda tasks: GoTo(0.0 * _goals(tasks))),
    },
    "SparsePointRobot-v0": {"oracle": ("scripted, exact: straight to the goal", lambda tasks: GoTo(_goals(tasks)))},
    "HalfCheetahDir-v0": {
        "blind": ("scripted, exact: stands still, as both directions are equally likely", lambda tasks: _zero_actions)
    },
}
"""Agents for given tasks (slot ``i`` plays task ``i``), by family and agent."""


# ---- trained references ----------------------------------------------------------------------------------------------


class NoMemory(WindowMemoryEncoder):
    """
    The current token is all there is.

    :param token_dim: Width of the tokens.
    """

    def __init__(self, token_dim: int):
        super().__init__(token_dim, features_dim=token_dim, memory_length=1)

    def encode_windows(self, windows: th.Tensor, lengths: th.Tensor) -> th.Tensor:
        """See :meth:`WindowMemoryEncoder.encode_windows`."""
        return windows[:, 0]


class Columns(BaseFeaturesExtractor):
    """
    Shows some entries of the observation.

    :param observation_space: A Box of vectors.
    :param columns: Which.
    """

    def __init__(self, observation_space: spaces.Space[Any], columns: Sequence[int]):
        super().__init__(observation_space, features_dim=len(columns))
        self.columns: th.Tensor
        self.register_buffer("columns", th.tensor(list(columns)), persistent=False)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        """
        :param observations: ``(batch, size)``.
        :return: ``(batch, len(columns))``.
        """
        return observations[:, self.columns]


def task_vector(task: Task) -> np.ndarray:
    """
    :param task: A task.
    :return: Its numbers, in the order of their names, float32 ``(task_size,)``.
    :raises ValueError: If there is something else in it.
    """
    words = [name for name, value in task.items() if isinstance(value, str)]
    if words:
        raise ValueError(f"an oracle sees the task as numbers, {words} of {task} are words: leave the oracle out.")
    return np.concatenate([np.ravel(task[name]) for name in sorted(task)]).astype(np.float32)


class TaskInObservation(VecEnvWrapper):
    """
    Appends the task to the token.

    :param venv: Trial environments with vector tokens.
    """

    def __init__(self, venv: VecEnv):
        venv.reset()
        self._tasks = np.stack([task_vector(task) for task in venv.env_method("get_task")])
        space = venv.observation_space
        assert isinstance(space, spaces.Box)
        bound = np.full(self._tasks.shape[1], np.inf, dtype=np.float32)
        super().__init__(
            venv, observation_space=spaces.Box(np.append(space.low, -bound), np.append(space.high, bound), dtype=np.float32)
        )

    def _append(self, tokens: np.ndarray) -> np.ndarray:
        return np.concatenate([tokens, self._tasks], axis=1)

    def reset(self) -> np.ndarray:
        """:return: Tokens with tasks, ``(n_envs, token_size + task_size)``."""
        tokens = self.venv.reset()
        self._tasks = np.stack([task_vector(task) for task in self.venv.env_method("get_task")])
        return self._append(tokens)  # type: ignore[arg-type]

    def step_wait(self) -> VecEnvStepReturn:
        """:return: See ``VecEnv``; the terminal observation has the task of the trial that has ended."""
        tokens, rewards, dones, infos = self.venv.step_wait()
        ended = np.flatnonzero(dones).tolist()
        for slot in ended:
            infos[slot]["terminal_observation"] = np.append(infos[slot]["terminal_observation"], self._tasks[slot])
        if ended:
            for slot, task in zip(ended, self.venv.env_method("get_task", indices=ended), strict=True):
                self._tasks[slot] = task_vector(task)
        return self._append(tokens), rewards, dones, infos  # type: ignore[arg-type]


class SeesTasks:
    """
    An agent trained behind :class:`TaskInObservation`, for environments without it.

    :param agent: The agent.
    :param tasks: The task of each slot.
    """

    def __init__(self, agent: PredictsActions, tasks: Sequence[Task]):
        self.agent = agent
        self.tasks = np.stack([task_vector(task) for task in tasks])

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[np.ndarray, Any]:
        """See ``PredictsActions``."""
        return self.agent.predict(np.concatenate([observation, self.tasks], axis=1), state, episode_start, deterministic)


def training_settings(env_id: str) -> dict[str, Any]:
    """
    :param env_id: A registered id.
    :return: PPO's settings for the references: those of TrMRL on the same family (``hyperparams/trmrl.yml``). On the MuJoCo
        families perceptrons learn better from twice as many epochs and minibatches half as large (docs/results.md), and a
        reference has to be as good as it can be
    """
    from sb3_trmrl.zoo.settings import read_settings

    settings = read_settings("trmrl", env_id)
    family = TASK_FAMILIES.get(env_id)
    if isinstance(family, type) and issubclass(family, MujocoMetaEnv):
        settings.update(batch_size=800, n_epochs=10)
    return settings


def train_reference(
    agent: str,
    env_id: str,
    seed: int = 0,
    timesteps: int | None = None,
    env_kwargs: dict[str, Any] | None = None,
    progress_bar: bool = False,
    callback: MaybeCallback = None,
) -> TrMRLPPO:
    """
    Train a reference: the PPO of ``TrMRLPPO`` with :func:`training_settings`, but two perceptrons on what the agent may see,
    instead of a memory.

    :param agent: ``"oracle"``, ``"reactive"`` or ``"blind"``.
    :param env_id: A registered id with vector observations.
    :param seed: Seed of everything.
    :param timesteps: Steps of training; those of the yaml file if None.
    :param env_kwargs: Keywords of the environment.
    :param progress_bar: Show SB3's progress bar.
    :param callback: Called in training.
    :return: The trained agent. The oracle's observation has the task appended, see :class:`SeesTasks`; where the family has
        OOD tasks, half of its training is on these.
    :raises ValueError: For observations that are no vectors.
    """
    settings = training_settings(env_id)
    steps = int(settings.pop("n_timesteps"))
    policy_kwargs = settings.pop("policy_kwargs", {})
    del settings["policy"]
    env = make_meta_vec_env(
        env_id, settings.pop("n_envs"), seed, env_kwargs={**settings.pop("env_kwargs", {}), **(env_kwargs or {})}
    )
    space = env.observation_space
    if not isinstance(space, TokenSpace):
        env.close()
        raise ValueError(f"references are trained on vector observations, {env_id} has {space}.")
    columns = list(range(space.shape[0]) if agent == "reactive" else range(space.observation_size))
    if agent == "oracle":
        if "ood" in make_trials(env_id, env_kwargs or {}).meta_env.splits:
            # What knows the task has to know it out there too, or it would be no upper bound: every other slot
            for slot in range(0, env.num_envs, 2):
                env.env_method("set_wrapper_attr", "split", "ood", indices=slot)
        env = TaskInObservation(env)
        assert env.observation_space.shape is not None
        columns += range(space.shape[0], env.observation_space.shape[0])
    model = TrMRLPPO(
        "TrMRLPolicy",
        env,
        seed=seed,
        device="cpu",
        policy_kwargs=dict(
            memory_encoder=NoMemory,
            head_input="latest",
            net_arch=[128, 128],
            features_extractor_class=Columns,
            features_extractor_kwargs=dict(columns=columns),
            log_std_init=policy_kwargs.get("log_std_init", 0.0),
        ),
        **settings,
    )
    model.learn(steps if timesteps is None else timesteps, callback=callback, progress_bar=progress_bar)
    env.close()
    return model


# ---- files of references ---------------------------------------------------------------------------------------------


def file_name(env_id: str, env_kwargs: dict[str, Any] | None = None) -> str:
    """
    :param env_id: A registered id.
    :param env_kwargs: Keywords of the environment.
    :return: Name of the file of its references.
    """
    kwargs = relevant_kwargs(env_id, env_kwargs)
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
) -> Path:
    """
    Make references of a family, evaluate them on all its splits and write their returns to a file. What is trained is kept in
    :func:`cache_dir` and not trained again; agents that the file has already and that are not asked for stay in it.

    :param env_id: A registered id.
    :param agents: Which, of ``AGENTS``.
    :param timesteps: Steps of training; those of ``hyperparams/trmrl.yml`` if None.
    :param seeds: Seeds of training.
    :param n_tasks: Tasks of each split.
    :param n_episodes: Episodes of each task.
    :param eval_seed: Seed of tasks and episodes: evaluations with this seed meet the same ones.
    :param env_kwargs: Keywords of the environment.
    :param output: The file, or a folder for it; in :func:`cache_dir` if None.
    :param command: How to make them again, for the file.
    :param progress_bar: Show SB3's progress bar.
    :return: The file.
    :raises ValueError: For an unknown agent, no seeds, an environment without trials.
    """
    unknown = sorted(set(agents) - set(AGENTS))
    if unknown or len(agents) == 0:
        raise ValueError(f"agents must be some of {list(AGENTS)}, got {list(agents)}.")
    if len(seeds) == 0:
        raise ValueError("seeds must hold at least one seed, got none.")
    env_kwargs = relevant_kwargs(env_id, env_kwargs)
    path = cache_dir() if output is None else Path(output)
    path = path if path.suffix == ".json" else path / file_name(env_id, env_kwargs)
    env = make_trials(env_id, env_kwargs)
    splits, horizon, action_space = env.meta_env.splits, env.meta_env.horizon, env.action_space
    drawn = {
        split: evaluate_adaptation(
            RandomAgent(action_space, 0), env_id, n_tasks, 1, split, seed=eval_seed, env_kwargs=env_kwargs
        )
        for split in splits
    }
    tasks = {split: result.tasks for split, result in drawn.items()}
    facts = dict(env_id=env_id, env_kwargs=env_kwargs, n_tasks=n_tasks, n_episodes=n_episodes, seed=eval_seed, tasks=tasks)
    content: dict[str, Any] = {**facts, "agents": {}}
    if path.exists():
        old = json.loads(path.read_text(encoding="utf-8"))
        # Returns on other tasks would not stand beside the new ones
        if all(old.get(name) == value for name, value in facts.items()):
            content = old

    for agent in agents:
        start = time.perf_counter()
        if agent in CLOSED_FORMS.get(env_id, {}):
            how, reward = CLOSED_FORMS[env_id][agent]
            entry: dict[str, Any] = {"how": how}
            returns = {split: [np.tile(horizon * reward(tasks[split])[:, None], n_episodes)] for split in splits}
        else:
            entry, players = _players(agent, env_id, action_space, timesteps, seeds, env_kwargs, progress_bar)
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
        entry["versions"] = {
            name: importlib.metadata.version(name)
            for name in ("sb3_trmrl", "stable_baselines3", "torch", "gymnasium", "mujoco", "numpy")
        }
        # (n_seeds, n_tasks, n_episodes)
        entry["returns"] = {split: np.round(np.stack(arrays), 3).tolist() for split, arrays in returns.items()}
        content["agents"][agent] = entry
        # After each agent: a broken-off run goes on where it was
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content) + "\n", encoding="utf-8")
    return path


def _players(
    agent: str,
    env_id: str,
    action_space: spaces.Space[Any],
    timesteps: int | None,
    seeds: Sequence[int],
    env_kwargs: dict[str, Any],
    progress_bar: bool,
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
    models = [_trained(agent, env_id, seed, timesteps, env_kwargs, progress_bar) for seed in seeds]
    entry = {
        "how": f"PPO, two layers of 128, on {seen}",
        "timesteps": models[0].num_timesteps,
        "seeds": list(seeds),
    }

    def player(model: TrMRLPPO) -> Callable[[Sequence[Task]], Any]:
        return lambda tasks: SeesTasks(model, tasks) if agent == "oracle" else model

    return entry, [player(model) for model in models]


def _trained(
    agent: str, env_id: str, seed: int, timesteps: int | None, env_kwargs: dict[str, Any], progress_bar: bool
) -> TrMRLPPO:
    steps = int(training_settings(env_id)["n_timesteps"]) if timesteps is None else timesteps
    folder = cache_dir() / file_name(env_id, env_kwargs).removesuffix(".json")
    path = folder / f"{agent}_seed{seed}_{steps}_steps.zip"
    if path.exists():
        return TrMRLPPO.load(path, device="cpu")
    model = train_reference(agent, env_id, seed, steps, env_kwargs, progress_bar)
    folder.mkdir(parents=True, exist_ok=True)
    model.save(path)
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


def load_references(result: AdaptationResult) -> References | None:
    """
    Look up the references for a result: in :func:`cache_dir`, then among those that come with the package.

    :param result: Of ``evaluate_adaptation`` with a registered id.
    :return: Returns of the agents that are known, with as many episodes as the result has (references do not adapt, so that
        episodes after the last known one are like it); None if there are none for this family, its keywords and split.
    :raises ValueError: If a file is broken.
    """
    env_id, split = result.settings.get("env_id"), result.settings.get("split")
    if env_id is None or split is None:
        return None
    name = file_name(env_id, result.settings.get("env_kwargs"))
    returns: dict[str, np.ndarray] = {}
    how: dict[str, str] = {}
    paired: dict[str, bool] = {}
    for path in (SHIPPED / name, cache_dir() / name):  # the latter wins
        if not path.exists():
            continue
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            rows = _matching_rows(result.tasks, content["tasks"].get(split, []))
            for agent, entry in content["agents"].items():
                if split in entry["returns"]:
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

"""Meta-evaluation: how the return grows over the episodes of a trial, on tasks that training has not seen."""

import contextlib
import dataclasses
import io
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.preprocessing import is_image_space, is_image_space_channels_first
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize, VecTransposeImage, unwrap_vec_normalize
from tqdm import tqdm

from sb3_trmrl.common.arguments import check_flags, check_integers, is_integer
from sb3_trmrl.common.env_util import make_meta_vec_env, plays_trials
from sb3_trmrl.common.meta_learning_agent import AdaptingAgent, MetaLearningAgent, is_meta_learning_agent
from sb3_trmrl.common.npz import read_arrays
from sb3_trmrl.common.safe_write import replace_file
from sb3_trmrl.common.statistics import curve_interval
from sb3_trmrl.envs.meta_env import Task
from sb3_trmrl.envs.registration import relevant_kwargs
from sb3_trmrl.envs.trial import TrialWrapper

MAX_DRAWS_PER_TASK = 10
"""A family that has shown fewer distinct tasks than wanted after so many draws for each is taken to have no more."""


class PredictsActions(Protocol):
    """A model or a policy: SB3's ``predict``."""

    def predict(
        self,
        observation: Any,
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """See ``stable_baselines3.common.base_class.BaseAlgorithm.predict``."""


class _CallablePolicy:
    """
    A function of the observations as an agent.

    :param policy: Takes observations ``(n_envs, ...)``, returns actions ``(n_envs, ...)``.
    """

    def __init__(self, policy: Callable[[Any], np.ndarray]):
        self.policy = policy

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[np.ndarray, Any]:
        return np.asarray(self.policy(observation)), state


@dataclass(frozen=True)
class AdaptationResult:
    """
    What an agent did in one trial of each task.

    :param tasks: The tasks
    :param returns: Return of each episode, shape (n_tasks, n_episodes)
    :param lengths: Steps of each episode, shape (n_tasks, n_episodes)
    :param success: Whether each episode succeeded, shape (n_tasks, n_episodes); None where the family has no success
    :param wall_time: Seconds that it took, without making the environments
    :param settings: How it was measured: ``env_id``, ``env_kwargs``, ``split``, ``seed``, ``deterministic``
    """

    tasks: list[Task]
    returns: np.ndarray
    lengths: np.ndarray
    success: np.ndarray | None
    wall_time: float = 0.0
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def n_tasks(self) -> int:
        """Number of tasks."""
        return len(self.returns)

    @property
    def n_episodes(self) -> int:
        """Episodes per trial."""
        return int(self.returns.shape[1])

    @property
    def curve(self) -> np.ndarray:
        """The adaptation curve: mean return against episode index, shape (n_episodes,)."""
        return self.returns.mean(axis=0)

    def interval(self, confidence: float = 0.95, n_bootstrap: int = 10_000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """
        Percentile bootstrap interval of :attr:`curve` over tasks.

        :param confidence: Probability mass of the interval, in (0, 1)
        :param n_bootstrap: Number of resamples of the tasks
        :param seed: Seed of the resampling
        :return: Lower and upper bound for each episode, shape (n_episodes,) each
        """
        return curve_interval(self.returns[None], confidence, n_bootstrap, seed)

    def by_environment(self) -> dict[str, "AdaptationResult"]:
        """
        :return: The results of each environment of a family that has several (``"environment"`` in its tasks: ML10, say), by
            its name, in the order of the names; empty for other families
        """
        names = np.array([task.get("environment", "") for task in self.tasks])
        return {str(name): self._part(np.flatnonzero(names == name)) for name in np.unique(names[names != ""])}

    def _part(self, rows: np.ndarray) -> "AdaptationResult":
        return dataclasses.replace(
            self,
            tasks=[self.tasks[row] for row in rows],
            returns=self.returns[rows],
            lengths=self.lengths[rows],
            success=None if self.success is None else self.success[rows],
        )

    def as_arrays(self) -> dict[str, np.ndarray]:
        """:return: What an npz file holds of it: arrays, the tasks and the other facts as JSON strings."""
        arrays = {"returns": self.returns, "lengths": self.lengths}
        if self.success is not None:
            arrays["success"] = self.success
        tasks = np.array([_as_json(task) for task in self.tasks])
        facts = np.array(_as_json({"wall_time": self.wall_time, "settings": self.settings}))
        return {**arrays, "tasks": tasks, "facts": facts}

    def save(self, path: str | Path) -> None:
        """
        Write the result to a file; :meth:`load` gives it back.

        :param path: Ending in ``.npz`` (arrays, tasks and settings as JSON strings) or ``.json`` (all as text)
        :raises ValueError: on another ending
        """
        path = Path(path)
        if path.suffix.lower() == ".npz":
            data = io.BytesIO()  # numpy appends .npz to a path that ends in .NPZ
            np.savez_compressed(data, **self.as_arrays())  # type: ignore[arg-type]
            replace_file(path, lambda partial: partial.write_bytes(data.getvalue()))
        elif path.suffix.lower() == ".json":
            known = {name: part for name, part in vars(self).items() if part is not None}
            content = {name: part.tolist() if isinstance(part, np.ndarray) else part for name, part in known.items()}
            replace_file(path, lambda partial: partial.write_text(_as_json(content), encoding="utf-8"))
        else:
            raise ValueError(f"path must end in .npz or .json, got {str(path)!r}.")

    @classmethod
    def load(cls, path: str | Path) -> "AdaptationResult":
        """
        :param path: File that :meth:`save` has written
        :return: The result
        :raises ValueError: on another ending and on a file that is broken or something else
        :raises FileNotFoundError: if there is none
        """
        path = Path(path)
        if path.suffix.lower() not in (".npz", ".json"):
            raise ValueError(f"path must end in .npz or .json, got {str(path)!r}.")
        try:
            if path.suffix.lower() == ".npz":
                content: dict[str, Any] = read_arrays(path)
                if "timesteps" in content:
                    raise ValueError("it is the log of a training: `sb3-trmrl plot learning` draws it")
                content["tasks"] = [json.loads(task) for task in content["tasks"]]
                content.update(json.loads(str(content["facts"])))
            else:
                content = json.loads(path.read_text(encoding="utf-8"))
            success = content.get("success")
            result = cls(
                tasks=list(content["tasks"]),
                returns=np.asarray(content["returns"], dtype=np.float64),
                lengths=np.asarray(content["lengths"], dtype=np.int64),
                success=None if success is None else np.asarray(success, dtype=bool),
                wall_time=float(content["wall_time"]),
                settings=dict(content["settings"]),
            )
            if not all(isinstance(task, dict) for task in result.tasks):
                raise ValueError("a task must be an object")
            if result.success is not None and result.success.shape != result.returns.shape:
                raise ValueError(f"success {result.success.shape} does not fit returns {result.returns.shape}")
            if result.returns.size == 0:
                raise ValueError(f"it holds no episodes: returns {result.returns.shape}")
            if result.returns.ndim != 2 or result.returns.shape != result.lengths.shape or result.n_tasks != len(result.tasks):
                raise ValueError(
                    f"{len(result.tasks)} tasks do not fit returns {result.returns.shape} and lengths {result.lengths.shape}"
                )
        except FileNotFoundError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError, OSError) as error:
            reason = f"it has no {error}" if isinstance(error, KeyError) else str(error)
            raise ValueError(f"{path} is no saved AdaptationResult, or it is broken: {reason}") from error
        return result


class SeesNormalized:
    """
    An agent that was trained behind ``VecNormalize``, for environments without it.

    :param agent: The agent
    :param vec_normalize: What it was trained behind
    """

    def __init__(self, agent: PredictsActions, vec_normalize: VecNormalize):
        self.agent, self.vec_normalize = agent, vec_normalize
        self.observation_space = getattr(agent, "observation_space", None)
        self.action_space = getattr(agent, "action_space", None)

    def predict(
        self,
        observation: Any,
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        return self.agent.predict(self.vec_normalize.normalize_obs(observation), state, episode_start, deterministic)


def settings_of(env_id: Any, env_kwargs: dict[str, Any], split: str | None, seed: int, deterministic: bool) -> dict[str, Any]:
    """
    :param env_id: See :func:`evaluate_adaptation`
    :param env_kwargs: See :func:`evaluate_adaptation`
    :param split: Where tasks are drawn from; None if they are given
    :param seed: Seed of tasks and episodes
    :param deterministic: Whether actions are the mode of the policy
    :return: What an evaluation is of, but for its tasks: ``settings`` of an :class:`AdaptationResult`
    """
    return dict(
        env_id=env_id.rpartition(":")[2] if isinstance(env_id, str) else None,  # without the module to import
        env_kwargs={name: value for name, value in env_kwargs.items() if name != "render_mode"},
        split=split,
        seed=seed,
        deterministic=deterministic,
    )


def evaluate_adaptation(
    model: PredictsActions | Callable[[Any], np.ndarray] | MetaLearningAgent | AdaptingAgent,
    env_id: str | Callable[..., gym.Env[Any, Any]] | gym.Env[Any, Any] | VecEnv,
    n_tasks: int = 20,
    n_episodes: int = 6,
    split: str = "test",
    deterministic: bool = True,
    seed: int = 0,
    env_kwargs: dict[str, Any] | None = None,
    tasks: Sequence[Task] | None = None,
    n_envs: int | None = None,
    progress_bar: bool = False,
) -> AdaptationResult:
    """
    Play one trial of ``n_episodes`` episodes on each of ``n_tasks`` tasks, side by side, with frozen weights.

    The memory is carried as in training: emptied at the start of the trial, handed on from step to step. The trial may be
    longer than those of training.

    ``seed`` alone decides which tasks are played and how their episodes start, whoever plays and however many side by side;
    so agents evaluated with one seed meet the same. (But for the later episodes of ``MetaLearningAgent``: the phases of its
    protocol begin with resets of their own.) Noise that policies draw from torch's generators follows from ``seed`` and
    ``n_envs``, and a training does not notice it (but for gSDE, ``use_sde=True``: the policy plays with the matrix of noise
    that it drew last). The tasks are distinct; of a family that has fewer than ``n_tasks``, each is played equally often (but
    for the remainder).

    :param model: Anything with SB3's ``predict`` (where the environment is made here, a model that has one behind
        ``VecNormalize`` sees observations as there); a function of the observations ``(n_envs, ...)``; or an agent with
        Meta-World's ``MetaLearningAgent`` protocol, which plays ``n_episodes - 1`` episodes, adapts and is evaluated in the
        last (:class:`~sb3_trmrl.common.meta_learning_agent.AdaptingAgent` chooses other numbers). Such an agent plays all
        tasks side by side and decides itself how it acts: it takes no ``n_envs``, ``deterministic`` and ``progress_bar`` mean
        nothing to it
    :param env_id: Registered id of a trial environment; a callable that makes its trial environment and takes the keyword
        arguments ``episodes_per_trial`` and ``split``; or an environment or ``VecEnv`` of trials of ``n_episodes`` episodes,
        whose running trials are broken off. (Of a model that trains in it pass the model itself, not its policy or a function:
        it has to begin new trials.)
    :param n_tasks: Number of tasks
    :param n_episodes: Episodes per trial
    :param split: Where tasks are drawn from: ``"train"``, ``"test"`` or ``"ood"``
    :param deterministic: Whether actions are the mode of the policy
    :param seed: Seed of tasks and episodes
    :param env_kwargs: Further keyword arguments of the environment, for example ``dict(horizon=100)``
    :param tasks: Play these tasks instead of drawing ``n_tasks`` of them
    :param n_envs: How many tasks are played side by side; all if None
    :param progress_bar: Show a progress bar of the episodes
    :return: Returns, lengths and successes by task and episode
    :raises ValueError: for an unknown split, a bad number, a task that does not fit, an environment without trials, a model of
        other spaces
    """
    _check_arguments(n_tasks, n_episodes, env_kwargs, tasks, n_envs)
    check_integers(dict(seed=seed), least=0)
    check_flags(dict(deterministic=deterministic))
    seed = int(seed)  # gymnasium takes no NumPy integers
    env_kwargs = dict(env_kwargs or {})
    settings = settings_of(env_id, env_kwargs, split if tasks is None else None, seed, deterministic)
    if is_meta_learning_agent(model):
        model = AdaptingAgent(model, adaptation_episodes=max(1, n_episodes - 1))
    if isinstance(model, AdaptingAgent) and n_envs is not None:
        raise ValueError(f"n_envs={n_envs}, but a MetaLearningAgent plays all tasks side by side: leave it out.")
    # Episodes that training with the same seed has not started from: SB3 seeds slot i with seed + i
    slot_seed = derived_seed(seed)
    if isinstance(env_id, (gym.Env, VecEnv)):
        if env_kwargs:
            raise ValueError(f"env_kwargs={env_kwargs} are for an environment that is to be made, env_id is one already.")
        if n_envs is not None:
            raise ValueError(f"n_envs={n_envs} is for environments that are to be made, env_id is one already: leave it out.")
        vec_env = env_id if isinstance(env_id, VecEnv) else DummyVecEnv([lambda: env_id])
        _check_trials(env_id, vec_env, n_episodes)
        # A trial of one episode each is all that an adapting agent can use: its episodes are trials of their own
        if isinstance(model, AdaptingAgent):
            raise ValueError("a MetaLearningAgent needs the id of an environment (or a callable that makes it), not one made.")
        if getattr(model, "in_step", False) and _is_trained_in(model, vec_env):
            raise ValueError(
                "env_id is the environment in which model is training, in the middle of a step (a callback's on_step): pass "
                "the id of the environment instead, use MetaEvalCallback, or evaluate in on_rollout_start."
            )
        with _frozen_statistics(vec_env):
            if tasks is None:
                vec_env.seed(seed)
                vec_env.reset()
                if vec_env.get_attr("split", indices=0)[0] != split or not vec_env.get_attr("draws_tasks", indices=0)[0]:
                    # Else the reset has drawn the first task
                    vec_env.env_method("sample_tasks", 1, split, indices=0)
                tasks = _distinct_tasks(lambda n: vec_env.env_method("sample_tasks", n, split, indices=0)[0], n_tasks)
            return _evaluate(model, vec_env, tasks, slot_seed, deterministic, progress_bar, settings)

    if isinstance(model, BaseAlgorithm) and (vec_normalize := model.get_vec_normalize_env()) is not None:
        model = SeesNormalized(model, vec_normalize)  # what is made here is not behind it
    trial_kwargs = {**env_kwargs, "episodes_per_trial": n_episodes, "split": split}
    if tasks is None:
        family = make_trials(env_id, trial_kwargs)
        family.reset(seed=seed)
        tasks = _distinct_tasks(family.sample_tasks, n_tasks)
        family.close()
    if isinstance(model, AdaptingAgent):
        # Every phase of its protocol begins with a reset, so an episode is all that the VecEnv holds
        trial_kwargs["episodes_per_trial"] = 1
    n_slots = len(tasks) if n_envs is None else min(n_envs, len(tasks))
    # With a seed, as SB3 would draw one from numpy's generator, which shuffles the minibatches of a PPO that is training
    vec_env = make_meta_vec_env(env_id, n_envs=n_slots, seed=slot_seed, env_kwargs=trial_kwargs)
    try:
        if isinstance(model, AdaptingAgent):
            start = time.perf_counter()
            with _own_noise(slot_seed):
                trials = model.play(vec_env, list(tasks), n_episodes, slot_seed)
            return _result(trials, time.perf_counter() - start, settings)
        return _evaluate(model, vec_env, tasks, slot_seed, deterministic, progress_bar, settings)
    finally:
        vec_env.close()


def _check_arguments(n_tasks: Any, n_episodes: Any, env_kwargs: Any, tasks: Any, n_envs: Any) -> None:
    check_integers(dict(n_tasks=n_tasks, n_episodes=n_episodes))
    if not isinstance(env_kwargs, Mapping | None):
        raise ValueError(f"env_kwargs must be a dict of the environment's keyword arguments, got {env_kwargs!r}.")
    taken = {"episodes_per_trial", "split", "tasks"} & set(env_kwargs or {})
    if taken:
        raise ValueError(f"env_kwargs must not hold {sorted(taken)}: use n_episodes, split and tasks of evaluate_adaptation.")
    if n_envs is not None and not is_integer(n_envs, 1):
        raise ValueError(f"n_envs must be an integer >= 1 (or None for one per task), got {n_envs!r}.")
    if tasks is not None and (not isinstance(tasks, Sequence) or len(tasks) == 0):
        raise ValueError(f"tasks must hold at least one task (or be None to draw n_tasks of them), got {tasks}: pass [task].")


def derived_seed(*entropy: int) -> int:
    """
    :param entropy: What the seed depends on, not negative
    :return: A seed for environments, below 2^31: slots add their index to it
    """
    for part in entropy:
        check_integers(dict(seed=part), least=0)
    return int(np.random.SeedSequence(entropy).generate_state(1)[0] % 2**31)


def make_trials(env_id: str | Callable[..., gym.Env[Any, Any]], env_kwargs: dict[str, Any]) -> TrialWrapper:
    """
    :param env_id: Registered id of a trial environment, or a callable that makes one.
    :param env_kwargs: Its keyword arguments.
    :return: The trial environment.
    :raises ValueError: If it does not take them, or is none.
    """
    try:
        family = (gym.make(env_id, **env_kwargs) if isinstance(env_id, str) else env_id(**env_kwargs)).unwrapped
    except TypeError as error:  # a keyword that it does not have
        raise ValueError(f"env_id={env_id!r} does not make a trial environment with {env_kwargs}: {error}") from error
    if not isinstance(family, TrialWrapper):
        raise ValueError(f"env_id must make a trial environment (a TrialWrapper), {env_id!r} makes {family}.")
    return family


def _distinct_tasks(draw: Callable[[int], list[Task]], n_tasks: int) -> list[Task]:
    """
    :param draw: Draws so many tasks.
    :param n_tasks: Number of tasks.
    :return: Distinct tasks, in the order in which they were drawn; all there are over and over, if they are fewer.
    """
    drawn = draw(n_tasks)
    found = {json.dumps(task, sort_keys=True): task for task in drawn}
    for _ in range(MAX_DRAWS_PER_TASK * n_tasks):
        if len(found) >= n_tasks:
            break
        for task in draw(1):
            found.setdefault(json.dumps(task, sort_keys=True), task)
    distinct = list(found.values())
    return [distinct[index % len(distinct)] for index in range(n_tasks)]


def _check_trials(env: gym.Env[Any, Any] | VecEnv, vec_env: VecEnv, n_episodes: int) -> None:
    if not plays_trials(vec_env):
        raise ValueError(
            f"env_id must be a trial environment or a VecEnv of these, got {env}: put TrialWrapper(env, {n_episodes}) around "
            "a MetaEnv."
        )
    episodes_per_trial = vec_env.get_attr("episodes_per_trial", indices=0)[0]
    if episodes_per_trial != n_episodes:
        raise ValueError(
            f"env_id plays trials of {episodes_per_trial} episodes, n_episodes is {n_episodes}: pass "
            f"n_episodes={episodes_per_trial}, or the id of the environment instead of the environment."
        )


def check_spaces(model: Any, env: VecEnv | gym.Env[Any, Any]) -> None:
    """
    A model tells a wrong observation only when its network breaks; tell it before, and in words.

    :param model: Anything; what has no spaces fits.
    :param env: Where it is to play.
    :raises ValueError: If their spaces are of another kind or shape.
    """
    for name in ("observation_space", "action_space"):
        expected, found = getattr(model, name, None), getattr(env, name)
        if isinstance(expected, spaces.Space) and _outline(expected) != _outline(found):
            raise ValueError(
                f"model and environment do not fit: the model's {name} is {_outline(expected)}, the environment's is "
                f"{_outline(found)}. Evaluate it on the family that it was trained on, with the same env_kwargs."
            )


def _outline(space: spaces.Space[Any]) -> str:
    """:return: What has to be equal in model and environment: kind and shape, not the bounds."""
    if isinstance(space, spaces.Dict):
        return str({key: _outline(part) for key, part in sorted(space.spaces.items())})
    # SB3's models see images channel-first, and their predict turns them round
    if isinstance(space, spaces.Box) and is_image_space(space) and not is_image_space_channels_first(space):
        space = VecTransposeImage.transpose_space(space)
    return f"Box{space.shape}" if isinstance(space, spaces.Box) else str(space)


def _evaluate(
    model: Any,
    vec_env: VecEnv,
    tasks: Sequence[Task],
    seed: int,
    deterministic: bool,
    progress_bar: bool,
    settings: dict[str, Any],
) -> AdaptationResult:
    if not hasattr(model, "predict"):
        if not callable(model):
            raise ValueError(
                "model must have SB3's predict(observation, state, episode_start, deterministic), be a function of the "
                f"observations, or have Meta-World's MetaLearningAgent protocol, got {model!r}."
            )
        model = _CallablePolicy(model)
    check_spaces(model, vec_env)
    n_episodes = vec_env.get_attr("episodes_per_trial", indices=0)[0]
    trials: list[dict[str, Any]] = []
    start = time.perf_counter()
    try:
        # On stderr, and not where nobody looks
        with (
            tqdm(total=len(tasks) * n_episodes, unit="episode", disable=None if progress_bar else True) as bar,
            _own_noise(seed),
        ):
            for first in range(0, len(tasks), vec_env.num_envs):
                batch = tasks[first : first + vec_env.num_envs]
                # Task i starts from seed + i, whichever slot plays it
                trials += _play(model, vec_env, batch, seed + first, deterministic, bar)
    finally:
        if _is_trained_in(model, vec_env):
            _break_off_training(model, seed)
    return _result(trials, time.perf_counter() - start, settings)


def _is_trained_in(model: Any, vec_env: VecEnv) -> bool:
    """:return: Whether the model's own VecEnv is this one, or steps the same environments."""
    if not isinstance(getattr(model, "env", None), VecEnv):
        return False
    if model.env.unwrapped is vec_env.unwrapped:
        return True
    of_model, of_vec_env = ({id(env.unwrapped) for env in getattr(one.unwrapped, "envs", ())} for one in (model.env, vec_env))
    return not of_model.isdisjoint(of_vec_env)


def _break_off_training(model: Any, seed: int) -> None:
    # New trials, and other ones than after other evaluations: tasks would be drawn as the evaluation's seed has it, every time
    # (_n_updates: learn() may count its steps anew)
    model.env.seed(derived_seed(seed, *(int(getattr(model, name, 0) or 0) for name in ("seed", "_n_updates"))))
    if hasattr(model, "in_step"):
        model._last_obs = None  # our algorithms reset the environment themselves, and empty their memory
    else:
        model._last_obs, model._last_episode_starts = model.env.reset(), np.ones(model.env.num_envs, dtype=bool)


@contextlib.contextmanager
def _own_noise(seed: int) -> Iterator[None]:
    """What policies draw from torch's generators follows from ``seed``, and a training goes on as if nothing was drawn."""
    devices = range(th.cuda.device_count()) if th.cuda.is_initialized() else ()
    with th.random.fork_rng(devices):
        th.default_generator.manual_seed(seed)
        for device in devices:
            with th.cuda.device(device):
                th.cuda.manual_seed(seed)
        yield


@contextlib.contextmanager
def _frozen_statistics(vec_env: VecEnv) -> Iterator[None]:
    """What is evaluated behind ``VecNormalize`` does not change its statistics."""
    vec_normalize = unwrap_vec_normalize(vec_env)
    if vec_normalize is None:
        yield
        return
    training, vec_normalize.training = vec_normalize.training, False
    try:
        yield
    finally:
        vec_normalize.training = training


def _play(
    model: PredictsActions, vec_env: VecEnv, tasks: Sequence[Task], seed: int, deterministic: bool, bar: "tqdm[Any]"
) -> list[dict[str, Any]]:
    """:return: ``info["trial"]`` of one trial of each task, one slot for each; there may be more slots, which do not count."""
    trials: dict[int, dict[str, Any]] = {}
    vec_env.seed(seed)
    # As an option, which holds for one reset: the environment may be one to be trained on
    vec_env.set_options([{"task": tasks[slot % len(tasks)]} for slot in range(vec_env.num_envs)])
    observations, state, starts = vec_env.reset(), None, np.ones(vec_env.num_envs, dtype=bool)
    while len(trials) < len(tasks):
        actions, state = model.predict(observations, state=state, episode_start=starts, deterministic=deterministic)
        observations, _, starts, infos = vec_env.step(actions)
        counted = [] if bar.disable else [slot for slot in range(len(tasks)) if slot not in trials]
        bar.update(sum("inner_episode" in infos[slot] for slot in counted))
        if starts.any():
            for slot in np.flatnonzero(starts[: len(tasks)]).tolist():
                if "trial" not in infos[slot]:
                    raise ValueError(
                        "something outside the TrialWrapper ended a trial before its episodes were played (max_episode_steps, "
                        "a wrapper with a time limit): use the family's keyword horizon, the length of an episode, instead."
                    )
                # A slot whose trial ended early plays on; only its first trial counts
                trials.setdefault(slot, infos[slot]["trial"])
    return [trials[slot] for slot in range(len(tasks))]


def _result(trials: list[dict[str, Any]], wall_time: float, settings: dict[str, Any]) -> AdaptationResult:
    # A family may tell success only where there is some
    successes = [trial.get("success", [False] * len(trial["returns"])) for trial in trials]
    knows_success = any("success" in trial for trial in trials)
    return AdaptationResult(
        tasks=[trial["task"] for trial in trials],
        returns=np.array([trial["returns"] for trial in trials], dtype=np.float64),
        lengths=np.array([trial["lengths"] for trial in trials], dtype=np.int64),
        success=np.array(successes) if knows_success else None,
        wall_time=wall_time,
        settings=settings,
    )


def stack_runs(runs: AdaptationResult | Sequence[AdaptationResult]) -> np.ndarray:
    """
    Returns of several runs (training seeds) of one algorithm on the same tasks.

    :param runs: Their results, or one
    :return: Shape (n_runs, n_tasks, n_episodes)
    :raises ValueError: if there are none, or environments, tasks or numbers of episodes differ
    """
    runs = [runs] if isinstance(runs, AdaptationResult) else list(runs)
    if not runs:
        raise ValueError("runs must hold at least one result, got none.")
    for run in runs[1:]:
        for name, ours, theirs in zip(("env_id", "env_kwargs"), _played_in(runs[0]), _played_in(run), strict=True):
            if ours != theirs and None not in (ours, theirs):
                raise ValueError(f"runs must be of the same environment, got {name} {ours!r} and {theirs!r}.")
        if run.tasks != runs[0].tasks or run.n_episodes != runs[0].n_episodes:
            shapes = [f"{one.n_tasks} tasks x {one.n_episodes} episodes" for one in (runs[0], run)]
            differ = f"{shapes[0]} and {shapes[1]}" if shapes[0] != shapes[1] else "other tasks"
            raise ValueError(
                f"runs must be of the same tasks and episodes, got {differ}: evaluate them with the same seed, split, n_tasks "
                "and n_episodes."
            )
    return np.stack([run.returns for run in runs])


def _played_in(result: AdaptationResult) -> tuple[str | None, dict[str, Any] | None]:
    """
    :param result: Of ``evaluate_adaptation``.
    :return: Id of its environment, and those of its keywords that change what a return is worth; None if unknown.
    """
    env_id = result.settings.get("env_id")
    return env_id, None if env_id is None else relevant_kwargs(env_id, result.settings.get("env_kwargs"))


def _as_json(content: Any) -> str:
    """:return: As JSON; numbers of numpy as numbers, what else is no JSON as text."""
    return json.dumps(content, default=lambda value: value.item() if isinstance(value, np.generic) else str(value))


def adaptation_table(results: dict[str, AdaptationResult]) -> str:
    """
    The adaptation curves as text: a row per episode, a column per agent with the mean return and its 95 % interval over tasks.

    :param results: Result of each agent by its name; all with the same number of episodes
    :return: Lines joined by newlines
    :raises ValueError: if there are none, or their numbers of episodes differ
    """
    if len({result.n_episodes for result in results.values()}) != 1:
        numbers = {name: result.n_episodes for name, result in results.items()}
        raise ValueError(f"results must be of at least one agent, all with the same number of episodes, got {numbers}.")
    cells = {}
    for name, result in results.items():
        lower, upper = result.interval()
        cells[name] = [f"{m:.2f} [{lo:.2f}, {up:.2f}]" for m, lo, up in zip(result.curve, lower, upper, strict=True)]
    widths = {name: max(len(name), *map(len, column)) for name, column in cells.items()}
    n_episodes = next(iter(results.values())).n_episodes
    lines = ["episode  " + "  ".join(f"{name:>{widths[name]}}" for name in cells)]
    for episode in range(n_episodes):
        lines.append(f"{episode + 1:>7}  " + "  ".join(f"{cells[name][episode]:>{widths[name]}}" for name in cells))
    return "\n".join(lines)

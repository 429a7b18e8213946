"""Meta-World's meta-evaluation protocol: 10 episodes to adapt, then 3 that count (``metaworld.evaluation``, 3.1.1)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np

from sb3_trmrl.common.arguments import is_integer
from sb3_trmrl.common.evaluation import AdaptationResult, PredictsActions, evaluate_adaptation, make_trials
from sb3_trmrl.common.meta_learning_agent import Timestep, is_meta_learning_agent
from sb3_trmrl.common.statistics import curve_interval
from sb3_trmrl.envs.metaworld import METAWORLD_ENVS, MetaWorldEnv
from sb3_trmrl.envs.trial import TokenSpace

ADAPTATION_EPISODES = 10
EVALUATION_EPISODES = 3


class EnvironmentScore(NamedTuple):
    """How an agent did in the evaluation episodes of one environment."""

    n_tasks: int
    """Goals that were played."""
    success_rate: float
    """Part of the evaluation episodes with at least one successful step."""
    mean_return: float
    """Mean return of the evaluation episodes, in Meta-World's unit (without ``reward_scale``)."""


@dataclass(frozen=True)
class MetaWorldResult:
    """
    What an agent did in Meta-World's meta-evaluation.

    :param trials: All episodes of all tasks; first those of adaptation
    :param adaptation_episodes: How many these are
    """

    trials: AdaptationResult
    adaptation_episodes: int = ADAPTATION_EPISODES

    @property
    def success(self) -> np.ndarray:
        """Whether each evaluation episode succeeded in any step, bool, shape (n_tasks, evaluation_episodes)."""
        assert self.trials.success is not None
        return self.trials.success[:, self.adaptation_episodes :]

    @property
    def success_rate(self) -> float:
        """Mean of the environments' success rates: Meta-World's number."""
        return float(np.mean([score.success_rate for score in self.environments.values()]))

    @property
    def mean_return(self) -> float:
        """Mean of the environments' mean returns of the evaluation episodes; an episode ends with its first success."""
        return float(np.mean([score.mean_return for score in self.environments.values()]))

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """
        Percentile bootstrap interval of the success rate over tasks; the episodes of a task stay together.

        :param confidence: Probability mass of the interval, in (0, 1)
        :return: Lower and upper bound
        """
        lower, upper = curve_interval(self.success.mean(axis=1)[None, :, None], confidence)
        return float(lower[0]), float(upper[0])

    @property
    def environments(self) -> dict[str, EnvironmentScore]:
        """The scores of each environment by its name."""
        scale = float(self.trials.settings.get("env_kwargs", {}).get("reward_scale", 1.0))
        scores = {}
        for name, part in self.trials.by_environment().items():
            assert part.success is not None
            counted = slice(self.adaptation_episodes, None)
            scores[name] = EnvironmentScore(
                part.n_tasks, float(part.success[:, counted].mean()), float(part.returns[:, counted].mean()) / scale
            )
        return scores

    def table(self) -> str:
        """:return: Success rate and return by environment and over all, as text; lines joined by newlines."""
        lower, upper = self.interval()
        width = max(map(len, [*self.environments, "environment"]))
        lines = [f"{'environment':<{width}}  tasks  success  return"]
        for name, score in self.environments.items():
            lines.append(f"{name:<{width}}  {score.n_tasks:>5}  {score.success_rate:>7.1%}  {score.mean_return:>6.0f}")
        lines.append(f"{'all':<{width}}  {self.trials.n_tasks:>5}  {self.success_rate:>7.1%}  {self.mean_return:>6.0f}")
        return "\n".join([*lines, f"95 % interval of the success rate over tasks: {lower:.1%} to {upper:.1%}"])


def evaluate_metaworld(
    model: PredictsActions | Callable[[Any], np.ndarray],
    env_id: str,
    n_goals: int | None = None,
    split: str = "test",
    adaptation_episodes: int = ADAPTATION_EPISODES,
    evaluation_episodes: int = EVALUATION_EPISODES,
    deterministic: bool = True,
    seed: int = 0,
    env_kwargs: dict[str, Any] | None = None,
    n_envs: int = 50,
    progress_bar: bool = False,
) -> MetaWorldResult:
    """
    Meta-World's meta-evaluation of an agent that adapts by memory, on all test tasks.

    As ``metaworld.evaluation.metalearning_evaluation`` does it: the agent plays 10 episodes of a task, which count for
    nothing, and then 3 that end at the horizon or with their first success. An episode succeeds if any of its steps does.
    The memory goes on through all 13 episodes; that is how the agent adapts.

    Two things are better here. Every test goal is played once, not 10 random draws. And all 3 episodes of every task count:
    Meta-World's function stops after the *first three episodes to end in each environment*, whichever of its parallel tasks
    they belong to; as success ends an episode, those are the successful ones.

    For agents with Meta-World's own protocol (``MetaLearningAgent``) use Meta-World's function, or
    :func:`~sb3_trmrl.common.evaluation.evaluate_adaptation`.

    :param model: Anything with SB3's ``predict``, or a function of the observations ``(n_envs, ...)``
    :param env_id: ``"ML1-<environment>"``, ``"ML10-v3"`` or ``"ML45-v3"``
    :param n_goals: Play only the first so many of the 50 goals of each environment
    :param split: ``"test"``, or ``"train"`` for comparison
    :param adaptation_episodes: Episodes of a task that do not count
    :param evaluation_episodes: Episodes after these
    :param deterministic: Whether actions are the mode of the policy; Meta-World leaves that to the agent
    :param seed: Seed of the episodes, for models that draw actions: Meta-World's tasks leave nothing to chance
    :param env_kwargs: Further keyword arguments of the family: those of training, ``dict(reward_scale=0.1)`` say. What the
        protocol decides is not among them (``episodes_per_trial``, ``split``, ``tasks``, ``end_on_success_after``)
    :param n_envs: How many tasks are played side by side
    :param progress_bar: Show a progress bar of the episodes
    :return: Success rate, return, and both by environment
    :raises ValueError: for another environment, an agent with Meta-World's protocol and a bad number
    :raises ImportError: without the extra ``metaworld``
    """
    if is_meta_learning_agent(model):
        raise ValueError("model must have SB3's predict; one with Meta-World's own protocol is for metaworld.evaluation.")
    if env_id not in METAWORLD_ENVS:
        raise ValueError(f"env_id must be one of Meta-World's, 'ML1-reach-v3' or 'ML10-v3' say, got {env_id!r}.")
    for name, value, least in (
        ("adaptation_episodes", adaptation_episodes, 0),
        ("evaluation_episodes", evaluation_episodes, 1),
    ):
        if not is_integer(value, least):
            raise ValueError(f"{name} must be an integer >= {least}, got {value!r}.")
    if taken := {"episodes_per_trial", "split", "tasks", "end_on_success_after"} & set(env_kwargs or {}):
        raise ValueError(
            f"env_kwargs must not hold {sorted(taken)}: use adaptation_episodes, evaluation_episodes, n_goals and split of "
            "evaluate_metaworld."
        )
    env_kwargs = {**(env_kwargs or {}), "end_on_success_after": int(adaptation_episodes)}
    trials = make_trials(env_id, {**env_kwargs, "split": split})
    assert isinstance(trials.meta_env, MetaWorldEnv)
    goals = trials.meta_env.goals(split)
    trials.close()
    n_known = min(map(len, goals.values()))
    if n_goals is not None and (not is_integer(n_goals, 1) or n_goals > n_known):
        raise ValueError(f"n_goals must be an integer from 1 to {n_known} (or None for all), got {n_goals!r}.")
    tasks = [
        {"environment": environment, "split": split, "goal": goal}
        for goal in range(n_known if n_goals is None else n_goals)
        for environment in goals
    ]
    result = evaluate_adaptation(
        model,
        env_id,
        n_episodes=adaptation_episodes + evaluation_episodes,
        split=split,
        deterministic=deterministic,
        seed=seed,
        env_kwargs=env_kwargs,
        tasks=tasks,
        n_envs=n_envs,
        progress_bar=progress_bar,
    )
    return MetaWorldResult(result, int(adaptation_episodes))


class TokenObservation(gym.Wrapper[Any, Any, Any, Any]):
    """
    One of the environments that Meta-World's evaluation steps, with the tokens of our trials as observations.

    Put it around what ``metaworld.make_ml_envs`` makes of one environment. A trial begins with ``sample_tasks``, which
    Meta-World's evaluation calls for each new task.

    :param env: An environment with Meta-World's ``RandomTaskSelectWrapper`` or ``PseudoRandomTaskSelectWrapper``.
    """

    def __init__(self, env: gym.Env[Any, Any]):
        super().__init__(env)
        self.observation_space = TokenSpace(env.observation_space, env.action_space)
        assert isinstance(env.action_space, gym.spaces.Box)
        self._bounds = env.action_space.low, env.action_space.high
        self._previous = np.zeros(self.observation_space.action_size + 2, np.float32)

    def sample_tasks(self, **kwargs: Any) -> Any:
        """:return: As Meta-World's: first observation of the new task, and info."""
        self._previous[:] = 0.0
        observation, info = self.env.get_wrapper_attr("sample_tasks")(**kwargs)
        return self._token(observation), info

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """See :class:`gymnasium.Env`."""
        observation, info = self.env.reset(seed=seed, options=options)
        return self._token(observation), info

    def step(self, action: np.ndarray) -> tuple[np.ndarray, Any, bool, bool, dict[str, Any]]:
        """See :class:`gymnasium.Env`."""
        action = np.clip(action, *self._bounds)
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._previous[:-2], self._previous[-2], self._previous[-1] = action, reward, 0.0
        token = self._token(observation)
        # Seen by the first token of the next episode
        self._previous[-1] = float(terminated or truncated)
        return token, reward, terminated, truncated, info

    def _token(self, observation: np.ndarray) -> np.ndarray:
        return np.concatenate([observation, self._previous]).astype(np.float32)


class MemoryAgent:
    """
    One of our agents with Meta-World's protocol ``metaworld.evaluation.MetaLearningAgent``: it adapts by going on.

    The environments have to give tokens: :class:`TokenObservation`.

    :param model: Anything with SB3's ``predict``.
    :param deterministic: Whether actions are the mode of the policy.
    """

    def __init__(self, model: PredictsActions, deterministic: bool = True):
        self.model = model
        self.deterministic = deterministic
        self.init()

    def init(self) -> None:
        """New tasks: forget."""
        self._state: tuple[np.ndarray, ...] | None = None
        self._starts = True

    def adapt_action(self, observations: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """
        :param observations: Tokens, (n_envs, token_size).
        :return: Actions, (n_envs, 4), and nothing else.
        """
        starts = np.full(len(observations), self._starts)
        actions, self._state = self.model.predict(observations, self._state, starts, self.deterministic)
        self._starts = False
        return actions, {}

    def eval_action(self, observations: np.ndarray) -> np.ndarray:
        """
        :param observations: Tokens, (n_envs, token_size).
        :return: Actions, (n_envs, 4).
        """
        return self.adapt_action(observations)[0]

    def step(self, timestep: Timestep) -> None:
        """
        :param timestep: What happened; the next token tells it too.
        """

    def adapt(self) -> None:
        """Nothing: it has adapted while it acted."""

    def reset(self, env_mask: Sequence[bool] | np.ndarray) -> None:
        """
        :param env_mask: Where an episode of evaluation starts. The memory stays: the task is the same.
        """

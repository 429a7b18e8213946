"""Meta-World's protocol for agents that adapt by more than memory (MAML, say): ``metaworld.evaluation.MetaLearningAgent``."""

from typing import Any, NamedTuple, Protocol, TypeGuard

import numpy as np
from stable_baselines3.common.vec_env import VecEnv

from sb3_trmrl.common.arguments import is_integer
from sb3_trmrl.envs.meta_env import Task

PROTOCOL = ("init", "adapt_action", "step", "adapt", "eval_action", "reset")


class Timestep(NamedTuple):
    """What an agent sees of a step, of all tasks at once: the fields of ``metaworld.evaluation.Timestep``."""

    observation: np.ndarray
    """Before the step, (n_envs, ...)."""
    action: np.ndarray
    """(n_envs, ...)."""
    reward: np.ndarray
    """(n_envs,)."""
    terminated: np.ndarray
    """Whether the episode really ended, bool, (n_envs,)."""
    truncated: np.ndarray
    """Whether it was cut by its time limit, bool, (n_envs,)."""
    aux_policy_outputs: dict[str, np.ndarray]
    """The second of what ``adapt_action`` returned."""


class MetaLearningAgent(Protocol):
    """The methods of ``metaworld.evaluation.MetaLearningAgent`` (3.1.1); Meta-World need not be installed."""

    def init(self) -> None:
        """Back to the meta-trained parameters: a new set of tasks follows."""

    def adapt_action(self, observations: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Actions for gathering experience, (n_envs, ...), and what else :meth:`step` is to be given back."""

    def step(self, timestep: Timestep) -> None:
        """Take in one step of experience."""

    def adapt(self) -> None:
        """Adapt to the experience since the last :meth:`adapt`."""

    def eval_action(self, observations: np.ndarray) -> np.ndarray:
        """Actions of the adapted agent, (n_envs, ...)."""

    def reset(self, env_mask: np.ndarray) -> None:
        """Episodes of evaluation start where the mask is True, bool, (n_envs,)."""


def is_meta_learning_agent(agent: Any) -> TypeGuard[MetaLearningAgent]:
    """
    :param agent: Anything.
    :return: Whether it has all methods of :class:`MetaLearningAgent` (and no ``predict``, which goes first).
    """
    return not hasattr(agent, "predict") and all(callable(getattr(agent, name, None)) for name in PROTOCOL)


class AdaptingAgent:
    """
    A :class:`MetaLearningAgent` for ``evaluate_adaptation``, with the loop of Meta-World's own ``metalearning_evaluation``:
    ``adaptation_steps`` times play ``adaptation_episodes`` episodes with ``adapt_action`` and ``adapt``, then play the rest of
    the trial with ``eval_action``.

    Each of these phases starts with a reset, and ends when every task has had its episodes. Tasks that are through sooner play
    on and show that to the agent, as in Meta-World; in the result it does not count.

    :param agent: The agent; it sees what the environment gives, on our ids tokens.
    :param adaptation_steps: How often it adapts.
    :param adaptation_episodes: Episodes before each adaptation.
    :raises ValueError: On numbers below 1.
    """

    def __init__(self, agent: MetaLearningAgent, adaptation_steps: int = 1, adaptation_episodes: int = 10):
        for name, value in (("adaptation_steps", adaptation_steps), ("adaptation_episodes", adaptation_episodes)):
            if not is_integer(value, 1):
                raise ValueError(f"{name} must be an integer >= 1, got {value!r}.")
        self.agent = agent
        self.adaptation_steps = adaptation_steps
        self.adaptation_episodes = adaptation_episodes

    def play(self, vec_env: VecEnv, tasks: list[Task], n_episodes: int, seed: int) -> list[dict[str, Any]]:
        """
        :param vec_env: A slot for each task, whose trials have one episode.
        :param tasks: The tasks.
        :param n_episodes: Episodes of adaptation and evaluation together.
        :param seed: Slot ``i`` is seeded with ``seed + i``.
        :return: ``task``, ``returns``, ``lengths`` and perhaps ``success`` of each task, as ``info["trial"]`` has them.
        :raises ValueError: If there is no episode left for evaluation.
        """
        n_adapting = self.adaptation_steps * self.adaptation_episodes
        if n_episodes <= n_adapting:
            raise ValueError(
                f"n_episodes must be more than the {n_adapting} episodes of adaptation ({self.adaptation_steps} x "
                f"{self.adaptation_episodes}), so that some are left for evaluation, got {n_episodes}."
            )
        for slot, task in enumerate(tasks):
            vec_env.env_method("set_tasks", [task], indices=slot)
        vec_env.seed(seed)
        self.agent.init()
        episodes: list[list[dict[str, Any]]] = [[] for _ in tasks]
        for _ in range(self.adaptation_steps):
            self._phase(vec_env, episodes, self.adaptation_episodes, adapting=True)
            self.agent.adapt()
        self._phase(vec_env, episodes, n_episodes - n_adapting, adapting=False)
        trials: list[dict[str, Any]] = []
        for task_episodes in episodes:
            trial: dict[str, Any] = {"task": task_episodes[0]["task"]}
            for name in ("returns", "lengths"):
                trial[name] = [value for episode in task_episodes for value in episode[name]]
            if any("success" in episode for episode in task_episodes):  # a family may tell success only where there is some
                trial["success"] = [won for episode in task_episodes for won in episode.get("success", [False])]
            trials.append(trial)
        return trials

    def _phase(self, vec_env: VecEnv, episodes: list[list[dict[str, Any]]], n_episodes: int, adapting: bool) -> None:
        wanted = len(episodes[0]) + n_episodes
        observations: Any = vec_env.reset()
        if not adapting:
            self.agent.reset(np.ones(vec_env.num_envs, dtype=bool))
        while any(len(task_episodes) < wanted for task_episodes in episodes):
            actions, aux = self.agent.adapt_action(observations) if adapting else (self.agent.eval_action(observations), {})
            next_observations, rewards, dones, infos = vec_env.step(actions)
            truncated = np.array([info["TimeLimit.truncated"] for info in infos], dtype=bool)
            if adapting:
                self.agent.step(Timestep(observations, actions, rewards, dones & ~truncated, truncated, aux))
            elif dones.any():
                self.agent.reset(dones)
            for slot in np.flatnonzero(dones).tolist():
                if len(episodes[slot]) < wanted:
                    episodes[slot].append(infos[slot]["trial"])
            observations = next_observations

"""Small task families whose every number is known, for tests."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_trmrl.envs.meta_env import MetaEnv, Task
from sb3_trmrl.envs.trial import TrialWrapper
from sb3_trmrl.memory_encoders import MEMORY_ENCODERS

ACTION_SPACES: dict[str, spaces.Space[Any]] = {
    "box": spaces.Box(-1.0, 1.0, (2,), dtype=np.float32),
    "discrete": spaces.Discrete(3),
    "multi_discrete": spaces.MultiDiscrete([2, 3]),
    "multi_binary": spaces.MultiBinary(3),
}


class Counter(MetaEnv):
    """
    The observation counts the steps of the episode (and carries noise, if wanted); every step pays ``reward``; the episode
    really ends after ``length`` steps, or is cut by the horizon.
    """

    splits = ("train", "test")
    task_shapes = {"reward": (), "length": ()}

    def __init__(self, horizon: int = 4, action_space: str = "box", noise: float = 0.0, image: bool = False):
        super().__init__(horizon)
        self.noise, self.image = noise, image
        if image:
            self.observation_space: spaces.Space[Any] = spaces.Dict(
                {"camera": spaces.Box(0, 255, (3, 36, 36), np.uint8), "count": spaces.Box(-np.inf, np.inf, (2,), np.float32)}
            )
        else:
            self.observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.action_space = ACTION_SPACES[action_space]
        self.count = 0

    def _sample_task(self, split: str) -> Task:
        return {"reward": float(self.np_random.normal()), "length": float(self.np_random.integers(2, self.horizon + 3))}

    def _observation(self) -> Any:
        count = np.array([self.count, self.noise * self.np_random.normal()], dtype=np.float32)
        if not self.image:
            return count
        return {"camera": self.np_random.integers(0, 256, (3, 36, 36), dtype=np.uint8), "count": count}

    def _reset(self) -> Any:
        self.count = 0
        return self._observation()

    def _step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.count += 1
        return self._observation(), self._task["reward"], self.count >= self._task["length"], False, {}


class ForeverOne(gym.Env[np.ndarray, np.int64]):
    """A plain environment without end that pays 1 at every step."""

    observation_space = spaces.Box(-1.0, 1.0, (1,), np.float32)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        return self.observe(), {}

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        return self.observe(), 1.0, False, False, {}

    def observe(self) -> np.ndarray:
        return np.zeros(1, np.float32)


class NoisyForever(ForeverOne):
    """The same with an observation that is different at every step."""

    def observe(self) -> np.ndarray:
        return self.np_random.uniform(-1.0, 1.0, 1).astype(np.float32)


def counter_vec_env(n_envs: int, episodes_per_trial: int = 2, tasks: list[Task] | None = None, **kwargs: Any) -> DummyVecEnv:
    """:return: ``n_envs`` slots of :class:`Counter` trials."""
    return DummyVecEnv(
        [lambda: TrialWrapper(Counter(**kwargs), episodes_per_trial=episodes_per_trial, tasks=tasks) for _ in range(n_envs)]
    )


class Cue(MetaEnv):
    """
    The first step of a trial shows one of four cues, and never again; naming it at the last step of the *second* episode
    pays 1, everything else 0. Play it through :func:`cue_trials`, where who forgets can only guess: 0.25.
    """

    splits = ("train", "test")
    task_shapes = {"cue": ()}
    chance = 0.25

    def __init__(self, horizon: int = 2):
        super().__init__(horizon)
        self.observation_space = spaces.Box(0.0, 1.0, (5,), np.float32)
        self.action_space = spaces.Discrete(4)

    def _sample_task(self, split: str) -> Task:
        return {"cue": float(self.np_random.integers(4))}

    def _apply_task(self, task: Task) -> None:
        self.episode = 0

    def _observation(self) -> np.ndarray:
        observation = np.zeros(5, np.float32)
        if self.episode == 1 and self.steps == 0:
            observation[int(self._task["cue"])] = 1.0
        observation[4] = float(self.episode == 2)
        return observation

    def _reset(self) -> np.ndarray:
        self.episode += 1
        self.steps = 0
        return self._observation()

    def _step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        named = self.episode == 2 and self.steps == self.horizon and action == self._task["cue"]
        return self._observation(), float(named), False, False, {}


class OnlyTheAnswer(gym.ActionWrapper[Any, Any, Any]):
    """
    Plays 0 until the last step of the trial. Without it an agent without memory can pass the cue on to itself: it names the
    cue at once, reads that in ``prev_action`` at the next step, names it again, and so on to the end.
    """

    def __init__(self, env: TrialWrapper):
        super().__init__(env)
        self.n_steps = env.meta_env.horizon * env.episodes_per_trial

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        self.steps = 0
        return super().reset(**kwargs)

    def action(self, action: Any) -> Any:
        self.steps += 1
        return action if self.steps == self.n_steps else 0


def cue_trials(horizon: int = 2, **trial_kwargs: Any) -> gym.Env[Any, Any]:
    """:return: Trials of :class:`Cue` in which only a memory of the first step tells the answer, ``2 * horizon`` steps on."""
    return OnlyTheAnswer(TrialWrapper(Cue(horizon), **trial_kwargs))


_TRANSFORMER: dict[str, Any] = dict(embed_dim=8, n_heads=2, n_layers=2, ff_dim=16)
#: Small memories of every kind, which forget what is more than a few steps old: name of the encoder and keyword arguments
ENCODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "window": ("tfixup", dict(attention="window", memory_length=4, **_TRANSFORMER)),
    "window-learned-pre": (
        "tfixup",
        dict(attention="window", memory_length=4, positions="learned", normalization="pre", **_TRANSFORMER),
    ),
    **{
        f"trial-{positions}-{normalization}": (
            "tfixup",
            dict(memory_length=3, positions=positions, normalization=normalization, **_TRANSFORMER),
        )
        for positions in ("rotary", "sinusoidal", "learned")
        for normalization in ("none", "pre")
    },
    "trial-long": ("tfixup", dict(memory_length=50, **_TRANSFORMER)),
    "trial-one": ("tfixup", dict(memory_length=1, positions="sinusoidal", **_TRANSFORMER)),
    "gru": ("gru", dict(hidden_size=8)),
    "gru-embedding-truncated": ("gru", dict(hidden_size=8, n_layers=2, embedding=[6], context_length=5, truncation=3)),
    "lstm": ("lstm", dict(hidden_size=8)),
    "lstm-embedding-truncated": ("lstm", dict(hidden_size=8, n_layers=2, embedding=[6, 5], context_length=5, truncation=3)),
    "gtrxl": ("gtrxl", dict(memory_length=3, **_TRANSFORMER)),
    "gtrxl-segments": ("gtrxl", dict(memory_length=4, segment_length=3, **_TRANSFORMER)),
    "snail": ("snail", dict(embed_dim=6, filters=4, key_dim=4, value_dim=4, memory_length=4)),
}
#: Not all of them need be there
ENCODERS = {label: choice for label, choice in ENCODERS.items() if choice[0] in MEMORY_ENCODERS}

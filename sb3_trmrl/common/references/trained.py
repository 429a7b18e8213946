"""References that are trained: PPO without memory on what each may see."""

import warnings
from collections.abc import Sequence
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
from sb3_trmrl.common.evaluation import PredictsActions, make_trials
from sb3_trmrl.envs.meta_env import Task
from sb3_trmrl.envs.mujoco.base import MujocoMetaEnv
from sb3_trmrl.envs.registration import TASK_FAMILIES
from sb3_trmrl.envs.trial import TokenSpace
from sb3_trmrl.memory_encoders import WindowMemoryEncoder
from sb3_trmrl.trmrl_ppo import TrMRLPPO


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


def training_settings(env_id: str, conf_file: Path | None = None) -> dict[str, Any]:
    """
    :param env_id: A registered id.
    :param conf_file: A yaml file with a block for it; ``hyperparams/trmrl.yml`` if None.
    :return: PPO's settings for the references: those of TrMRL on the same family. On the MuJoCo families perceptrons learn
        better from twice as many epochs and minibatches half as large than ``trmrl.yml`` says (docs/results.md), and a
        reference has to be as good as it can be
    """
    from sb3_trmrl.zoo.settings import read_settings

    if conf_file is not None:
        return read_settings(conf_file, env_id)
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
    conf_file: Path | None = None,
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
    :param conf_file: Where PPO's settings are, see :func:`training_settings`.
    :return: The trained agent. The oracle's observation has the task appended, see :class:`SeesTasks`; where the family has
        OOD tasks, half of its training is on these.
    :raises ValueError: For observations that are no vectors.
    """
    settings = training_settings(env_id, conf_file)
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
        family = make_trials(env_id, env_kwargs or {})
        family.close()
        if "ood" in family.meta_env.splits:
            # What knows the task has to know it out there too, or it would be no upper bound: every other slot
            for slot in range(0, env.num_envs, 2):
                env.env_method("set_wrapper_attr", "split", "ood", indices=slot)
        env = TaskInObservation(env)
        assert env.observation_space.shape is not None
        columns += range(space.shape[0], env.observation_space.shape[0])
    with warnings.catch_warnings():
        # The oracle's perceptrons do with previous actions and rewards that are normalised like observations
        warnings.filterwarnings("ignore", "The policy normalises the previous action")
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

"""Rollout buffer that cuts working memories."""

from collections.abc import Generator

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.type_aliases import PyTorchObs

from sb3_trmrl.common.type_aliases import MemoryRolloutBufferSamples, MemoryWindows
from sb3_trmrl.memory_encoders.base import window_indices


class WorkingMemoryRolloutBuffer(RolloutBuffer):
    """
    Rollout buffer that hands out working memories: for each step the window of the last ``memory_length`` tokens.

    Every token is stored once and windows are gathered by index, so memory is O(n_steps), not O(n_steps x memory_length).
    The last ``context_length`` tokens of a rollout are kept in front of the next one, so windows reach back across the
    rollout boundary. How far a window reaches is carried explicitly, in :attr:`memory_lengths`.

    :param buffer_size: Number of steps per environment (``n_steps``)
    :param observation_space: Observation space, Box or Dict
    :param action_space: Action space
    :param device: PyTorch device
    :param gae_lambda: Factor for trade-off of bias vs variance for Generalized Advantage Estimator
    :param gamma: Discount factor
    :param n_envs: Number of parallel environments
    :param context_length: How many tokens before the current one belong to its window: ``memory_length - 1``
    """

    #: Observations by key ("token" unless the space is a Dict), (context_length + n_steps, n_envs, ...)
    tokens: dict[str, np.ndarray]
    #: Tokens in memory at each step, the current one included, (context_length + n_steps, n_envs)
    memory_lengths: np.ndarray

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        device: th.device | str = "auto",
        gae_lambda: float = 1,
        gamma: float = 0.99,
        n_envs: int = 1,
        context_length: int = 0,
    ):
        self.context_length = context_length
        self.is_dict = isinstance(observation_space, spaces.Dict)
        parts = observation_space.spaces if isinstance(observation_space, spaces.Dict) else {"token": observation_space}
        rows = context_length + buffer_size
        self.tokens = {key: np.zeros((rows, n_envs, *space.shape), dtype=space.dtype) for key, space in parts.items()}  # type: ignore[misc]
        self.memory_lengths = np.zeros((rows, n_envs), dtype=np.int64)
        self.pos = 0
        super().__init__(buffer_size, observation_space, action_space, device, gae_lambda, gamma, n_envs)

    def reset(self) -> None:
        """Empty the buffer, but keep the last ``context_length`` tokens as the context of what comes next."""
        kept = slice(self.pos, self.pos + self.context_length)
        for array in (*self.tokens.values(), self.memory_lengths):
            # The two ranges overlap if the rollout was shorter than the context
            array[: self.context_length] = array[kept].copy()
        self.actions = np.zeros((self.buffer_size, self.n_envs, self.action_dim), dtype=self.action_space.dtype)
        for name in ("rewards", "returns", "episode_starts", "values", "log_probs", "advantages"):
            setattr(self, name, np.zeros((self.buffer_size, self.n_envs), dtype=np.float32))
        self.generator_ready = False
        self.pos = 0
        self.full = False

    def add(  # type: ignore[override]
        self,
        obs: PyTorchObs,
        action: np.ndarray,
        reward: np.ndarray,
        episode_start: np.ndarray,
        value: th.Tensor,
        log_prob: th.Tensor,
        memory_start: th.Tensor,
    ) -> None:
        """
        :param obs: Tokens as the policy saw them, (n_envs, ...)
        :param action: Actions, (n_envs, ...)
        :param reward: Rewards, (n_envs,)
        :param episode_start: Whether a trial starts here, (n_envs,)
        :param value: Estimated values, (n_envs, 1)
        :param log_prob: Log probabilities of the actions, (n_envs,)
        :param memory_start: Whether the memory was emptied before this token, (n_envs,)
        """
        row = self.context_length + self.pos
        for key, part in (obs if isinstance(obs, dict) else {"token": obs}).items():
            self.tokens[key][row] = part.cpu().numpy().reshape(self.tokens[key].shape[1:])
        before = self.memory_lengths[row - 1] if row > 0 else np.zeros(self.n_envs, dtype=np.int64)
        self.memory_lengths[row] = np.where(memory_start.cpu().numpy(), 1, before + 1)
        self.actions[self.pos] = action.reshape(self.n_envs, self.action_dim)
        self.rewards[self.pos] = reward
        self.episode_starts[self.pos] = episode_start
        self.values[self.pos] = value.cpu().numpy().flatten()
        self.log_probs[self.pos] = log_prob.cpu().numpy().flatten()
        self.pos += 1
        self.full = self.pos == self.buffer_size

    def context(self) -> MemoryWindows:
        """
        What is remembered before the first step of the rollout.

        :return: The last ``context_length`` tokens, (n_envs, context_length, ...), and how many of them, counted from the
            newest, are in memory, (n_envs,)
        """
        tokens = {
            key: th.as_tensor(array[: self.context_length].swapaxes(0, 1), device=self.device)
            for key, array in self.tokens.items()
        }
        if self.context_length == 0:
            lengths = np.zeros(self.n_envs, dtype=np.int64)
        else:
            lengths = np.minimum(self.memory_lengths[self.context_length - 1], self.context_length)
        return MemoryWindows(tokens if self.is_dict else tokens["token"], th.as_tensor(lengths, device=self.device))

    def rescale(self, factor: float) -> None:
        """
        Express rewards, values, advantages and returns in another unit.

        :param factor: What to multiply them by
        """
        for array in (self.rewards, self.values, self.advantages, self.returns):
            array *= factor

    def monte_carlo_returns(self, last_values: np.ndarray, dones: np.ndarray) -> np.ndarray:
        """
        Discounted return from each step to the end of its trial, over inner episode boundaries; a trial that goes on behind
        the rollout is continued with its value.

        :param last_values: Values after the last step, (n_envs,)
        :param dones: Whether the trial ended with the last step, (n_envs,)
        :return: Shape (n_steps, n_envs)
        """
        returns = np.zeros_like(self.rewards)
        following = last_values * (1.0 - dones)
        for step in reversed(range(self.buffer_size)):
            returns[step] = self.rewards[step] + self.gamma * following
            following = returns[step] * (1.0 - self.episode_starts[step])
        return returns

    def get(self, batch_size: int | None = None) -> Generator[MemoryRolloutBufferSamples, None, None]:  # type: ignore[override]
        """
        Minibatches of steps in random order, each step with its working memory.

        :param batch_size: Number of steps per minibatch; all steps at once if None
        :return: Generator over one epoch
        """
        assert self.full, "The rollout buffer must be full before it is sampled"
        n_samples = self.buffer_size * self.n_envs
        # One copy to the device per epoch; (rows, n_envs, ...) -> (rows * n_envs, ...)
        flat = {key: th.as_tensor(array, device=self.device).flatten(0, 1) for key, array in self.tokens.items()}
        lengths = th.as_tensor(self.memory_lengths[self.context_length :], device=self.device).flatten()
        lengths = lengths.clamp(max=self.context_length + 1)
        # Floats as in SB3: Bernoulli's log probability takes no integers
        actions = th.as_tensor(self.actions.astype(np.float32, copy=False), device=self.device).flatten(0, 1)
        steps = th.as_tensor(
            np.stack([self.values, self.log_probs, self.advantages, self.returns], axis=-1), device=self.device
        ).flatten(0, 1)

        permutation = th.randperm(n_samples).to(self.device)
        for indices in permutation.split(batch_size or n_samples):
            # Step i of the flattened rollout is row context_length + i // n_envs of environment i % n_envs
            rows = self.context_length + indices // self.n_envs
            window_rows = window_indices(rows, lengths[indices], self.context_length + 1)
            window_flat = window_rows * self.n_envs + (indices % self.n_envs).unsqueeze(1)
            windows = {key: array[window_flat] for key, array in flat.items()}
            old_values, old_log_prob, advantages, returns = steps[indices].unbind(dim=1)
            yield MemoryRolloutBufferSamples(
                MemoryWindows(windows if self.is_dict else windows["token"], lengths[indices]),
                actions[indices],
                old_values,
                old_log_prob,
                advantages,
                returns,
            )

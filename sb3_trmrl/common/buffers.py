"""Rollout buffers that hand out what was remembered: working memories or slices of trials."""

from abc import ABC, abstractmethod
from collections.abc import Generator
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.preprocessing import get_obs_shape
from stable_baselines3.common.type_aliases import PyTorchObs

from sb3_trmrl.common.type_aliases import MemoryContext, MemoryRolloutBufferSamples, MemoryWindows, TrialSlices
from sb3_trmrl.memory_encoders.base import window_indices


class MemoryRolloutBuffer(RolloutBuffer, ABC):
    """
    Rollout buffer that keeps the last ``context_length`` tokens of a rollout in front of the next one, so that memories reach
    back across the rollout boundary. How far they reach is carried explicitly, in :attr:`memory_lengths`.

    :param buffer_size: Number of steps per environment (``n_steps``)
    :param observation_space: Observation space, Box or Dict
    :param action_space: Action space
    :param device: PyTorch device
    :param gae_lambda: Factor for trade-off of bias vs variance for Generalized Advantage Estimator
    :param gamma: Discount factor
    :param n_envs: Number of parallel environments
    :param context_length: How many tokens before the current one can influence action and value
    """

    #: Observations by key ("token" unless the space is a Dict), (context_length + n_steps, n_envs, ...)
    tokens: dict[str, np.ndarray]
    #: Tokens in memory at each step, the current one included, (context_length + n_steps, n_envs)
    memory_lengths: np.ndarray
    #: Tokens in memory before the rollout, (n_envs,)
    lengths_before: np.ndarray
    #: What :meth:`rescale` has multiplied by since the rollout began
    factor: float

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
        get_obs_shape(observation_space)  # refuses what SB3's algorithms refuse, a Tuple
        self.context_length = context_length
        self.is_dict = isinstance(observation_space, spaces.Dict)
        parts = observation_space.spaces if isinstance(observation_space, spaces.Dict) else {"token": observation_space}
        rows = context_length + buffer_size
        self.tokens = {key: np.zeros((rows, n_envs, *space.shape), dtype=space.dtype) for key, space in parts.items()}  # type: ignore[misc]
        self.memory_lengths = np.zeros((rows, n_envs), dtype=np.int64)
        self.lengths_before = np.zeros(n_envs, dtype=np.int64)
        self.pos = 0
        super().__init__(buffer_size, observation_space, action_space, device, gae_lambda, gamma, n_envs)

    def reset(self) -> None:
        """Empty the buffer, but keep the last ``context_length`` tokens as the context of what comes next."""
        self.set_context_state(self.context_state())
        # Those of a Box as the policy gave them: rounded to integers they had other probabilities
        dtype = np.float32 if isinstance(self.action_space, spaces.Box) else self.action_space.dtype
        self.actions = np.zeros((self.buffer_size, self.n_envs, self.action_dim), dtype=dtype)
        for name in ("rewards", "returns", "episode_starts", "values", "log_probs", "advantages"):
            setattr(self, name, np.zeros((self.buffer_size, self.n_envs), dtype=np.float32))
        self.factor = 1.0
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
        :param episode_start: Whether nothing that came before has an influence on the return: a trial starts here, or an
            episode after a real end that is one for the return, too; (n_envs,)
        :param value: Estimated values, (n_envs, 1)
        :param log_prob: Log probabilities of the actions, (n_envs,)
        :param memory_start: Whether the memory was emptied before this token, (n_envs,)
        """
        row = self.context_length + self.pos
        for key, part in (obs if isinstance(obs, dict) else {"token": obs}).items():
            self.tokens[key][row] = part.cpu().numpy().reshape(self.tokens[key].shape[1:])
        before = self.lengths_before if self.pos == 0 else self.memory_lengths[row - 1]
        self.memory_lengths[row] = np.where(memory_start.cpu().numpy(), 1, before + 1)
        self.actions[self.pos] = action.reshape(self.n_envs, self.action_dim)
        self.rewards[self.pos] = reward
        self.episode_starts[self.pos] = episode_start
        self.values[self.pos] = value.cpu().numpy().flatten()
        self.log_probs[self.pos] = log_prob.cpu().numpy().flatten()
        self.pos += 1
        self.full = self.pos == self.buffer_size

    def context_state(self) -> dict[str, Any]:
        """
        :return: What :meth:`reset` keeps, as data: the last tokens by key, (reach, n_envs, ...), and how many of them each
            memory holds, (n_envs,). ``reach`` is what the longest memory holds, at most ``context_length``.
        """
        lengths = self.memory_lengths[self.context_length + self.pos - 1] if self.pos > 0 else self.lengths_before
        end = self.pos + self.context_length
        kept = slice(end - min(int(lengths.max()), self.context_length), end)
        return {"tokens": {key: array[kept].copy() for key, array in self.tokens.items()}, "lengths": lengths.copy()}

    def set_context_state(self, state: dict[str, Any]) -> None:
        """
        :param state: What :meth:`context_state` returned, here or in another process
        :raises ValueError: if it does not fit
        """
        tokens, lengths = state["tokens"], state["lengths"]
        if (
            lengths.shape != (self.n_envs,)
            or lengths.dtype != np.int64
            or lengths.min() < 0
            or set(tokens) != set(self.tokens)
        ):
            raise ValueError(
                f"the context must hold {sorted(self.tokens)} and {self.n_envs} lengths, got {sorted(tokens)}, {lengths}"
            )
        reach = min(int(lengths.max()), self.context_length)
        for key, array in self.tokens.items():
            if tokens[key].shape != (reach, *array.shape[1:]) or tokens[key].dtype != array.dtype:
                raise ValueError(
                    f"the context's {key} must be {array.dtype} {(reach, *array.shape[1:])}, got {tokens[key].dtype} "
                    f"{tokens[key].shape}"
                )
            array[self.context_length - reach : self.context_length] = tokens[key]
        self.lengths_before = lengths.copy()

    def context(self, memory_starts: np.ndarray) -> MemoryContext:
        """
        :param memory_starts: Whether the memory is emptied before the first step of the rollout, (n_envs,)
        :return: What is remembered before it: no more rows than some memory holds
        """
        lengths = np.where(memory_starts, 0, self.lengths_before)
        reach = min(int(lengths.max()), self.context_length)
        rows = slice(self.context_length - reach, self.context_length)
        tokens = {key: th.as_tensor(array[rows].swapaxes(0, 1), device=self.device) for key, array in self.tokens.items()}
        return MemoryContext(self._observations(tokens), th.as_tensor(lengths, device=self.device))

    def _observations(self, parts: dict[str, th.Tensor]) -> PyTorchObs:
        return parts if self.is_dict else parts["token"]

    def rescale(self, factor: float) -> None:
        """
        Express rewards, values, advantages and returns in another unit. Old values are handed out as they were predicted: the
        value network is what they are compared with, and it has not heard of the other unit.

        :param factor: What to multiply them by
        """
        self.factor *= factor
        for array in (self.rewards, self.values, self.advantages, self.returns):
            array *= factor

    def monte_carlo_returns(self, last_values: np.ndarray, dones: np.ndarray) -> np.ndarray:
        """
        Discounted return from each step to the end of its trial, over inner episode boundaries (but for those that
        :meth:`add` was told of); a trial that goes on behind the rollout is continued with its value.

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

    def _steps_on_device(self) -> tuple[dict[str, th.Tensor], th.Tensor, th.Tensor]:
        """
        One copy to the device per epoch.

        :return: Tokens by key, (rows * n_envs, ...), actions, (n_steps * n_envs, action_dim), and (n_steps * n_envs, 4): old
            values as predicted, old log probabilities, advantages, returns. Steps (rows) are the slow axis, environments the
            fast one.
        """
        assert self.full, "The rollout buffer must be full before it is sampled"
        tokens = {key: th.as_tensor(array, device=self.device).flatten(0, 1) for key, array in self.tokens.items()}
        # Floats as in SB3: Bernoulli's log probability takes no integers
        actions = th.as_tensor(self.actions.astype(np.float32, copy=False), device=self.device).flatten(0, 1)
        numbers = np.stack([self.values / self.factor, self.log_probs, self.advantages, self.returns], axis=-1)
        return tokens, actions, th.as_tensor(numbers, device=self.device).flatten(0, 1)

    @abstractmethod
    def get(self, batch_size: int | None = None) -> Generator[MemoryRolloutBufferSamples, None, None]:  # type: ignore[override]
        """
        Minibatches in random order, each step of the rollout once.

        :param batch_size: Number of steps per minibatch; all steps at once if None
        :return: Generator over one epoch
        """


class WorkingMemoryRolloutBuffer(MemoryRolloutBuffer):
    """
    Rollout buffer that hands out working memories: for each step the window of the last ``context_length + 1`` tokens.

    Every token is stored once and windows are gathered by index, so memory is O(n_steps), not O(n_steps x memory_length).
    Parameters as for :class:`MemoryRolloutBuffer`.
    """

    def get(self, batch_size: int | None = None) -> Generator[MemoryRolloutBufferSamples, None, None]:  # type: ignore[override]
        """
        Minibatches of steps in random order, each step with its working memory.

        :param batch_size: Number of steps per minibatch; all steps at once if None
        :return: Generator over one epoch
        """
        tokens, actions, numbers = self._steps_on_device()
        lengths = th.as_tensor(self.memory_lengths[self.context_length :], device=self.device).flatten()
        lengths = lengths.clamp(max=self.context_length + 1)
        n_samples = self.buffer_size * self.n_envs

        permutation = th.randperm(n_samples).to(self.device)
        for indices in permutation.split(batch_size or n_samples):
            # Step i of the flattened rollout is row context_length + i // n_envs of environment i % n_envs
            rows = self.context_length + indices // self.n_envs
            window_rows = window_indices(rows, lengths[indices], self.context_length + 1)
            window_flat = window_rows * self.n_envs + (indices % self.n_envs).unsqueeze(1)
            windows = {key: array[window_flat] for key, array in tokens.items()}
            yield MemoryRolloutBufferSamples(
                MemoryWindows(self._observations(windows), lengths[indices]),
                actions[indices],
                *numbers[indices].unbind(dim=1),
            )


class TrialSliceRolloutBuffer(MemoryRolloutBuffer):
    """
    Rollout buffer that hands out slices of trials: all that one memory went through within the rollout, behind the context
    that it had before. Parameters as for :class:`MemoryRolloutBuffer`.
    """

    def trial_slices(self) -> np.ndarray:
        """
        :return: One row per slice, (n_slices, 4): environment, first row in :attr:`tokens`, row behind the last, and how many
            tokens the memory held before the first, int64
        """
        starts = self.memory_lengths[self.context_length :] == 1
        # What was in memory before the rollout goes on in it
        starts[0] = True
        # Environment by environment, in order of time
        envs, steps = np.nonzero(starts.T)
        ends = np.append(steps[1:], self.buffer_size)
        ends[np.append(envs[1:] != envs[:-1], True)] = self.buffer_size
        before = self.memory_lengths[self.context_length + steps, envs] - 1
        return np.stack([envs, self.context_length + steps, self.context_length + ends, before], axis=1)

    def get(self, batch_size: int | None = None) -> Generator[MemoryRolloutBufferSamples, None, None]:  # type: ignore[override]
        """
        Minibatches of whole trial slices in random order. There are as many as ``batch_size`` asks for, about ``batch_size``
        steps each: more or less by up to one slice.

        :param batch_size: Number of steps per minibatch; all steps at once if None
        :return: Generator over one epoch
        """
        tokens, actions, numbers = self._steps_on_device()
        slices = th.as_tensor(self.trial_slices())
        slices = slices[th.randperm(len(slices))]
        n_steps = slices[:, 2] - slices[:, 1]
        # A slice belongs to the minibatch in which its middle lies, all slices laid end to end
        middle = n_steps.cumsum(0) - n_steps / 2
        minibatch = (middle / (batch_size or self.buffer_size * self.n_envs)).long()
        for part in slices.to(self.device).split(minibatch.unique_consecutive(return_counts=True)[1].tolist()):
            envs, first, end, before = part.unbind(dim=1)
            context = before.clamp(max=self.context_length)
            time = th.arange(int((end - first + context).max()), device=self.device)
            # (n_slices, seq_len); what lies behind a slice's end repeats its last token
            rows = th.minimum((first - context).unsqueeze(1) + time, (end - 1).unsqueeze(1))
            sequences = {key: array[rows * self.n_envs + envs.unsqueeze(1)] for key, array in tokens.items()}
            steps = (time >= context.unsqueeze(1)) & (time < (context + end - first).unsqueeze(1))
            indices = ((rows - self.context_length) * self.n_envs + envs.unsqueeze(1))[steps]
            yield MemoryRolloutBufferSamples(
                TrialSlices(self._observations(sequences), before - context, steps),
                actions[indices],
                *numbers[indices].unbind(dim=1),
            )

"""Running statistics that live in the policy: saved with its weights, frozen while it acts and trains."""

import math

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn

from sb3_trmrl.envs.trial import TokenSpace


class RunningMoments(nn.Module):
    """
    Mean and variance of every feature over all batches seen, merged by the parallel algorithm of Chan et al. (1979).

    :param size: Number of features
    """

    mean: th.Tensor
    variance: th.Tensor
    count: th.Tensor

    def __init__(self, size: int):
        super().__init__()
        self.register_buffer("mean", th.zeros(size))
        self.register_buffer("variance", th.ones(size))
        self.register_buffer("count", th.zeros((), dtype=th.int64))

    @th.no_grad()
    def update(self, batch: np.ndarray) -> None:
        """
        :param batch: New samples, shape (n_samples, size)
        """
        # In float64: the sums of a rollout lose digits in float32
        batch = batch.astype(np.float64)
        old_count, new_count = int(self.count), len(batch)
        total = old_count + new_count
        old_mean, old_variance = self.mean.cpu().numpy().astype(np.float64), self.variance.cpu().numpy().astype(np.float64)
        delta = batch.mean(axis=0) - old_mean
        mean = old_mean + delta * new_count / total
        squares = old_variance * old_count + batch.var(axis=0) * new_count + delta**2 * old_count * new_count / total
        self.mean.copy_(th.as_tensor(mean))
        self.variance.copy_(th.as_tensor(squares / total))
        self.count.fill_(total)


class ObservationNormalizer(nn.Module):
    """
    Normalises the observation part of tokens to zero mean and unit variance and scales the previous reward to unit root
    mean square; previous action and previous done pass untouched, and so does every part of a Dict observation that is an
    image or is not a Box. What hardly differs from zero (a standard deviation, or root mean square, of 1e-4 and less) stays
    small. The identity before the first :meth:`update`.

    :param observation_space: A :class:`~sb3_trmrl.envs.trial.TokenSpace`, any Box, or a Dict of these
    :param clip: Normalised values are clipped to [-clip, clip]
    """

    #: Keys of a Dict token that :class:`~sb3_trmrl.envs.trial.TrialWrapper` adds and that are not normalised
    UNTOUCHED_KEYS = ("prev_action", "prev_done")

    def __init__(self, observation_space: spaces.Space, clip: float = 10.0):
        super().__init__()
        self.clip = clip
        self.is_dict = isinstance(observation_space, spaces.Dict)
        parts = observation_space.spaces if isinstance(observation_space, spaces.Dict) else {"token": observation_space}
        self.moments = nn.ModuleDict()
        self._centred: dict[str, np.ndarray] = {}
        self._normalised: dict[str, np.ndarray] = {}
        for key, space in parts.items():
            if not isinstance(space, spaces.Box) or is_image_space(space) or (self.is_dict and key in self.UNTOUCHED_KEYS):
                continue
            size = math.prod(space.shape)
            self.moments[key] = RunningMoments(size)
            # Rewards are scaled, not centred: "no reward yet" and "reward zero" must stay zero
            centred, normalised = np.ones(size, dtype=bool), np.ones(size, dtype=bool)
            if isinstance(space, TokenSpace):
                centred[space.observation_slice.stop :] = False
                normalised[space.action_slice] = False
                normalised[space.done_slice] = False
            elif self.is_dict and key == "prev_reward":
                centred[:] = False
            self._centred[key], self._normalised[key] = centred, normalised
            # What forward applies: (x - shift) * scale, clipped to +-limit. Made from the moments, but saved with them so
            # that a loaded policy acts on bit-identical numbers.
            self.register_buffer(f"shift_{key}", th.zeros(size))
            self.register_buffer(f"scale_{key}", th.ones(size))
            self.register_buffer(f"limit_{key}", th.full((size,), math.inf))

    def forward(self, observations: PyTorchObs) -> PyTorchObs:
        """
        :param observations: Preprocessed (float) observations, shape (batch, ...), or a dict of these
        :return: The same with the parts described above normalised
        """
        if isinstance(observations, dict):
            return {key: self._normalize(key, part) if key in self.moments else part for key, part in observations.items()}
        return self._normalize("token", observations) if "token" in self.moments else observations

    def _normalize(self, key: str, x: th.Tensor) -> th.Tensor:
        shift, scale, limit = (getattr(self, f"{name}_{key}") for name in ("shift", "scale", "limit"))
        flat = (x.flatten(1) - shift) * scale
        return th.clamp(flat, -limit, limit).view(x.shape)

    def largest_unscaled(self, observations: dict[str, np.ndarray]) -> float:
        """
        :param observations: Raw observations by key, as for :meth:`update`
        :return: Largest magnitude that went through unchanged, as no statistics are known before the first update; else zero
        """
        unknown = [key for key, moments in self.moments.items() if isinstance(moments, RunningMoments) and not moments.count]
        return max((float(np.abs(observations[key]).max()) for key in unknown), default=0.0)

    @th.no_grad()
    def update(self, observations: dict[str, np.ndarray]) -> None:
        """
        Take the observations of a rollout into the statistics.

        :param observations: Raw observations by key (``"token"`` if the space is no Dict), shape (n_samples, ...)
        """
        for key, moments in self.moments.items():
            assert isinstance(moments, RunningMoments)
            moments.update(observations[key].reshape(len(observations[key]), -1))
            centred, normalised = self._centred[key], self._normalised[key]
            mean, variance = moments.mean.cpu().numpy(), moments.variance.cpu().numpy()
            second_moment = np.where(centred, variance, variance + mean**2)
            scale = 1.0 / np.sqrt(second_moment + 1e-8)
            getattr(self, f"shift_{key}").copy_(th.as_tensor(np.where(centred & normalised, mean, 0.0)))
            getattr(self, f"scale_{key}").copy_(th.as_tensor(np.where(normalised, scale, 1.0)))
            getattr(self, f"limit_{key}").copy_(th.as_tensor(np.where(normalised, self.clip, np.inf)))


class ValueScale(nn.Module):
    """
    Root mean square of all value targets seen: the unit in which the value network predicts.

    Scaled but not centred, so that the sign of a return keeps its meaning. One before the first update and as long as the
    targets are all but zero, at most 1e-4.
    """

    mean_square: th.Tensor
    count: th.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean_square", th.ones(()))
        self.register_buffer("count", th.zeros((), dtype=th.int64))

    @property
    def scale(self) -> float:
        """Size of one unit of value, in rewards."""
        mean_square = float(self.mean_square)
        # Without any reward yet there is nothing to measure with
        return math.sqrt(mean_square) if mean_square > 1e-8 else 1.0

    @th.no_grad()
    def update(self, targets: np.ndarray) -> None:
        """
        :param targets: Value targets in units of reward, any shape
        """
        total = int(self.count) + targets.size
        mean_square = (
            float(self.mean_square) * (int(self.count) / total) + float(np.square(targets, dtype=np.float64).sum()) / total
        )
        if not mean_square <= th.finfo(self.mean_square.dtype).max:
            raise FloatingPointError(
                f"Returns of about {math.sqrt(mean_square):.3g} are too large for {self.mean_square.dtype}: make the rewards "
                "smaller."
            )
        self.mean_square.fill_(mean_square)
        self.count.fill_(total)

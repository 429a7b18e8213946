"""The update of the TrMRL paper: a policy phase, then a value phase, each with an optimizer of its own."""

from dataclasses import dataclass

import torch as th


@dataclass(frozen=True)
class LogLinearDecay:
    """
    Learning-rate factor that is 1 until iteration ``start``, falls log-linearly and stays at ``factor`` from iteration ``end``
    on (TrMRL author's code, "decay").

    :param start: Iteration at which the decay starts, at least 0
    :param end: Iteration at which it ends, greater than ``start``
    :param factor: Final factor, greater than 0
    :raises ValueError: for numbers out of these ranges
    """

    start: int
    end: int
    factor: float

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.end:
            raise ValueError(
                f"The decay must start at or after iteration 0 and end later, got start={self.start}, end={self.end}."
            )
        if self.factor <= 0:
            raise ValueError(f"factor of the learning-rate decay must be positive, got {self.factor}.")

    def __call__(self, iteration: int) -> float:
        """
        :param iteration: Number of iterations (rollout and update) completed
        :return: Factor of the learning rate
        """
        progress = (iteration - self.start) / (self.end - self.start)
        return self.factor ** min(max(progress, 0.0), 1.0)


@dataclass(frozen=True)
class TwoPhaseUpdate:
    """
    Settings of the paper's update (author's code): the clipped policy loss for ``n_epochs``, then the value loss for
    ``n_epochs`` against the Monte-Carlo discounted return of the whole trial; two optimizers.

    :param value_learning_rate: Learning rate of the value phase
    :param policy_decay: Log-linear decay of the policy's learning rate, ``dict(start=, end=, factor=)``; constant if None
    :param value_decay: The same for the value phase
    :raises ValueError: for a learning rate that is not positive and for a decay that is none
    """

    value_learning_rate: float
    policy_decay: LogLinearDecay | None = None
    value_decay: LogLinearDecay | None = None

    def __post_init__(self) -> None:
        if self.value_learning_rate <= 0:
            raise ValueError(f"value_learning_rate must be positive, got {self.value_learning_rate}.")
        for name in ("policy_decay", "value_decay"):
            decay = getattr(self, name)
            if isinstance(decay, dict):
                object.__setattr__(self, name, LogLinearDecay(**decay))


def gaussian_nll(values: th.Tensor, targets: th.Tensor, log_std: th.Tensor) -> th.Tensor:
    """
    Mean negative log-likelihood of targets under a Gaussian with one standard deviation for all, without the constant:
    ``mean((targets - values)^2) / (2 sigma^2) + log sigma``.

    :param values: Means, (batch,)
    :param targets: Targets, (batch,)
    :param log_std: Scalar ``log sigma``
    :return: Scalar
    """
    return 0.5 * (targets - values).pow(2).mean() * th.exp(-2 * log_std) + log_std

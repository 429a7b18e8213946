"""The update of the TrMRL paper: a policy phase, then a value phase, each with an optimizer of its own."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.utils import explained_variance

if TYPE_CHECKING:
    from sb3_trmrl.trmrl_ppo.trmrl_ppo import TrMRLPPO


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
        if not self.factor > 0:
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
        if not self.value_learning_rate > 0:
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


def clipped_surrogate_loss(advantages: th.Tensor, ratio: th.Tensor, clip_range: float) -> th.Tensor:
    """
    PPO's clipped surrogate objective, negated (arXiv 1707.06347, equation 7):
    ``-mean(min(A r, A clip(r, 1 - eps, 1 + eps)))``.

    :param advantages: A, (batch,)
    :param ratio: r, probability of the actions under the new policy over that under the old one, (batch,)
    :param clip_range: eps
    :return: Scalar
    """
    return -th.min(advantages * ratio, advantages * ratio.clamp(1 - clip_range, 1 + clip_range)).mean()


def train_in_two_phases(model: "TrMRLPPO", settings: TwoPhaseUpdate) -> None:
    """
    One iteration of the paper's update: all policy epochs, then all value epochs.

    :param model: The algorithm, with its rollout buffer full
    :param settings: Rates and schedules
    """
    policy, buffer = model.policy, model.rollout_buffer
    policy.set_training_mode(True)
    policy_lr = model.lr_schedule(model._current_progress_remaining)
    if settings.policy_decay is not None:
        policy_lr *= settings.policy_decay(model.n_iterations)
    value_lr = settings.value_learning_rate
    if settings.value_decay is not None:
        value_lr *= settings.value_decay(model.n_iterations)
    for optimizer, lr in ((policy.optimizer, policy_lr), (model.value_optimizer, value_lr)):
        for group in optimizer.param_groups:
            group["lr"] = lr
    clip_range = model.clip_range(model._current_progress_remaining)  # type: ignore[operator]
    log: dict[str, list[float]] = {
        key: [] for key in ("policy_gradient_loss", "entropy_loss", "approx_kl", "clip_fraction", "value_loss")
    }

    continue_training = True
    for _epoch in range(model.n_epochs):
        for batch in buffer.get(model.batch_size):
            actions = batch.actions.long().flatten() if isinstance(model.action_space, spaces.Discrete) else batch.actions
            _, log_prob, entropy = policy.evaluate_actions(batch.observations, actions)
            advantages = batch.advantages
            if model.normalize_advantage and len(advantages) > 1:
                advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
            log_ratio = log_prob - batch.old_log_prob
            ratio = th.exp(log_ratio)
            policy_loss = clipped_surrogate_loss(advantages, ratio, clip_range)
            entropy_loss = log_prob.mean() if entropy is None else -entropy.mean()
            with th.no_grad():
                approx_kl = ((ratio - 1) - log_ratio).mean().item()
            log["policy_gradient_loss"].append(policy_loss.item())
            log["entropy_loss"].append(entropy_loss.item())
            log["approx_kl"].append(approx_kl)
            log["clip_fraction"].append(((ratio - 1).abs() > clip_range).float().mean().item())
            if model.target_kl is not None and approx_kl > 1.5 * model.target_kl:
                continue_training = False
                break
            _optimize(policy.optimizer, policy_loss + model.ent_coef * entropy_loss, model.max_grad_norm)
        model._n_updates += 1
        if not continue_training:
            break

    for _epoch in range(model.n_epochs):
        for batch in buffer.get(model.batch_size):
            values = policy.evaluate_values(batch.observations).flatten()
            if policy.value_log_std_init is None:
                value_loss = (values - batch.returns).pow(2).mean()
            else:
                value_loss = gaussian_nll(values, batch.returns, policy.value_log_std)
            log["value_loss"].append(value_loss.item())
            _optimize(model.value_optimizer, value_loss, model.max_grad_norm)

    for key, numbers in log.items():
        model.logger.record(f"train/{key}", float(np.mean(numbers)))
    model.logger.record("train/explained_variance", explained_variance(buffer.values.flatten(), buffer.returns.flatten()))
    model.logger.record("train/learning_rate", policy_lr)
    if hasattr(policy, "log_std"):
        model.logger.record("train/std", th.exp(policy.log_std).mean().item())
    model.logger.record("train/n_updates", model._n_updates, exclude="tensorboard")
    model.logger.record("train/clip_range", clip_range)


def _optimize(optimizer: th.optim.Optimizer, loss: th.Tensor, max_grad_norm: float) -> None:
    optimizer.zero_grad()
    loss.backward()
    if max_grad_norm != float("inf"):  # the paper's; it would be a pass over all gradients that changes nothing
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        th.nn.utils.clip_grad_norm_(parameters, max_grad_norm)
    optimizer.step()

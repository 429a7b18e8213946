"""TrMRL: PPO with a transformer memory over the trial (Melo, ICML 2022, arXiv 2206.06614)."""

from typing import Any, ClassVar, TypeVar

import numpy as np
import torch as th
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule

from sb3_trmrl.common.buffers import MemoryRolloutBuffer
from sb3_trmrl.common.on_policy_algorithm import MemoryPPO
from sb3_trmrl.common.policies import MemoryActorCriticPolicy
from sb3_trmrl.trmrl_ppo.policies import TrMRLPolicy
from sb3_trmrl.trmrl_ppo.two_phase_update import TwoPhaseUpdate, train_in_two_phases

SelfTrMRLPPO = TypeVar("SelfTrMRLPPO", bound="TrMRLPPO")


class TrMRLPPO(MemoryPPO):
    """
    Proximal Policy Optimization with a transformer memory, meta-trained over trials of several episodes.

    It is SB3's PPO: the memory is the policy's features extractor over the trial, the rollout buffer hands PPO slices of
    trials (or working memories) and ``evaluate_actions`` encodes them again. On a plain environment it is PPO with
    transformer memory.

    Paper: https://arxiv.org/abs/2206.06614. Where the defaults differ from the paper, and why: ``docs/guide/trmrl.md``; the
    paper's own settings: ``hyperparams/trmrl_paper.yml``.

    :param policy: ``"TrMRLPolicy"`` or a subclass of it
    :param env: The environment to learn from (if registered in Gym, can be str)
    :param learning_rate: The learning rate, it can be a function of the current progress remaining (from 1 to 0)
    :param n_steps: The number of steps to run for each environment per update; None: 8192 of all environments together, at
        least 256 of each
    :param batch_size: Minibatch size, in steps. Memories of windows: steps in random order, each with its working memory.
        Memories of sequences: whole slices of trials in random order, ``batch_size`` steps on average (docs/guide/memory.md)
    :param n_epochs: Number of epochs when optimizing the surrogate loss
    :param gamma: Discount factor
    :param gae_lambda: Factor for trade-off of bias vs variance for Generalized Advantage Estimator
    :param clip_range: Clipping parameter, it can be a function of the current progress remaining (from 1 to 0)
    :param clip_range_vf: Clipping parameter for the value function, in units of the policy's ``value_scale``
    :param normalize_advantage: Whether to normalize the advantage, per minibatch
    :param ent_coef: Entropy coefficient for the loss calculation
    :param vf_coef: Value function coefficient for the loss calculation (unused with ``two_phase_update``)
    :param max_grad_norm: The maximum value for the gradient clipping; ``float("inf")`` for none
    :param use_sde: Whether to use generalized State Dependent Exploration (gSDE)
    :param sde_sample_freq: Sample a new noise matrix every n steps when using gSDE
    :param rollout_buffer_class: Rollout buffer class, a subclass of the one that the memory needs:
        ``WorkingMemoryRolloutBuffer`` or ``TrialSliceRolloutBuffer``
    :param rollout_buffer_kwargs: Keyword arguments to pass to the rollout buffer on creation
    :param target_kl: Limit the KL divergence between updates
    :param stats_window_size: Number of trials to average the reported returns over
    :param tensorboard_log: the log location for tensorboard (if None, no logging)
    :param policy_kwargs: Arguments of the policy, see :class:`~sb3_trmrl.common.policies.MemoryActorCriticPolicy`
    :param verbose: 0 for no output, 1 for info messages, 2 for debug messages
    :param seed: Seed for the pseudo random generators
    :param device: Device (cpu, cuda, ...) on which the code should be run
    :param bootstrap_trial_end: Whether a trial whose episodes are used up is a time limit, behind which the value goes on as
        it was at the last step; the paper takes zero. (The value of the token behind the last step, as for the time limits of
        plain environments, is never fitted, and an agent that can steer it chases it: docs/guide/trmrl.md has the numbers.)
    :param bootstrap_episode_end: Whether an episode that really ends in the middle of a trial is an ordinary step (the paper),
        behind which the value of the next episode follows. If not, nothing follows: where episodes can fail, who is handed the
        next one at once has no reason to stay on its feet
    :param two_phase_update: The paper's update instead of PPO's joint one: keyword arguments of
        :class:`~sb3_trmrl.trmrl_ppo.two_phase_update.TwoPhaseUpdate`
    :param _init_setup_model: Whether or not to build the network at the creation of the instance
    :raises ValueError: for a policy without memory, an environment whose tokens VecNormalize would distort, options that do
        not fit together
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {"TrMRLPolicy": TrMRLPolicy}

    def __init__(
        self,
        policy: str | type[MemoryActorCriticPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 3e-4,
        n_steps: int | None = None,
        batch_size: int = 2048,
        n_epochs: int = 10,
        gamma: float = 0.99,
        gae_lambda: float = 0.95,
        clip_range: float | Schedule = 0.2,
        clip_range_vf: float | Schedule | None = None,
        normalize_advantage: bool = True,
        ent_coef: float = 0.0,
        vf_coef: float = 0.5,
        max_grad_norm: float = 0.5,
        use_sde: bool = False,
        sde_sample_freq: int = -1,
        rollout_buffer_class: type[RolloutBuffer] | None = None,
        rollout_buffer_kwargs: dict[str, Any] | None = None,
        target_kl: float | None = None,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        bootstrap_trial_end: bool = True,
        bootstrap_episode_end: bool = True,
        two_phase_update: dict[str, Any] | None = None,
        _init_setup_model: bool = True,
    ):
        self.two_phase_update = None if two_phase_update is None else TwoPhaseUpdate(**two_phase_update)
        if self.two_phase_update is None and (policy_kwargs or {}).get("value_log_std_init") is not None:
            raise ValueError(
                "policy_kwargs['value_log_std_init'] is the start of a Gaussian value likelihood that only the paper's update "
                "fits: pass two_phase_update=dict(value_learning_rate=...) too, or leave it out."
            )
        if self.two_phase_update is not None and clip_range_vf is not None:
            raise ValueError(f"clip_range_vf={clip_range_vf} has no effect with two_phase_update: leave one of them out.")
        super().__init__(
            policy,
            env,
            learning_rate=learning_rate,
            n_steps=n_steps,
            batch_size=batch_size,
            n_epochs=n_epochs,
            gamma=gamma,
            gae_lambda=gae_lambda,
            clip_range=clip_range,
            clip_range_vf=clip_range_vf,
            normalize_advantage=normalize_advantage,
            ent_coef=ent_coef,
            vf_coef=vf_coef,
            max_grad_norm=max_grad_norm,
            use_sde=use_sde,
            sde_sample_freq=sde_sample_freq,
            rollout_buffer_class=rollout_buffer_class,
            rollout_buffer_kwargs=rollout_buffer_kwargs,
            target_kl=target_kl,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            policy_kwargs=policy_kwargs,
            verbose=verbose,
            seed=seed,
            device=device,
            bootstrap_trial_end=bootstrap_trial_end,
            bootstrap_episode_end=bootstrap_episode_end,
            _init_setup_model=_init_setup_model,
        )

    def _setup_model(self) -> None:
        super()._setup_model()
        if isinstance(self.two_phase_update, dict):  # given to load()
            self.two_phase_update = TwoPhaseUpdate(**self.two_phase_update)
        if self.two_phase_update is not None:
            self.policy.optimizer = self.policy.make_optimizer(self.policy.actor_parameters(), self.lr_schedule(1))
            self.value_optimizer = self.policy.make_optimizer(
                self.policy.critic_parameters(), self.two_phase_update.value_learning_rate
            )

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "value_optimizer"]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        state_dicts, tensors = super()._get_torch_save_params()
        return [*state_dicts, *(["value_optimizer"] if self.two_phase_update is not None else [])], tensors

    def _compute_targets(self, rollout_buffer: MemoryRolloutBuffer, last_values: th.Tensor, dones: np.ndarray) -> None:
        super()._compute_targets(rollout_buffer, last_values, dones)
        if self.two_phase_update is not None:
            rollout_buffer.returns = rollout_buffer.monte_carlo_returns(last_values.cpu().numpy().flatten(), dones)

    def _update(self) -> None:
        if self.two_phase_update is None:
            super()._update()
        else:
            train_in_two_phases(self, self.two_phase_update)

    def learn(
        self: SelfTrMRLPPO,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str = "TrMRLPPO",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfTrMRLPPO:
        return super().learn(total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar)

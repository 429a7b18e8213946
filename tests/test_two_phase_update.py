"""The paper's update: each phase against the same computed by hand, losses against closed forms, schedules, stops."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3.common.callbacks import BaseCallback

from sb3_trmrl import TrMRLPPO
from sb3_trmrl.trmrl_ppo.two_phase_update import clipped_surrogate_loss, gaussian_nll
from tests.families import counter_vec_env
from tests.test_trmrl_ppo import SMALL, collect, constant_value_, make_model, weights


def test_two_phase_update_trains_each_parameter_in_its_phase():
    model = make_model(
        counter_vec_env(2, noise=1.0),
        two_phase_update=dict(value_learning_rate=1e-3),
        normalize_advantage=False,
        policy_kwargs=dict(
            critic="memoryless", head_input="latest", normalize_observations=False, value_log_std_init=0.0, ortho_init=False,
            optimizer_class=th.optim.AdamW,
        ),
    )  # fmt: skip
    critic = {id(p) for group in model.value_optimizer.param_groups for p in group["params"]}
    actor = {id(p) for group in model.policy.optimizer.param_groups for p in group["params"]}
    names = {name: id(p) for name, p in model.policy.named_parameters()}
    assert critic | actor == set(names.values()) and not critic & actor
    assert {name.split(".")[0] for name, key in names.items() if key in critic} == {
        "mlp_extractor",
        "value_net",
        "value_log_std",
    }
    assert all(isinstance(optimizer, th.optim.AdamW) for optimizer in (model.policy.optimizer, model.value_optimizer))
    before = weights(model)
    model.learn(26)
    after = weights(model)
    assert all(not th.equal(before[name], after[name]) for name in names)


@pytest.mark.parametrize("normalize_advantage", [False, True])
@pytest.mark.parametrize("value_log_std_init", [None, 0.3])
def test_the_papers_update_by_hand(value_log_std_init, normalize_advantage):
    # One minibatch of everything, plain gradient steps: two of the policy, then two of the value, on one encoder
    def make() -> Any:
        return TrMRLPPO(
            "TrMRLPolicy",
            counter_vec_env(2, noise=1.0),
            n_steps=13,
            batch_size=26,
            n_epochs=2,
            learning_rate=0.5,
            clip_range=0.03,
            ent_coef=0.1,
            max_grad_norm=float("inf"),
            normalize_advantage=normalize_advantage,
            two_phase_update=dict(value_learning_rate=0.01),
            seed=0,
            device="cpu",
            policy_kwargs=dict(
                net_arch=[16],
                memory_encoder_kwargs=SMALL,
                normalize_observations=False,
                value_log_std_init=value_log_std_init,
                optimizer_class=th.optim.SGD,
            ),
        )

    model = make()
    collect(model)
    policy = make().policy
    policy.load_state_dict(model.policy.state_dict())
    (batch,) = model.rollout_buffer.get(26)
    n_clipped = 0

    def descend(loss: th.Tensor, parameters: list[th.nn.Parameter], rate: float) -> None:
        gradients = th.autograd.grad(loss, parameters, allow_unused=True)
        with th.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                if gradient is not None:
                    parameter.sub_(rate * gradient)

    for _ in range(2):
        _, log_prob, entropy = policy.evaluate_actions(batch.observations, batch.actions)
        advantages = batch.advantages
        if normalize_advantage:
            advantages = (advantages - advantages.mean()) / advantages.std()
        ratio = (log_prob - batch.old_log_prob).exp()
        n_clipped += int(((ratio - 1).abs() > 0.03).sum())
        gain = th.minimum(ratio * advantages, ratio.clamp(0.97, 1.03) * advantages).mean()
        descend(-gain - 0.1 * entropy.mean(), list(policy.actor_parameters()), 0.5)
    for _ in range(2):
        values = policy.evaluate_values(batch.observations).flatten()
        loss = ((values - batch.returns) ** 2).mean()
        if value_log_std_init is not None:
            # -log of the density, but for a constant
            loss = loss / (2 * policy.value_log_std.exp() ** 2) + policy.value_log_std
        descend(loss, list(policy.critic_parameters()), 0.01)
    assert n_clipped > 5

    model.train()
    before = make().policy.state_dict()
    for name, expected in policy.state_dict().items():
        th.testing.assert_close(model.policy.state_dict()[name], expected, rtol=1e-3, atol=1e-5)
        if name != "value_log_std" and expected.dtype == th.float32 and expected.ndim > 1:
            assert not th.allclose(expected, before[name], atol=1e-4), name


def test_two_phase_update_with_infinite_max_grad_norm_clips_nothing():
    trained = []
    for max_grad_norm in (float("inf"), 1e30, 1e-3):
        options: dict[str, Any] = dict(two_phase_update=dict(value_learning_rate=1e-3), max_grad_norm=max_grad_norm)
        model = make_model(counter_vec_env(2, noise=1.0), policy_kwargs=dict(optimizer_class=th.optim.SGD), **options)
        trained.append(weights(model.learn(26)))
    unlimited, far, near = trained
    assert all(th.equal(unlimited[name], far[name]) for name in unlimited)
    assert not all(th.equal(unlimited[name], near[name]) for name in unlimited)


def test_two_phase_update_with_shared_critic_trains_the_encoder_in_both_phases():
    model = make_model(counter_vec_env(1), two_phase_update=dict(value_learning_rate=1e-3))
    encoder = {id(p) for p in model.policy.actor_memory.parameters()}
    for optimizer in (model.policy.optimizer, model.value_optimizer):
        assert encoder <= {id(p) for group in optimizer.param_groups for p in group["params"]}


def test_two_phase_targets_are_discounted_returns_of_the_trial():
    env = counter_vec_env(1, tasks=[{"reward": 1.0, "length": 99.0}], horizon=3)
    model = make_model(
        env,
        n_steps=6,
        batch_size=5,
        gamma=0.5,
        bootstrap_trial_end=False,
        two_phase_update=dict(value_learning_rate=1e-3),
        policy_kwargs=dict(normalize_observations=False),
    )
    collect(model)
    np.testing.assert_allclose(model.rollout_buffer.returns[:, 0], [2 - 0.5 ** (5 - t) for t in range(6)], rtol=1e-6)


def test_two_phase_targets_of_a_trial_that_goes_on_behind_the_rollout():
    env = counter_vec_env(1, tasks=[{"reward": 1.0, "length": 99.0}], horizon=9)
    model = make_model(
        env,
        n_steps=2,
        batch_size=2,
        gamma=0.5,
        two_phase_update=dict(value_learning_rate=1e-3),
        policy_kwargs=dict(normalize_observations=False),
    )
    constant_value_(model, 10.0)
    collect(model)
    assert model.rollout_buffer.returns[:, 0].tolist() == [1 + 6 / 2, 1 + 10 / 2]


def test_equal_advantages_leave_the_actor_alone():
    # Normalised they are 0
    model = make_model(
        counter_vec_env(1), two_phase_update=dict(value_learning_rate=1e-3), policy_kwargs=dict(critic="separate")
    )
    collect(model)
    model.rollout_buffer.advantages[:] = 1.0
    actor = model.policy.actor_parameters()
    before = [parameter.clone() for parameter in actor]
    model.train()
    assert all(map(th.equal, actor, before))


def test_without_a_closed_form_the_entropy_is_estimated_by_the_actions():
    options: dict[str, Any] = dict(two_phase_update=dict(value_learning_rate=1e-3), policy_kwargs=dict(squash_output=True))
    model = make_model(gym.make("Pendulum-v1"), batch_size=13, use_sde=True, **options)
    model.n_epochs = 1
    collect(model)
    model.train()
    mean = model.rollout_buffer.log_probs.mean()
    assert abs(mean) > 0.1 and model.logger.name_to_value["train/entropy_loss"] == pytest.approx(mean, rel=1e-3)


def test_losses_of_the_papers_update():
    values, targets, log_std = th.tensor([0.0, 1.0]), th.tensor([1.0, -1.0]), th.tensor(0.3)
    normal = th.distributions.Normal(values, log_std.exp())
    constant = 0.5 * np.log(2 * np.pi)
    th.testing.assert_close(gaussian_nll(values, targets, log_std), -normal.log_prob(targets).mean() - constant)
    # min(A r, A clip(r, 0.8, 1.2)): a good action is worth at most 1.2 A, a bad one at least 0.8 A, whatever it costs more
    advantages, ratio = th.tensor([1.0, 1.0, -1.0, -1.0]), th.tensor([1.5, 0.5, 1.5, 0.5])
    th.testing.assert_close(clipped_surrogate_loss(advantages, ratio, 0.2), th.tensor(-(1.2 + 0.5 - 1.5 - 0.8) / 4))


def test_two_phase_update_stops_at_the_target_kl():
    updates = []
    for target_kl in (None, 1e-12):
        model = make_model(counter_vec_env(1), two_phase_update=dict(value_learning_rate=1e-3), target_kl=target_kl)
        model.learn(13)
        updates.append(model._n_updates)
    assert updates == [2, 1]


@pytest.mark.parametrize("log_ratio", [-1.0, 1.0])
def test_the_target_kl_may_be_exceeded_by_a_half(log_ratio):
    kl = np.exp(log_ratio) - 1 - log_ratio  # of the first epoch, which is one minibatch
    for factor, n_updates in ((1.4, 2), (1.6, 1)):
        options: dict[str, Any] = dict(two_phase_update=dict(value_learning_rate=1e-3), target_kl=kl / factor)
        model = make_model(counter_vec_env(1), batch_size=13, **options)
        collect(model)
        model.rollout_buffer.log_probs -= log_ratio
        model.train()
        assert model._n_updates == n_updates
    assert model.logger.name_to_value["train/approx_kl"] == pytest.approx(kl, rel=1e-4)
    assert model.logger.name_to_value["train/clip_fraction"] == 1.0


def test_learning_rates_decay_log_linearly_between_two_iterations():
    model = make_model(
        counter_vec_env(1),
        two_phase_update=dict(
            value_learning_rate=1e-3,
            policy_decay=dict(start=1, end=3, factor=0.01),
            value_decay=dict(start=0, end=2, factor=0.25),
        ),
    )
    rates = []

    class Record(BaseCallback):
        def _on_step(self) -> bool:
            return True

        def _on_rollout_start(self) -> None:
            rates.append([o.param_groups[0]["lr"] for o in (model.policy.optimizer, model.value_optimizer)])

    model.learn(6 * 13, callback=Record())
    # The rate of iteration i is seen at the start of rollout i + 1
    np.testing.assert_allclose([policy for policy, _ in rates[1:]], [3e-3, 3e-3, 3e-4, 3e-5, 3e-5], rtol=1e-6)
    np.testing.assert_allclose([value for _, value in rates[1:]], [1e-3, 5e-4, 2.5e-4, 2.5e-4, 2.5e-4], rtol=1e-6)

"""The paper's settings make the paper's agents."""

from typing import Any

import numpy as np
import pytest
import torch as th
import yaml
from gymnasium import spaces

from sb3_trmrl import TrMRLPPO, hyperparams_dir
from sb3_trmrl.common.env_util import make_meta_vec_env

PAPER = yaml.safe_load((hyperparams_dir() / "trmrl_paper.yml").read_text(encoding="utf-8"))
MUJOCO = ["HalfCheetahVel-v0", "HalfCheetahDir-v0", "AntDir-v0"]


def make_model(env_id: str) -> TrMRLPPO:
    """As RL Zoo does: ``policy_kwargs`` evaluated with ``th`` in scope, what is not the environment's to the constructor."""
    settings: dict[str, Any] = dict(PAPER[env_id])
    settings["policy_kwargs"] = eval(settings["policy_kwargs"], {"th": th, "dict": dict})
    del settings["n_timesteps"]
    env = make_meta_vec_env(env_id, n_envs=settings.pop("n_envs"), seed=0, env_kwargs=settings.pop("env_kwargs"))
    return TrMRLPPO(settings.pop("policy"), env, seed=0, device="cpu", **settings)


@pytest.mark.parametrize(
    ("env_id", "n_parameters", "std", "critic", "rates", "decay"),
    [
        ("HalfCheetahVel-v0", 807_436, 0.2, "memoryless", (3e-5, 2.5e-4), ((100, 750, 0.1), None)),
        ("HalfCheetahDir-v0", 807_436, 0.5, "shared", (3e-5, 3e-5), ((100, 3700, 1e-4), (100, 3700, 1e-4))),
        ("AntDir-v0", 808_720, 0.5, "shared", (3e-5, 3e-5), ((500, 3500, 1e-4), (500, 3500, 1e-4))),
    ],
)
def test_mujoco_blocks_make_the_papers_agents(env_id, n_parameters, std, critic, rates, decay):
    model = make_model(env_id)
    policy = model.policy
    assert sum(parameter.numel() for parameter in policy.actor_parameters()) == n_parameters
    assert policy.critic == critic and policy.head_input == "latest" and policy.memory_reset == "episode"
    assert policy.actor_memory.training_unit == "window" and policy.actor_memory.context_length == 4
    assert policy.normalizer is None and policy.value_scale == 1.0
    np.testing.assert_allclose(policy.log_std.exp().detach(), std, rtol=1e-4)
    assert policy.value_log_std.item() == 0.0
    assert model.n_envs == 20 and model.n_steps == 400 and model.gae_lambda == 0.8 and model.batch_size == 256
    assert not model.normalize_advantage and not model.bootstrap_trial_end and model.max_grad_norm == float("inf")
    for optimizer, rate in zip((policy.optimizer, model.value_optimizer), rates, strict=True):
        assert isinstance(optimizer, th.optim.AdamW)
        assert optimizer.param_groups[0]["lr"] == rate and optimizer.param_groups[0]["weight_decay"] == 0.01
    settings = model.two_phase_update
    assert settings is not None
    for ours, theirs in zip((settings.policy_decay, settings.value_decay), decay, strict=True):
        assert (ours is None and theirs is None) or (ours and (ours.start, ours.end, ours.factor) == theirs)


def test_one_iteration_with_the_papers_settings():
    settings = dict(PAPER["HalfCheetahVel-v0"])
    policy_kwargs = eval(settings["policy_kwargs"], {"th": th, "dict": dict})
    env = make_meta_vec_env("HalfCheetahVel-v0", n_envs=2, seed=0, env_kwargs=dict(episodes_per_trial=2, horizon=20))
    model = TrMRLPPO(
        "TrMRLPolicy", env, n_steps=40, batch_size=40, n_epochs=2, gamma=0.9, gae_lambda=0.8, clip_range=0.1,
        learning_rate=3e-5, normalize_advantage=False, max_grad_norm=float("inf"), bootstrap_trial_end=False,
        two_phase_update=settings["two_phase_update"], policy_kwargs=policy_kwargs, seed=0, device="cpu",
    )  # fmt: skip
    before = {name: parameter.clone() for name, parameter in model.policy.named_parameters()}
    model.learn(80)
    for name, parameter in model.policy.named_parameters():
        assert parameter.isfinite().all() and not th.equal(parameter, before[name]), name


def test_meta_world_block_makes_the_papers_agent():
    settings = PAPER["ML1-reach-v3"]
    kwargs = eval(settings["policy_kwargs"], {"th": th, "dict": dict})
    from sb3_trmrl import TrMRLPolicy

    policy = TrMRLPolicy(spaces.Box(-1, 1, (45,)), spaces.Box(-1, 1, (4,)), lambda _: settings["learning_rate"], **kwargs)
    assert sum(parameter.numel() for parameter in policy.actor_parameters()) == 58_280
    assert settings["n_envs"] * settings["n_steps"] == 25 * 10 * 500 and settings["batch_size"] == 32
    assert settings["gamma"] == 0.9 and settings["gae_lambda"] == 0.95

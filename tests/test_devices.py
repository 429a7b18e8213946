"""
Every memory on another device: acting, training, saving. Without a GPU the same tests on the CPU run, which keeps them alive.

Tolerances are those of float32: on a GPU torch lets cuDNN (GRU, LSTM, convolutions) round to TF32, which is off here.
"""

from typing import Any

import numpy as np
import pytest
import torch as th

from sb3_trmrl import TrMRLPPO, load
from sb3_trmrl.common.env_util import make_meta_vec_env
from tests.families import ACTION_SPACES, ENCODERS, counter_vec_env
from tests.test_memory_algorithms import CheckRatio, make_model

on_every_device = pytest.mark.parametrize(
    "device", ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not th.cuda.is_available(), reason="no GPU"))]
)


@pytest.fixture(autouse=True)
def float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(th.backends.cudnn, "allow_tf32", False)


def tensors_of(model: Any) -> list[th.Tensor]:
    return [*model.policy.parameters(), *model.policy.buffers()]


@on_every_device
@pytest.mark.parametrize("label", ENCODERS)
def test_training_and_acting(device, label):
    model = make_model(counter_vec_env(3, episodes_per_trial=3, noise=1.0), label, device=device)
    check = CheckRatio()
    model.learn(4 * 7 * 3, callback=check)
    # The ratio is 1 also where a memory is rebuilt in mid-trial
    assert check.worst < 1e-4 and check.worst_value < 1e-3 and check.reached_back > 0
    assert {tensor.device.type for tensor in tensors_of(model)} == {device}
    assert all(th.isfinite(parameter).all() for parameter in model.policy.parameters())


@on_every_device
@pytest.mark.parametrize("action_space", ACTION_SPACES)
def test_action_spaces(device, action_space):
    model = make_model(counter_vec_env(2, action_space=action_space), "trial-rotary-none", device=device)
    model.learn(2 * 7 * 2)
    action, _ = model.predict(model.env.reset())
    assert model.action_space.contains(action[0])


@on_every_device
@pytest.mark.parametrize("critic", ["shared", "separate", "memoryless"])
@pytest.mark.parametrize("head", ["mlp", "hypernetwork"])
def test_heads_and_critics(device, critic, head):
    model = make_model(counter_vec_env(2), "window", device=device, policy_kwargs=dict(critic=critic, head=head))
    model.learn(2 * 7 * 2)
    assert {tensor.device.type for tensor in tensors_of(model)} == {device}


@on_every_device
def test_the_papers_update(device):
    model = make_model(counter_vec_env(2), "window", device=device, two_phase_update=dict(value_learning_rate=1e-3))
    model.learn(2 * 7 * 2)
    assert all(th.isfinite(parameter).all() for parameter in model.policy.parameters())


@on_every_device
@pytest.mark.parametrize("label", ["window", "trial-rotary-none", "gru", "gtrxl", "snail"])
def test_saved_there_it_acts_the_same_on_the_cpu(device, label, tmp_path):
    model = make_model(counter_vec_env(3, noise=1.0), label, device=device)
    model.learn(2 * 7 * 3)
    model.save(tmp_path / "model.zip")
    model.save_pretrained(tmp_path / "folder")
    others = [type(model).load(tmp_path / "model.zip", device="cpu"), load(tmp_path / "folder", device="cpu")]
    states: list[Any] = [None] * 3
    generator = np.random.default_rng(0)
    for step in range(9):
        obs = generator.normal(size=(3, *model.observation_space.shape)).astype(np.float32)
        starts = np.full(3, step == 0)
        actions = []
        for index, one in enumerate((model, *others)):
            action, states[index] = one.predict(obs, states[index], starts, deterministic=True)
            actions.append(action)
        for action in actions[1:]:
            np.testing.assert_allclose(action, actions[0], atol=1e-4)


@on_every_device
def test_training_goes_on_from_a_checkpoint(device, tmp_path):
    def fresh() -> TrMRLPPO:
        return TrMRLPPO(
            "TrMRLPolicy",
            make_meta_vec_env("PointRobot-v0", 2, seed=0, env_kwargs=dict(horizon=5)),
            n_steps=10,
            batch_size=20,
            n_epochs=1,
            seed=3,
            device=device,
            policy_kwargs=dict(memory_encoder_kwargs=dict(embed_dim=8, n_heads=2, n_layers=1)),
        )

    whole = fresh().learn(60)
    fresh().learn(40).save_pretrained(tmp_path / "folder")
    resumed = load(tmp_path / "folder", device=device)
    resumed.learn(20, reset_num_timesteps=False)
    for one, two in zip(tensors_of(whole), tensors_of(resumed), strict=True):
        th.testing.assert_close(one, two, rtol=0, atol=0 if device == "cpu" else 1e-5)

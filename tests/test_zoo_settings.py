"""``read_settings`` against the files themselves and against what the zoo makes of them."""

import pytest
import torch as th
import yaml

from sb3_trmrl import hyperparams_dir
from sb3_trmrl.common.references import train_reference
from sb3_trmrl.zoo.settings import read_settings


def test_schedule_falls_to_zero():
    assert yaml.safe_load((hyperparams_dir() / "trmrl.yml").read_text())["ML1-reach-v3"]["learning_rate"] == "lin_1e-3"
    schedule = read_settings("trmrl", "ML1-reach-v3")["learning_rate"]
    assert [schedule(left) for left in (1.0, 0.5, 0.0)] == [1e-3, 5e-4, 0.0]


def test_is_a_copy_and_knows_the_default():
    first = read_settings("trmrl", "NoBlock-v0")
    assert first == yaml.safe_load((hyperparams_dir() / "trmrl.yml").read_text())["default"]
    first["env_kwargs"] = {}
    read_settings("trmrl", "AntDir-v0")["env_kwargs"]["horizon"] = 1
    assert read_settings("trmrl", "HumanoidDir-v0")["env_kwargs"]["horizon"] == 200
    assert "env_kwargs" not in read_settings("trmrl", "NoBlock-v0")


def test_unknown_schedule_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr("sb3_trmrl.hyperparams_dir", lambda: tmp_path)
    (tmp_path / "trmrl.yml").write_text("default: {n_timesteps: 1, policy: P, clip_range: cos_0.2}")
    with pytest.raises(ValueError, match=r"clip_range of X-v0 .* like 'lin_3e-4', got 'cos_0.2'"):
        read_settings("trmrl", "X-v0")


def test_file_of_the_user(tmp_path):
    path = tmp_path / "mine.yml"
    path.write_text(
        "X-v0: {n_timesteps: 9, policy: P, policy_kwargs: 'dict(optimizer_class=th.optim.AdamW, activation_fn=nn.ReLU)'}"
    )
    policy_kwargs = {"optimizer_class": th.optim.AdamW, "activation_fn": th.nn.ReLU}
    assert read_settings(path, "X-v0") == {"n_timesteps": 9, "policy": "P", "n_envs": 1, "policy_kwargs": policy_kwargs}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"must have a block 'X-v0:' \(or 'default:'\) with n_timesteps and policy, got None"),
        ("gamma: 0.9", "must have a block"),
        ("Y-v0: {n_timesteps: 1, policy: P}", "must have a block"),
        ("X-v0: {gamma: 0.9}", r"got \{'gamma': 0.9\}"),
        ("X-v0: {", "is no yaml file"),
        ("X-v0: {n_timesteps: 1, policy: P, normalize: True}", r"\['normalize'\] of X-v0 are for RL Zoo alone"),
        ("X-v0: {n_timesteps: 1, policy: P, policy_kwargs: 'dict('}", "no Python that works"),
        ("X-v0: {n_timesteps: 1, policy: P, policy_kwargs: 'dict(a=b)'}", "name 'b' is not defined"),
    ],
)
def test_file_without_the_block(tmp_path, text, message):
    (tmp_path / "mine.yml").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_settings(tmp_path / "mine.yml", "X-v0")


def test_reference_learns_with_the_schedule():
    model = train_reference("blind", "HalfCheetahDir-v0", timesteps=1)
    assert model.lr_schedule(0.5) == 0.5 * model.lr_schedule(1.0)
    # The one thing in which they differ from TrMRL, on physics only
    assert (model.batch_size, model.n_epochs) == (800, 10)
    block = read_settings("trmrl", "HalfCheetahDir-v0")
    assert (block["batch_size"], block["n_epochs"]) == (1600, 5)

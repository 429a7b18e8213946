"""Models as data: what is saved comes back, what is code is refused, a kill never leaves a folder that loads wrong."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from rl_zoo3.utils import SimpleLinearSchedule
from stable_baselines3.common.utils import ConstantSchedule, LinearSchedule
from stable_baselines3.common.vec_env import DummyVecEnv, VecTransposeImage
from torch import nn

import sb3_trmrl
from sb3_trmrl import RL2PPO, TrMRLPolicy, TrMRLPPO
from sb3_trmrl.common.env_util import make_meta_vec_env
from sb3_trmrl.common.on_policy_algorithm import MemoryPPO
from sb3_trmrl.envs.trial import TokenSpace
from sb3_trmrl.hub import (
    MissingFileError,
    NotDescribableError,
    PretrainedCheckpointCallback,
    PretrainedError,
    UnknownNameError,
    latest_checkpoint,
    pretrained,
    register_algorithm,
)
from sb3_trmrl.hub.description import (
    decode_schedule,
    decode_space,
    decode_value,
    describe_environment,
    encode_schedule,
    encode_space,
    encode_value,
)
from sb3_trmrl.hub.model_card import _as_python, training_script
from sb3_trmrl.hub.registry import ALGORITHMS
from tests.families import ACTION_SPACES, ENCODERS, counter_vec_env

KEPT = Path(__file__).parent / "data" / "pretrained_v1"
SMALL: dict[str, Any] = dict(embed_dim=8, n_heads=2, n_layers=1)


def small(env: Any = None, policy_kwargs: dict[str, Any] | None = None, **kwargs: Any) -> TrMRLPPO:
    env = env if env is not None else make_meta_vec_env("PointRobot-v0", 2, seed=0, env_kwargs=dict(horizon=5))
    policy_kwargs = {"net_arch": [8], "memory_encoder_kwargs": SMALL, **(policy_kwargs or {})}
    settings: dict[str, Any] = {"n_steps": 10, "batch_size": 20, "n_epochs": 1, "seed": 3, "device": "cpu", **kwargs}
    return TrMRLPPO("TrMRLPolicy", env, policy_kwargs=policy_kwargs, **settings)


def acts_alike(one: MemoryPPO, two: MemoryPPO, n_steps: int = 12) -> bool:
    """:return: Whether two models act the same over a few steps of random observations, values included."""
    one.observation_space.seed(0)
    states: list[Any] = [None, None]
    for step in range(n_steps):
        drawn = [one.observation_space.sample() for _ in range(3)]
        obs: Any = (
            {key: np.stack([part[key] for part in drawn]) for key in drawn[0]}
            if isinstance(drawn[0], dict)
            else np.stack(drawn)
        )
        starts = np.array([step == 0, step == 5, False])
        actions = []
        for index, model in enumerate((one, two)):
            action, states[index] = model.predict(obs, states[index], starts, deterministic=True)
            actions.append(action)
        if not np.array_equal(actions[0], actions[1]) or not all(map(np.array_equal, *states)):
            return False
    return True


# -- What is saved comes back ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoder", ENCODERS)
def test_every_memory_acts_the_same_when_loaded(encoder: str, tmp_path: Path) -> None:
    name, kwargs = ENCODERS[encoder]
    model = small(counter_vec_env(2), dict(memory_encoder=name, memory_encoder_kwargs=kwargs))
    model.learn(20)
    loaded = TrMRLPPO.from_pretrained(model.save_pretrained(tmp_path / "model"), device="cpu")
    assert loaded.policy.state_dict().keys() == model.policy.state_dict().keys()
    assert all(th.equal(value, loaded.policy.state_dict()[key]) for key, value in model.policy.state_dict().items())
    assert acts_alike(model, loaded)
    # A test of the test: other weights act differently
    assert not acts_alike(model, small(counter_vec_env(2), dict(memory_encoder=name, memory_encoder_kwargs=kwargs), seed=5))


@pytest.mark.parametrize("action_space", ACTION_SPACES)
@pytest.mark.parametrize("image", [False, True])
def test_every_kind_of_space_comes_back(action_space: str, image: bool, tmp_path: Path) -> None:
    model = small(counter_vec_env(2, action_space=action_space, image=image))
    loaded = sb3_trmrl.load(model.save_pretrained(tmp_path / "model"), device="cpu")
    assert loaded.observation_space == model.observation_space
    assert type(loaded.observation_space) is type(model.observation_space)
    assert loaded.action_space == model.action_space
    assert acts_alike(model, loaded, n_steps=3)


@pytest.mark.parametrize(
    "space",
    [
        spaces.Box(-1, 1, (2, 3)),
        spaces.Box(np.array([-np.inf, 0.1]), np.array([np.inf, 0.3]), dtype=np.float64),
        spaces.Box(0, 255, (8, 8, 3), np.uint8),
        spaces.Discrete(3, start=-1),
        spaces.MultiDiscrete([2, 5], start=[1, 0]),
        spaces.MultiDiscrete([2, 5], dtype=np.int32),
        spaces.Discrete(3, dtype=np.int32),
        spaces.Box(0, 9, (2,), np.uint16),
        spaces.Box(0, 9, (2,), np.uint32),
        spaces.Box(0, 9, (2,), np.uint64),
        spaces.MultiBinary(4),
        spaces.MultiBinary([2, 3]),
        spaces.Dict({"b": spaces.Discrete(2), "a": spaces.Box(0, 1, (1,))}),
        TokenSpace(spaces.Box(-np.inf, np.inf, (3,)), spaces.Discrete(2)),
    ],
    ids=str,
)
def test_spaces_are_data(space: spaces.Space[Any]) -> None:
    data = json.loads(json.dumps(encode_space(space), allow_nan=False))
    decoded = decode_space(data)
    assert decoded == space and type(decoded) is type(space) and decoded.dtype == space.dtype
    if isinstance(space, spaces.Dict):
        assert isinstance(decoded, spaces.Dict) and list(decoded.spaces) == list(space.spaces)


def test_what_would_not_load_is_refused_while_there_is_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = small(normalize_advantage=1)
    with pytest.raises(NotDescribableError, match=r"it would not load: normalize_advantage must be of type.*bool"):
        model.save_pretrained(tmp_path / "model")
    assert not any(tmp_path.iterdir())
    monkeypatch.setattr(pretrained, "MAX_STATE_BYTES", 1000)
    with pytest.raises(NotDescribableError, match=r"it would not load: .*training.json is larger than 1000 bytes"):
        small().save_pretrained(tmp_path / "model")


def test_keywords_of_other_environments_are_their_business(tmp_path: Path) -> None:
    class Fading(gym.Env[np.ndarray, np.int64]):
        observation_space, action_space = spaces.Box(-1, 1, (2,)), spaces.Discrete(2)

        def __init__(self, horizon: float | None = None):
            self.horizon = horizon

        def reset(self, **kwargs: Any) -> Any:
            return np.zeros(2, np.float32), {}

    gym.register("Fading-v0", Fading)  # type: ignore[arg-type]
    model = small(DummyVecEnv([lambda: gym.make("Fading-v0", horizon=0.5)] * 2))
    loaded = sb3_trmrl.load(model.save_pretrained(tmp_path / "model"), device="cpu")
    assert loaded.saved_environment is not None and loaded.saved_environment["kwargs"] == {"horizon": 0.5}


def test_hundreds_of_tasks_are_a_keyword_like_others(tmp_path: Path) -> None:
    env_id = "Walker2DRandParams-v0"
    family = gym.make(env_id, horizon=5)
    family.reset(seed=0)
    tasks = family.get_wrapper_attr("sample_tasks")(700)
    model = small(make_meta_vec_env(env_id, 2, env_kwargs=dict(horizon=5, tasks=tasks)))
    model.learn(20).save_pretrained(tmp_path / "model")
    loaded = sb3_trmrl.load(tmp_path / "model", device="cpu").learn(20, reset_num_timesteps=False)
    assert loaded.trial_info_buffer is not None and all(trial["task"] in tasks for trial in loaded.trial_info_buffer)


def test_whoever_gives_the_environments_may_have_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    env = make_meta_vec_env("PointRobot-v0", 20, env_kwargs=dict(horizon=5))
    model = small(env)
    model.save_pretrained(tmp_path / "model")
    # Enough for one environment, not for 20
    monkeypatch.setattr(pretrained, "MAX_BUFFER_BYTES", 1 << 18)
    with pytest.raises(PretrainedError, match=r"of 20 environment\(s\).*pass env to from_pretrained"):
        sb3_trmrl.load(tmp_path / "model", device="cpu")
    assert acts_alike(model, sb3_trmrl.load(tmp_path / "model", env=env, device="cpu"))


def test_other_spaces_are_refused() -> None:
    with pytest.raises(NotDescribableError, match="only Box"):
        encode_space(spaces.Text(3))


def test_values_are_data() -> None:
    value = {
        "a": [1, 2.5, None, True, "x"],
        "b": (1, (2.0,)),
        "c": {"d": float("inf")},
        "e": np.float32(0.1),
        "f": np.arange(2),
    }
    decoded = decode_value(json.loads(json.dumps(encode_value(value, "value"), allow_nan=False)))
    assert decoded == {**value, "e": float(np.float32(0.1)), "f": [0, 1]}
    with pytest.raises(NotDescribableError, match="value"):
        encode_value({"a": object()}, "value")


def test_schedules_are_data() -> None:
    for schedule in (3e-4, ConstantSchedule(0.1), LinearSchedule(1.0, 0.2, 0.5), SimpleLinearSchedule(1e-3)):
        decoded = decode_schedule(json.loads(json.dumps(encode_schedule(schedule, "learning_rate"))), "learning_rate")
        for progress in (1.0, 0.7, 0.3, 0.0):
            expected = schedule(progress) if callable(schedule) else schedule
            assert (decoded(progress) if callable(decoded) else decoded) == expected


@pytest.mark.parametrize("schedule", [LinearSchedule(1e-2, 1e-3, 0.5), SimpleLinearSchedule(1e-3)])
def test_schedules_in_the_training_script(schedule: Any) -> None:
    settings = {"learning_rate": encode_schedule(schedule, "learning_rate"), "seed": 0}
    environment = {"id": "PointRobot-v0", "kwargs": {"horizon": 5}, "n_envs": 2}
    config = dict(algorithm="TrMRLPPO", policy="TrMRLPolicy", environment=environment, hyperparameters=settings)
    names: dict[str, Any] = {}
    exec(training_script({**config, "training": {"total_timesteps": 0}}), names)
    names["env"].close()
    assert [names["model"].lr_schedule(progress) for progress in (1.0, 0.7, 0.0)] == [schedule(p) for p in (1.0, 0.7, 0.0)]


def test_hyperparameters_come_back(tmp_path: Path) -> None:
    given: dict[str, Any] = dict(
        learning_rate=LinearSchedule(1e-3, 1e-4, 0.8),
        n_steps=10,
        batch_size=20,
        n_epochs=3,
        gamma=0.9,
        gae_lambda=0.8,
        clip_range=0.1,
        normalize_advantage=False,
        ent_coef=0.01,
        max_grad_norm=float("inf"),
        target_kl=0.1,
        stats_window_size=7,
        seed=5,
        bootstrap_trial_end=False,
        two_phase_update=dict(value_learning_rate=1e-3, policy_decay=dict(start=1, end=3, factor=0.5)),
    )
    policy_kwargs: dict[str, Any] = dict(
        net_arch=dict(pi=[8], vf=[6, 4]),
        activation_fn=nn.ReLU,
        optimizer_class=th.optim.AdamW,
        optimizer_kwargs=dict(betas=(0.8, 0.9)),
        memory_encoder=type(small().policy.actor_memory),
        memory_encoder_kwargs=SMALL,
        critic="separate",
        value_log_std_init=0.5,
    )
    env = make_meta_vec_env("PointRobot-v0", 2, env_kwargs=dict(horizon=5))
    model = TrMRLPPO("TrMRLPolicy", env, policy_kwargs=policy_kwargs, device="cpu", **given)
    loaded = TrMRLPPO.from_pretrained(model.save_pretrained(tmp_path / "model"), device="cpu")
    for name in given:
        if name in ("learning_rate", "clip_range", "stats_window_size"):
            continue
        assert getattr(loaded, name) == getattr(model, name), name
    assert [loaded.lr_schedule(p) for p in (1.0, 0.5, 0.0)] == [model.lr_schedule(p) for p in (1.0, 0.5, 0.0)]
    assert loaded.clip_range(0.5) == 0.1  # type: ignore[operator]
    assert loaded._stats_window_size == 7
    # The class came back by its name
    assert loaded.policy_kwargs == {**policy_kwargs, "memory_encoder": "tfixup"}
    assert type(loaded.policy.optimizer) is th.optim.AdamW
    assert loaded.policy.optimizer.param_groups[0]["betas"] == (0.8, 0.9)


def test_config_tells_where_it_comes_from(tmp_path: Path) -> None:
    config = json.loads((small().save_pretrained(tmp_path / "model") / "config.json").read_text())
    environment = {"id": "PointRobot-v0", "kwargs": {"horizon": 5}, "n_envs": 2, "episodes_per_trial": 2}
    assert config["environment"] == environment
    assert config["normalization"] == {"policy": True, "vec_normalize_observations": False}
    assert set(config["versions"]) >= {"sb3_trmrl", "stable_baselines3", "torch", "mujoco"}
    assert config["files"].keys() == {"model.safetensors", "optimizer.safetensors", "training.json", "training.safetensors"}


def test_without_training_state(tmp_path: Path) -> None:
    folder = small().save_pretrained(tmp_path / "model", training_state=False)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    ends = []
    for _ in range(2):
        model = sb3_trmrl.load(folder, device="cpu")
        model.learn(20, reset_num_timesteps=False)
        assert model.num_timesteps == 20
        ends.append(model.policy.state_dict())
    # Nothing to resume, but the seed holds
    assert all(th.equal(ends[0][name], ends[1][name]) for name in ends[0])


@pytest.mark.parametrize("optimizer_class", [th.optim.Adam, th.optim.AdamW, th.optim.RMSprop, th.optim.SGD])
def test_every_optimizer_comes_back(optimizer_class: Any, tmp_path: Path) -> None:
    # SGD without momentum keeps nothing
    model = small(policy_kwargs=dict(optimizer_class=optimizer_class)).learn(20)
    folder = model.save_pretrained(tmp_path / "model")
    ends = [
        one.learn(20, reset_num_timesteps=False).policy.state_dict() for one in (model, sb3_trmrl.load(folder, device="cpu"))
    ]
    assert all(th.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_what_was_loaded_without_training_state_can_be_saved_with_it(tmp_path: Path) -> None:
    small().learn(20).save_pretrained(tmp_path / "weights", training_state=False)
    loaded = sb3_trmrl.load(tmp_path / "weights", device="cpu")
    again = sb3_trmrl.load(loaded.save_pretrained(tmp_path / "model"), device="cpu")
    assert acts_alike(loaded, again) and again._n_updates == 1


def test_schedules_go_on_without_training_state(tmp_path: Path) -> None:
    decay = dict(start=1, end=5, factor=0.1)
    model = small(learning_rate=1e-3, two_phase_update=dict(value_learning_rate=1e-3, policy_decay=decay)).learn(60)
    loaded = sb3_trmrl.load(model.save_pretrained(tmp_path / "model", training_state=False), device="cpu")
    assert (loaded.n_iterations, loaded._n_updates, loaded._total_timesteps) == (3, 3, 60)
    loaded.learn(20, reset_num_timesteps=False)
    # The fourth iteration, after three: halfway down
    assert loaded.policy.optimizer.param_groups[0]["lr"] == pytest.approx(1e-3 * 0.1**0.5)


def test_a_training_that_goes_on_from_weights_does_not_play_its_first_trials_again(tmp_path: Path) -> None:
    folder = small().learn(20).save_pretrained(tmp_path / "model", training_state=False)

    def first_observation(reset_num_timesteps: bool) -> np.ndarray:
        loaded = sb3_trmrl.load(folder, device="cpu")
        loaded._setup_learn(20, reset_num_timesteps=reset_num_timesteps)
        assert isinstance(loaded._last_obs, np.ndarray)
        return loaded._last_obs

    new = small()
    new._setup_learn(20)
    assert isinstance(new._last_obs, np.ndarray)
    np.testing.assert_array_equal(first_observation(True), new._last_obs)
    assert not np.array_equal(first_observation(False), new._last_obs)
    np.testing.assert_array_equal(first_observation(False), first_observation(False))


def test_files_can_be_read_by_whom_the_user_lets(tmp_path: Path) -> None:
    (tmp_path / "usual").write_text("")
    modes = {path.stat().st_mode for path in small().save_pretrained(tmp_path / "model").iterdir()}
    assert modes == {(tmp_path / "usual").stat().st_mode}


def test_load_picks_the_class(tmp_path: Path) -> None:
    env = make_meta_vec_env("PointRobot-v0", 2, env_kwargs=dict(horizon=5))
    model = RL2PPO("RL2Policy", env, n_steps=10, batch_size=20, policy_kwargs=dict(memory_encoder_kwargs=dict(hidden_size=4)))
    folder = model.save_pretrained(tmp_path / "rl2")
    assert type(sb3_trmrl.load(folder)) is RL2PPO
    assert type(RL2PPO.from_pretrained(folder)) is RL2PPO
    with pytest.raises(PretrainedError, match=r"holds a RL2PPO: load it with RL2PPO\.from_pretrained"):
        TrMRLPPO.from_pretrained(folder)


def test_loading_leaves_random_numbers_alone(tmp_path: Path) -> None:
    folder = small().save_pretrained(tmp_path / "model")

    def states() -> list[Any]:
        legacy: Any = np.random.get_state(legacy=False)  # noqa: NPY002 (the generator that SB3 seeds)
        return [random.getstate(), legacy["state"]["key"].tolist(), legacy["state"]["pos"], th.get_rng_state().tolist()]

    before = states()
    sb3_trmrl.load(folder, device="cpu")
    assert states() == before


def test_sb3_zip_still_works_for_a_loaded_model(tmp_path: Path) -> None:
    model = small()
    model.learn(20)
    loaded = sb3_trmrl.load(model.save_pretrained(tmp_path / "model"), device="cpu")
    loaded.save(tmp_path / "model.zip")
    again = TrMRLPPO.load(tmp_path / "model.zip", device="cpu")
    assert acts_alike(model, again)
    assert again.num_timesteps == 20


def test_an_environment_can_be_given_as_in_sb3(tmp_path: Path) -> None:
    folder = small().save_pretrained(tmp_path / "model")
    model = TrMRLPPO.from_pretrained(folder, env="PointRobot-v0", device="cpu")
    assert model.n_envs == 1
    with pytest.raises(PretrainedError, match="does not fit"):
        TrMRLPPO.from_pretrained(folder, env="MetaBandit-v0")


def test_images_of_a_plain_environment(tmp_path: Path) -> None:
    class Camera(gym.Env[np.ndarray, np.int64]):
        observation_space = spaces.Box(0, 255, (36, 36, 3), np.uint8)
        action_space = spaces.Discrete(2)

        def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
            return np.zeros((36, 36, 3), np.uint8), {}

        def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
            return np.zeros((36, 36, 3), np.uint8), 0.0, False, False, {}

    model = small(VecTransposeImage(DummyVecEnv([Camera])))
    loaded = sb3_trmrl.load(model.save_pretrained(tmp_path / "model"), device="cpu")
    assert acts_alike(model, loaded, n_steps=2)


# -- What is code is refused -------------------------------------------------------------------------------------------


class Homemade(nn.ReLU):
    """An activation function in no registry."""


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(learning_rate=lambda progress: 1e-3 * progress), "learning_rate=.*function.*LinearSchedule"),
        (dict(clip_range=lambda progress: 0.1), "clip_range=.*function"),
        (dict(policy_kwargs=dict(activation_fn=Homemade)), r"policy_kwargs\['activation_fn'\]=.*only \["),
    ],
)
def test_code_is_refused_when_it_is_saved(kwargs: dict[str, Any], message: str, tmp_path: Path) -> None:
    model = small(**kwargs)
    with pytest.raises(NotDescribableError, match=message):
        model.save_pretrained(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


class OwnPolicy(TrMRLPolicy):
    """A policy of a user."""


class OwnPPO(TrMRLPPO):
    """An algorithm of a user, with an argument of its own."""

    policy_aliases = {"OwnPolicy": OwnPolicy}

    def __init__(self, *args: Any, bonus: float = 0.0, **kwargs: Any):
        self.bonus = bonus
        super().__init__(*args, **kwargs)


def test_an_algorithm_of_a_user_is_registered_first(tmp_path: Path) -> None:
    env = make_meta_vec_env("PointRobot-v0", 2, env_kwargs=dict(horizon=5))
    kwargs: dict[str, Any] = dict(n_steps=10, batch_size=20, policy_kwargs=dict(memory_encoder_kwargs=SMALL))
    model = OwnPPO("OwnPolicy", env, bonus=0.5, **kwargs)
    with pytest.raises(NotDescribableError, match="register_algorithm"):
        model.save_pretrained(tmp_path / "model")
    register_algorithm(OwnPPO)
    try:
        loaded = sb3_trmrl.load(model.save_pretrained(tmp_path / "model"))
        assert type(loaded) is OwnPPO and type(loaded.policy) is OwnPolicy
        assert (loaded.bonus, loaded.n_steps) == (0.5, 10)
    finally:
        del ALGORITHMS["OwnPPO"]
    with pytest.raises(UnknownNameError, match=r"algorithm must be one of.*register_algorithm"):
        sb3_trmrl.load(tmp_path / "model")
    with pytest.raises(ValueError, match="subclass of MemoryPPO"):
        register_algorithm(dict)  # type: ignore[arg-type]


def test_other_files_in_the_folder_are_never_removed(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(PretrainedError, match=r"holds files that are not of a saved model, \['thesis.tex'\]"):
        small().save_pretrained(tmp_path)
    with pytest.raises(PretrainedError, match="is a file"):
        small().save_pretrained(tmp_path / "thesis.tex")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("hidden", [".model.old", ".model.new", ".model.partial"])
def test_hidden_folders_of_others_are_never_removed(hidden: str, tmp_path: Path) -> None:
    (tmp_path / hidden).mkdir()
    (tmp_path / hidden / "thesis.tex").write_text("years of work")
    with pytest.raises(PretrainedError, match=rf"{hidden} holds files that are not of a saved model, \['thesis.tex'\]"):
        small().save_pretrained(tmp_path / "model")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / hidden).write_text("years of work")
    with pytest.raises(PretrainedError, match=f"{hidden} is a file"):
        small().save_pretrained(tmp_path / "other" / "model")
    assert (tmp_path / hidden / "thesis.tex").read_text() == (tmp_path / "other" / hidden).read_text() == "years of work"


@pytest.mark.skipif(sys.platform == "win32", reason="needs fcntl")
@pytest.mark.parametrize("folder", [".", "..", "../a", "../../c"])
def test_the_working_directory_is_not_pulled_from_under_the_process(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "b" / "a").mkdir(parents=True)
    (tmp_path / "c").symlink_to(tmp_path / "b")
    monkeypatch.chdir(tmp_path / "b" / "a")
    with pytest.raises(PretrainedError, match=r"is the working directory, or holds it.*for example .*a/model"):
        small().save_pretrained(folder)
    assert Path.cwd() == tmp_path / "b" / "a"
    small().save_pretrained("model")
    sb3_trmrl.load("model", device="cpu")


def test_two_processes_save_to_one_folder_one_after_the_other(tmp_path: Path) -> None:
    program = "import sys, pathlib, tests.test_save_pretrained as t; t.save_often(pathlib.Path(sys.argv[1]), int(sys.argv[2]))"
    writers = [
        subprocess.Popen([sys.executable, "-c", program, str(tmp_path / "best"), str(number)], cwd=Path(__file__).parents[1])
        for number in (1, 2)
    ]
    assert [writer.wait(timeout=120) for writer in writers] == [0, 0]
    assert sb3_trmrl.load(tmp_path / "best", device="cpu").num_timesteps in (1, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["best"]


def save_often(folder: Path, number: int) -> None:
    model = small()
    model.num_timesteps = number
    for _ in range(40):
        model.save_pretrained(folder)


# -- A kill never leaves a folder that loads wrong -----------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_no_checkpoint_yet(tmp_path):
    with pytest.raises(MissingFileError, match="is there no checkpoint yet"):
        sb3_trmrl.load(latest_checkpoint(tmp_path))  # type: ignore[arg-type]


def test_killed_at_any_step_the_old_or_the_new_model_loads(tmp_path: Path) -> None:
    # Forked from a process that is small: this one may hold the environments of many tests
    program = "import sys, pathlib, tests.test_save_pretrained as t; t.kill_at_every_step(pathlib.Path(sys.argv[1]))"
    command = [sys.executable, "-c", program, str(tmp_path)]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def kill_at_every_step(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    first, second = small(), small()
    first.num_timesteps, second.num_timesteps = 1, 2
    with th.no_grad():
        second.policy.action_net.bias.add_(1.0)
    found = []
    for survived in range(1000):
        for path in tmp_path.iterdir():
            shutil.rmtree(path)
        first.save_pretrained(folder)
        child = os.fork()
        if child == 0:
            left = survived

            def kill(event: str, arguments: tuple[Any, ...]) -> None:
                nonlocal left
                if event.startswith(("os.", "open", "shutil.")) and event != "os.kill":
                    left -= 1
                    if left < 0:
                        os.kill(os.getpid(), signal.SIGKILL)

            sys.addaudithook(kill)
            try:
                second.save_pretrained(folder)
            finally:
                os._exit(0)
        _, status = os.waitpid(child, 0)
        loaded = sb3_trmrl.load(folder, device="cpu")
        expected = {1: first, 2: second}[loaded.num_timesteps]
        assert th.equal(loaded.policy.action_net.bias, expected.policy.action_net.bias)
        found.append(loaded.num_timesteps)
        # And what is left behind does not disturb the next one
        if survived % 5 == 0:
            second.save_pretrained(folder)
            assert sb3_trmrl.load(folder, device="cpu").num_timesteps == 2
            assert [path.name for path in tmp_path.iterdir()] == ["model"]
        if os.WIFEXITED(status):
            break
    # Old ones first, then new ones, and a good number of each
    assert found == sorted(found) and found.count(1) > 10 and found.count(2) > 3


def test_killed_between_the_two_renames_the_new_one_loads(tmp_path: Path) -> None:
    small().save_pretrained(tmp_path / "model")
    os.rename(tmp_path / "model", tmp_path / ".model.old")
    assert sb3_trmrl.load(tmp_path / "model", device="cpu").num_timesteps == 0
    model = small()
    model.num_timesteps = 7
    model.save_pretrained(tmp_path / "elsewhere")
    os.rename(tmp_path / "elsewhere", tmp_path / ".model.new")
    assert sb3_trmrl.load(tmp_path / "model", device="cpu").num_timesteps == 7


# -- The folder that is kept ---------------------------------------------------------------------------------------------


def test_the_kept_folder_of_format_1_loads_acts_and_resumes() -> None:
    """Written once by ``tests/data/write_pretrained_v1.py``; it must load in every later version."""
    model = TrMRLPPO.from_pretrained(KEPT, device="cpu")
    known = json.loads((KEPT.parent / "pretrained_v1_acts.json").read_text())
    state, actions = None, []
    for token in known["tokens"]:
        action, state = model.predict(np.array(token, np.float32), state, deterministic=True)
        actions.append(action.tolist())
    # Another processor or version of torch may round differently
    np.testing.assert_allclose(actions, known["actions"], atol=1e-5)
    assert model.num_timesteps == known["num_timesteps"]
    model.learn(60, reset_num_timesteps=False)
    assert model.num_timesteps == known["num_timesteps"] + 60


# -- No code -------------------------------------------------------------------------------------------------------------

AUDITED = """
import json, sys
evil, kept, *folders = sys.argv[1:]
import sb3_trmrl, torch, pickle, numpy
from sb3_trmrl.hub import PretrainedError
from tests.audit import watch
# What torch and numpy import on first use is not the files' doing
sb3_trmrl.load(kept, device="cpu").learn(60, reset_num_timesteps=False)
sys.path.insert(0, evil)
modules, events = set(sys.modules), watch()
def never(*arguments, **keywords):
    raise AssertionError("pickle was called")
for module, names in ((pickle, ("load", "loads", "Unpickler", "_Unpickler")), (torch, ("load",)), (numpy, ("load",))):
    for name in names:
        setattr(module, name, never)
results = []
for folder in folders:
    del events[:]
    try:
        model = sb3_trmrl.load(folder, device="cpu")
        model.learn(60, reset_num_timesteps=False)
        model.predict(model.observation_space.sample())
        result = "loaded"
    except PretrainedError as error:
        result = type(error).__name__
    results.append([result, sorted(set(sys.modules) - modules), list(events)])
print(json.dumps(results))
"""


def name_a_module(key: str, folder: Path) -> Path:
    """:return: A folder whose ``config.json`` names the module ``evil``, as an algorithm, an environment, ..."""
    shutil.copytree(KEPT, folder)
    config = json.loads((folder / "config.json").read_text())
    if key == "environment":
        config["environment"]["id"] = "evil:Evil"
    elif key == "space":
        config["observation_space"]["type"] = "evil.Evil"
    elif key in ("algorithm", "policy"):
        config[key] = "evil.Evil"
    else:
        config["hyperparameters"]["policy_kwargs"][key] = "evil.Evil"
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_loading_and_resuming_imports_writes_and_unpickles_nothing(tmp_path: Path) -> None:
    # Whoever imported it would leave a file
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'pwned')!r}, 'w').close()\nclass Evil: ...\n")
    keys = ["algorithm", "policy", "activation_fn", "memory_encoder", "features_extractor_class", "environment", "space"]
    folders = [KEPT, *(name_a_module(key, tmp_path / key) for key in keys)]
    process = subprocess.run(
        [sys.executable, "-c", AUDITED, str(tmp_path), str(KEPT), *map(str, folders)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    results = json.loads(process.stdout.splitlines()[-1])
    assert [result for result, _, _ in results] == [
        "loaded",
        # An environment is made by learn, and it must be one of the package
        *("PretrainedError" if key == "environment" else "UnknownNameError" for key in keys),
    ]
    assert all(modules == [] and events == [] for _, modules, events in results), results
    assert not (tmp_path / "pwned").exists()


def test_only_a_command_that_was_typed_is_kept(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import multiprocessing\n"
        "from sb3_trmrl.common.save_util import command_line\n"
        "if __name__ == '__main__':\n"
        "    print(command_line(), flush=True)\n"
        "    for method in ('spawn', 'fork'):\n"
        "        with multiprocessing.get_context(method).Pool(1) as pool:\n"
        "            print(pool.apply(command_line), flush=True)\n"
    )
    command = [sys.executable, "script.py", "--seed", "1"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert result.stdout.splitlines() == ["python script.py --seed 1", "None", "None"]


def test_gsde_acts_with_the_noise_of_the_weights_that_were_saved(tmp_path: Path) -> None:
    model = TrMRLPPO("TrMRLPolicy", "Pendulum-v1", n_steps=8, batch_size=8, use_sde=True, seed=0, device="cpu")
    with th.no_grad():
        model.policy.log_std.fill_(-20.0)
    model.save_pretrained(tmp_path / "model", training_state=False)
    before = th.random.get_rng_state()
    loaded = sb3_trmrl.load(tmp_path / "model", device="cpu")
    assert th.equal(th.random.get_rng_state(), before)
    observation = np.ones((1, 3), np.float32)
    with_noise, without = (loaded.predict(observation, deterministic=mode)[0] for mode in (False, True))
    np.testing.assert_allclose(with_noise, without, atol=1e-5)


def test_vec_envs_of_two_families_and_plain_limits_are_described_as_they_are() -> None:
    two = DummyVecEnv([lambda: gym.make("PointRobot-v0"), lambda: gym.make("SparsePointRobot-v0")])
    assert describe_environment(two, 2)["id"] is None
    plain = describe_environment(DummyVecEnv([lambda: gym.make("CartPole-v1")]), 1)
    assert plain["id"] == "CartPole-v1" and "wrappers" not in plain
    other = describe_environment(DummyVecEnv([lambda: gym.make("CartPole-v1", max_episode_steps=7)]), 1)
    assert other["wrappers"] == ["TimeLimit"]


def test_a_zip_does_not_keep_what_a_folder_said_of_its_environment(tmp_path: Path) -> None:
    env = make_meta_vec_env("PointRobot-v0", 2, 0, env_kwargs=dict(horizon=10))
    TrMRLPPO("TrMRLPolicy", env, n_steps=20, batch_size=20, seed=0, device="cpu").save_pretrained(tmp_path / "a")
    other = make_meta_vec_env("PointRobot-v0", 2, 0, env_kwargs=dict(horizon=50))
    loaded: Any = sb3_trmrl.load(tmp_path / "a", env=other, device="cpu")
    loaded.save(tmp_path / "b.zip")
    assert TrMRLPPO.load(tmp_path / "b.zip", device="cpu").saved_environment is None


def test_keys_of_others_do_not_become_code() -> None:
    task = {"goal": [0, 0], 'a=print("ran"),b': 1, "left-arm": 1.0, "class": {"x": 2}}
    assert "print(" in str(task) and eval(_as_python([task])) == [task]
    assert _as_python({"x": {"y": 1}}) == "dict(x=dict(y=1))"
    for kind in ("linear_to_zero", "linear"):
        code = _as_python({"schedule": kind, "start": "print('ran')", "end": 0.0, "end_fraction": 1.0})
        assert code.partition("(")[2].startswith('"print(')


@pytest.mark.parametrize("prefix", ["run[1]", "a*"])
def test_checkpoints_of_any_prefix_are_found(tmp_path: Path, prefix: str) -> None:
    callback = PretrainedCheckpointCallback(20, tmp_path / "c", keep_last=1, name_prefix=prefix)
    small().learn(60, callback=callback)
    assert latest_checkpoint(tmp_path / "c", prefix) == tmp_path / "c" / f"{prefix}_60_steps"
    assert len(list((tmp_path / "c").glob("*_steps"))) == 1
    # Another training with the same callback has a best model of its own
    callback.best_score = np.inf
    shutil.rmtree(tmp_path / "c")
    small().learn(60, callback=callback)
    assert np.isfinite(callback.best_score) and (tmp_path / "c" / "best").is_dir()

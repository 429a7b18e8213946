"""What RL Zoo gets from us: settings, samplers, environments and callbacks. The commands: test_zoo_commands.py."""

import argparse
import operator
import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import gymnasium as gym
import optuna
import pytest
import rl_zoo3.exp_manager
import torch as th
import yaml
from optuna.storages.journal import JournalFileBackend
from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, HYPERPARAMS_SAMPLER
from rl_zoo3.utils import ALGOS
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

from sb3_trmrl import RL2PPO, TrMRLPPO, hyperparams_dir, runs
from sb3_trmrl.common.callbacks import MetaEvalCallback
from sb3_trmrl.common.vec_env import MujocoVecEnv
from sb3_trmrl.envs import PointRobot, TrialWrapper
from sb3_trmrl.envs.registration import META_ENVS, METAWORLD_ENVS, evaluation_kwargs
from sb3_trmrl.hub import PretrainedCheckpointCallback
from sb3_trmrl.zoo import ALGORITHMS, register
from sb3_trmrl.zoo.exp_manager import MetaExperimentManager, ZooExperimentManager, _takes_split
from sb3_trmrl.zoo.hyperparams_opt import into_block

WITHOUT_TASKS = ["CartPoleNoVel-v1", "PendulumNoVel-v1"]
"""Environments of the zoo's own with a block."""
ZOO_DEFAULTS = Path(rl_zoo3.exp_manager.__file__).parent / "hyperparams"


@pytest.fixture(autouse=True)
def registered():
    register()


def settings_of(algo: str) -> dict[str, dict[str, Any]]:
    return yaml.safe_load((hyperparams_dir() / f"{algo}.yml").read_text(encoding="utf-8"))


def make_manager(tmp_path: Path, algo: str = "trmrl", env_id: str = "PointRobot-v0", **kwargs: Any) -> Any:
    """As ``rl_zoo3.train`` makes it."""
    manager_class = rl_zoo3.exp_manager.ExperimentManager
    assert manager_class is MetaExperimentManager
    return manager_class(argparse.Namespace(), algo, env_id, str(tmp_path), device="cpu", verbose=0, **kwargs)


def test_registration_twice_is_the_same_as_once():
    before = dict(ALGOS), dict(HYPERPARAMS_SAMPLER), dict(HYPERPARAMS_CONVERTER), rl_zoo3.exp_manager.ExperimentManager
    register()
    assert before == (dict(ALGOS), dict(HYPERPARAMS_SAMPLER), dict(HYPERPARAMS_CONVERTER), MetaExperimentManager)
    assert ALGOS["trmrl"] is TrMRLPPO and ALGOS["rl2"] is RL2PPO
    assert {"ppo", "sac", "ppo_lstm"} <= set(ALGOS), "the zoo's own stay"


# ---- Settings ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [f"{algo}{suffix}" for algo in ALGORITHMS for suffix in ("", "_paper")])
def test_every_registered_id_has_a_block_with_its_status(settings):
    text = (hyperparams_dir() / f"{settings}.yml").read_text(encoding="utf-8")
    blocks = set(yaml.safe_load(text))
    assert blocks - set(METAWORLD_ENVS) - set(WITHOUT_TASKS) == {"default", *META_ENVS}
    assert (blocks >= set(WITHOUT_TASKS)) is not settings.endswith("_paper")
    assert blocks >= {"ML1-reach-v3", "ML1-push-v3", "ML1-pick-place-v3"}
    for block in re.split(r"\n\n", text)[1:]:
        assert re.match(r"# (Paper|Reference code|Tuned|To be tuned)", block), block


@pytest.mark.parametrize("algo", ALGORITHMS)
@pytest.mark.parametrize("env_id", WITHOUT_TASKS)
def test_blocks_of_the_zoos_environments_train(tmp_path, algo, env_id):
    hyperparams = {"n_envs": 2, "n_steps": 32, "batch_size": 32, "n_epochs": 1}
    manager = make_manager(tmp_path, algo, env_id, eval_freq=-1, n_timesteps=64, hyperparams=hyperparams, log_interval=1)
    model, _ = manager.setup_experiment()
    manager.learn(model)
    rate = float(settings_of(algo)[env_id]["learning_rate"].removeprefix("lin_"))
    assert model.num_timesteps == 64 and model.lr_schedule(0.5) == rate / 2


@pytest.mark.parametrize("suffix", ["", "_paper"])
@pytest.mark.parametrize("algo", ALGORITHMS)
@pytest.mark.parametrize("env_id", META_ENVS)
def test_blocks_make_an_agent_whose_rollout_is_whole_trials(tmp_path, algo, env_id, suffix):
    # Two environments are enough to see that everything fits
    config = str(hyperparams_dir() / f"{algo}{suffix}.yml")
    manager = make_manager(tmp_path, algo, env_id, eval_freq=-1, n_timesteps=1, hyperparams={"n_envs": 2}, config=config)
    model, _ = manager.setup_experiment()
    made: type = type(model)
    assert made is ALGORITHMS[algo].algorithm
    (episodes,) = set(model.env.get_attr("episodes_per_trial"))
    (horizon,) = {family.horizon for family in model.env.get_attr("meta_env")}
    assert model.n_steps % (episodes * horizon) == 0
    block = settings_of(algo)[env_id]
    rollout = block["n_steps"] * block["n_envs"]
    assert rollout % block["batch_size"] == 0 and rollout % 800 == 0, "800: the largest batch that is searched"
    model.env.close()


def test_own_settings_are_the_default_and_conf_file_goes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert make_manager(tmp_path).config == str(hyperparams_dir() / "trmrl.yml")
    assert make_manager(tmp_path, "rl2").config == str(hyperparams_dir() / "rl2.yml")
    assert make_manager(tmp_path, "ppo").config == str(ZOO_DEFAULTS / "ppo.yml")
    # As in the repository, from anywhere
    paper = "hyperparams/trmrl_paper.yml"
    assert make_manager(tmp_path, config=paper).config == str(hyperparams_dir() / "trmrl_paper.yml")
    assert make_manager(tmp_path, "ppo", config=paper).config == paper
    assert make_manager(tmp_path, config="hyperparams/mine.yml").config == "hyperparams/mine.yml"
    (tmp_path / "hyperparams").mkdir()
    (tmp_path / paper).write_text("mine: {}", encoding="utf-8")
    assert make_manager(tmp_path, config=paper).config == paper, "a file that is there is taken"


def test_ppo_lstm_gets_a_policy_that_it_has(tmp_path):
    manager = make_manager(tmp_path, "ppo_lstm")
    assert manager.read_hyperparameters()[0]["policy"] == "MlpLstmPolicy"
    manager = make_manager(tmp_path, "ppo_lstm", hyperparams={"policy": "CnnLstmPolicy"})
    assert manager.read_hyperparameters()[0]["policy"] == "CnnLstmPolicy"
    assert make_manager(tmp_path, "ppo_lstm", "CartPole-v1").custom_hyperparams is None
    # Canary: when this fails, rl_zoo3 is mended, and MetaExperimentManager needs no such line any more
    assert yaml.safe_load((ZOO_DEFAULTS / "ppo_lstm.yml").read_text())["default"]["policy"] == "MlpPolicy"


# ---- Environments ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("env_id", "kwargs", "vec_env_cls"),
    [
        ("HalfCheetahVel-v0", {}, MujocoVecEnv),
        ("HalfCheetahVel-v0", {"vec_env_type": "subproc"}, SubprocVecEnv),
        ("HalfCheetahVel-v0", {"algo": "ppo"}, MujocoVecEnv),
        ("PointRobot-v0", {}, DummyVecEnv),
        ("CartPole-v1", {"algo": "ppo"}, DummyVecEnv),
    ],
)
def test_vectorised_environment(tmp_path, env_id, kwargs, vec_env_cls):
    env = make_manager(tmp_path, env_id=env_id, **kwargs).create_envs(2, no_log=True)
    assert type(env) is vec_env_cls
    env.close()


def eval_env_kwargs(manager: Any) -> dict[str, Any]:
    manager._preprocess_hyperparams(manager.read_hyperparameters()[0])
    return manager.eval_env_kwargs


def test_evaluation_is_on_test_tasks_with_the_keywords_of_training(tmp_path):
    assert eval_env_kwargs(make_manager(tmp_path)) == {"episodes_per_trial": 3, "split": "test"}
    assert eval_env_kwargs(make_manager(tmp_path, "ppo")) == {"split": "test"}
    manager = make_manager(tmp_path, env_kwargs={"horizon": 5}, eval_env_kwargs={"split": "ood"})
    assert eval_env_kwargs(manager) == {"horizon": 5, "split": "ood"}
    # A wrapper that records needs it there too
    manager_that_shows = make_manager(tmp_path, env_kwargs={"render_mode": "rgb_array"})
    assert eval_env_kwargs(manager_that_shows) == {"render_mode": "rgb_array", "split": "test"}
    manager._zoo_eval_env_kwargs = {}
    env = manager.create_envs(1, eval_env=True)
    assert env.get_attr("split") == ["ood"] and env.get_attr("meta_env")[0].horizon == 5
    # Hyperparameters must not be chosen on the tasks that judge them
    assert eval_env_kwargs(make_manager(tmp_path, optimize_hyperparameters=True))["split"] == "train"
    # Not our environments: as the zoo does it
    assert eval_env_kwargs(make_manager(tmp_path, "ppo", "CartPole-v1", env_kwargs={"a": 1})) == {"a": 1}


def test_evaluation_is_neither_on_tasks_of_training_nor_augmented(tmp_path):
    given = {"tasks": [{"velocity": 1.0}], "horizon": 5}
    manager = make_manager(tmp_path, env_id="HalfCheetahVel-v0", env_kwargs=given)
    assert eval_env_kwargs(manager) == {"horizon": 5, "split": "test"}
    manager = make_manager(tmp_path, env_id="HalfCheetahVel-v0", env_kwargs=given, eval_env_kwargs={"tasks": given["tasks"]})
    assert eval_env_kwargs(manager) == {**given, "split": "test"}
    assert evaluation_kwargs({"random_frames": True, "hide_objects": True, "split": "train"}) == {"hide_objects": True}


def test_slots_of_evaluation_play_other_tasks_than_those_of_training(tmp_path):
    # In an optimisation both draw from the train split
    manager = make_manager(tmp_path, env_id="HalfCheetahVel-v0", seed=7, optimize_hyperparameters=True)
    eval_env_kwargs(manager)
    tasks: dict[bool, list[float]] = {}
    for is_evaluation, n_envs in ((False, 3), (True, 1)):
        env = manager.create_envs(n_envs, eval_env=is_evaluation, no_log=True)
        env.reset()
        tasks[is_evaluation] = [float(task["velocity"]) for task in env.env_method("get_task")]
        env.close()
    assert len({*tasks[False], *tasks[True]}) == 4 and manager.seed == 7


def test_a_users_own_family_has_splits_too(tmp_path):
    def make(episodes_per_trial: int = 2, split: str = "train", tasks: Any = None, **kwargs: Any) -> TrialWrapper:
        return TrialWrapper(PointRobot(**kwargs), episodes_per_trial, split, tasks)

    def other(split: str = "train") -> Any:
        raise AssertionError("a set of data with a part for training, say")

    makers: dict[str, Any] = {"Mine-v0": make, "Other-v0": other, "Any-v0": lambda **kwargs: make(**kwargs)}
    for env_id, maker in makers.items():
        gym.register(env_id, entry_point=maker)
    try:
        assert eval_env_kwargs(make_manager(tmp_path, env_id="Mine-v0"))["split"] == "test"
        assert [_takes_split(env_id) for env_id in makers] == [True, False, False]
    finally:
        for env_id in makers:
            del gym.registry[env_id]


def test_callbacks_of_the_yaml_file_write_to_the_folder_of_the_run(tmp_path):
    callback = [{"sb3_trmrl.common.callbacks.MetaEvalCallback": {"eval_freq": 10}}]
    manager = make_manager(tmp_path, eval_freq=-1, hyperparams={"callback": callback})
    manager.setup_experiment()
    (meta_eval,) = manager.callbacks
    assert isinstance(meta_eval, MetaEvalCallback) and meta_eval.save_path == Path(manager.save_path)
    # or where the file says
    elsewhere = [{"sb3_trmrl.common.callbacks.MetaEvalCallback": {"save_path": str(tmp_path / "mine")}}]
    manager = make_manager(tmp_path, eval_freq=-1, hyperparams={"callback": elsewhere})
    manager.setup_experiment()
    assert manager.callbacks[0].save_path == tmp_path / "mine"


def test_two_evaluations_of_the_yaml_file_have_a_name_and_a_folder_each(tmp_path):
    name = "sb3_trmrl.common.callbacks.MetaEvalCallback"
    both = [{name: {"eval_freq": 10}}, {name: {"eval_freq": 10, "split": "ood", "name": "meta_eval_ood"}}]
    manager = make_manager(tmp_path, eval_freq=-1, hyperparams={"callback": both})
    manager.setup_experiment()
    folder = Path(manager.save_path)
    assert [callback.save_path for callback in manager.callbacks] == [folder, folder / "meta_eval_ood"]
    manager = make_manager(tmp_path, eval_freq=-1, hyperparams={"callback": [both[0], both[0]]})
    with pytest.raises(ValueError, match=r"need a name each, got \['meta_eval', 'meta_eval'\]"):
        manager.setup_experiment()


def test_environments_made_by_two_threads_keep_their_seeds(tmp_path, monkeypatch):
    # --n-jobs of an optimisation
    manager = make_manager(tmp_path, seed=3)
    seeds: list[tuple[bool, int]] = []

    def create_envs(self: Any, n_envs: int, eval_env: bool = False, no_log: bool = False) -> None:
        before = self.seed
        time.sleep(0.01)
        assert self.seed == before
        seeds.append((eval_env, self.seed))

    monkeypatch.setattr(ZooExperimentManager, "create_envs", create_envs)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda index: manager.create_envs(1, eval_env=index % 2 == 1), range(16)))
    assert manager.seed == 3 and {seed for eval_env, seed in seeds if not eval_env} == {3}
    assert len(seeds) == 16 and len({seed for eval_env, seed in seeds if eval_env} - {3}) == 1


# ---- Optimising hyperparameters ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_every_draw_makes_an_agent_and_converts_to_itself(algo):
    entry = ALGORITHMS[algo]
    make: Any = entry.algorithm
    drawn = []

    def objective(trial: optuna.Trial) -> float:
        hyperparams = entry.sampler(trial, 2, 4, {})
        # What --trial-id reads from the storage
        assert entry.converter(trial.params) == hyperparams
        model = make(f"{entry.algorithm.__name__[:-3]}Policy", "PointRobot-v0", n_steps=40, device="cpu", **hyperparams)
        assert 0.9 <= model.gamma < 1 and 0.7 <= model.gae_lambda < 1 and model.batch_size in (400, 800, 1600)
        assert th.allclose(model.policy.log_std, th.tensor(hyperparams["policy_kwargs"]["log_std_init"]))
        drawn.append(hyperparams)
        return 0.0

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0)).optimize(objective, n_trials=15)
    assert len(drawn) == 15
    for name in ("learning_rate", "batch_size", "clip_range", "n_epochs", "target_kl"):
        assert len({str(hyperparams[name]) for hyperparams in drawn}) > 1, f"{name} is not searched"
    assert len({str(hyperparams["policy_kwargs"]["memory_encoder_kwargs"]) for hyperparams in drawn}) > 3


def test_refused_gradients_prune_the_trial(tmp_path, monkeypatch):
    hyperparams = {"n_envs": 1, "n_steps": 60, "batch_size": 60}
    manager = make_manager(tmp_path, n_timesteps=60, optimize_hyperparameters=True, n_evaluations=1, hyperparams=hyperparams)
    manager.setup_experiment()

    def refuse(self: Any) -> None:
        raise FloatingPointError("A gradient is not finite")

    monkeypatch.setattr(TrMRLPPO, "train", refuse)
    study = optuna.create_study()
    study.optimize(manager.objective, n_trials=1)
    assert study.trials[0].state == optuna.trial.TrialState.PRUNED


BLOCK = {"n_envs": 2, "n_steps": 40, "policy": "TrMRLPolicy", "n_timesteps": 80}
BLOCKS: dict[str, tuple[str, Any, dict[str, Any]]] = {
    # policy_kwargs of the block, and what of the policy and of its encoder is not drawn
    "nothing": ("trmrl", None, {"memory_reset": "trial"}),
    "window": (
        "trmrl",
        "dict(critic='memoryless', memory_reset='episode', value_log_std_init=0.0, optimizer_class=th.optim.AdamW, "
        "memory_encoder_kwargs=dict(attention='window', memory_length=5))",
        {"memory_reset": "episode", "value_log_std_init": 0.0, "actor_memory.attention": "window"},
    ),
    "gtrxl": (
        "trmrl",
        {"memory_encoder": "gtrxl", "memory_encoder_kwargs": {"memory_length": 9, "n_layers": 4}},
        {"actor_memory.memory_length": 9},
    ),
    "lstm": ("rl2", {"memory_reset": "episode", "memory_encoder": "lstm"}, {"memory_reset": "episode"}),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_what_is_drawn_goes_into_the_block(name, tmp_path, monkeypatch):
    algo, policy_kwargs, kept = BLOCKS[name]
    settings = {**BLOCK, "policy": f"{ALGORITHMS[algo].algorithm.__name__[:-3]}Policy"}
    if policy_kwargs is not None:
        settings["policy_kwargs"] = policy_kwargs
    if name == "window":
        settings["two_phase_update"] = {"value_learning_rate": 1e-3}
    (tmp_path / "mine.yml").write_text(yaml.safe_dump({"PointRobot-v0": settings}))
    mine = dict(algo=algo, config=str(tmp_path / "mine.yml"))
    manager = make_manager(tmp_path, optimize_hyperparameters=True, n_evaluations=1, **mine)
    manager.setup_experiment()
    tried: list[Any] = []
    monkeypatch.setattr(ALGORITHMS[algo].algorithm, "learn", lambda model, *_, **__: tried.append(model))
    storage = str(tmp_path / "study.log")
    backend = JournalFileBackend(storage)
    study = optuna.create_study(
        storage=optuna.storages.JournalStorage(backend), study_name="s", sampler=optuna.samplers.RandomSampler(seed=1)
    )
    study.optimize(manager.objective, n_trials=3)

    def described(policy: Any) -> dict[str, Any]:
        return {key: operator.attrgetter(key)(policy) for key in kept}

    encoders = {str(model.policy.actor_memory) for model in tried}
    assert len(encoders) > 1, "its sizes are searched"
    for number, model in enumerate(tried):
        assert described(model.policy) == kept
        # --trial-id, 0 too
        again = make_manager(tmp_path, storage=storage, study_name="s", trial_id=number, **mine)
        model_again, saved = again.setup_experiment()
        assert str(model_again.policy) == str(model.policy) and described(model_again.policy) == kept
        assert model_again.batch_size == model.batch_size and saved["n_epochs"] == model.n_epochs
        assert type(model_again.policy.optimizer) is type(model.policy.optimizer)
        assert again.read_hyperparameters()[1] == saved
    # What is written down of it is read without running anything
    assert isinstance(runs._read(Path(again.save_path) / "PointRobot-v0", "config.yml")["policy_kwargs"], dict)


def test_parameters_of_the_command_line_are_those_of_the_trial_too(tmp_path, monkeypatch):
    mine: dict[str, Any] = dict(
        hyperparams={"policy_kwargs": {"memory_reset": "episode", "normalize_observations": False}, "n_steps": 40}
    )
    manager = make_manager(tmp_path, optimize_hyperparameters=True, n_timesteps=80, n_evaluations=1, **mine)
    manager.setup_experiment()
    tried: list[Any] = []
    monkeypatch.setattr(TrMRLPPO, "learn", lambda model, *_, **__: tried.append(model))
    storage = str(tmp_path / "study.log")
    study = optuna.create_study(storage=optuna.storages.JournalStorage(JournalFileBackend(storage)), study_name="s")
    study.optimize(manager.objective, n_trials=1)
    again, _ = make_manager(tmp_path, storage=storage, study_name="s", trial_id=0, **mine).setup_experiment()
    assert str(again.policy) == str(tried[0].policy) and again.n_steps == tried[0].n_steps == 40
    for policy in (again.policy, tried[0].policy):
        assert policy.memory_reset == "episode" and not policy.normalize_observations


def test_of_memories_only_one_recurrent_network_takes_the_place_of_another():
    drawn = {"policy_kwargs": {"memory_encoder": "gru", "memory_encoder_kwargs": {"hidden_size": 32}}, "gamma": 0.9}
    lstm = {"policy_kwargs": {"memory_encoder": "lstm", "memory_encoder_kwargs": {"hidden_size": 8, "context_length": 3}}}
    assert into_block(lstm, drawn)["policy_kwargs"] == {
        "memory_encoder": "gru",
        "memory_encoder_kwargs": {"hidden_size": 32, "context_length": 3},
    }
    snail = {"policy_kwargs": {"memory_encoder": "snail"}}
    assert into_block(snail, drawn)["policy_kwargs"] == {"memory_encoder": "snail", "memory_encoder_kwargs": {}}
    assert into_block({}, drawn) == drawn


def test_checkpoints_of_the_yaml_file_lie_in_the_folder_of_the_run_and_a_study_has_none(tmp_path):
    callback = [
        {"sb3_trmrl.hub.PretrainedCheckpointCallback": {"save_freq": 40}},
        {"sb3_trmrl.common.callbacks.MetaEvalCallback": {"eval_freq": 40, "n_tasks": 1, "n_episodes": 1}},
    ]
    hyperparams = {"n_envs": 2, "n_steps": 20, "batch_size": 40, "n_epochs": 1, "callback": callback}
    for _ in range(2):  # twice with one yaml file
        manager = make_manager(tmp_path, n_timesteps=40, eval_freq=-1, log_interval=1, hyperparams=hyperparams)
        model, _ = manager.setup_experiment()
        manager.learn(model)
        assert (Path(manager.save_path) / "checkpoints" / "checkpoint_40_steps" / "config.json").is_file()
    twice = {**hyperparams, "callback": 2 * callback[:1]}
    with pytest.raises(ValueError, match="remove each other's checkpoints: give them a save_path each"):
        make_manager(tmp_path, n_timesteps=40, hyperparams=twice).setup_experiment()
    study = optuna.create_study()
    manager = make_manager(tmp_path, n_timesteps=40, optimize_hyperparameters=True, n_evaluations=1, hyperparams=hyperparams)
    manager.setup_experiment()
    assert list(manager.specified_callbacks[0]) == ["sb3_trmrl.common.callbacks.MetaEvalCallback"]
    study.optimize(manager.objective, n_trials=2)
    assert [trial.state for trial in study.trials] == [optuna.trial.TrialState.COMPLETE] * 2
    with pytest.raises(ValueError, match=r"needs save_path.*outside of RL Zoo"):
        TrMRLPPO("TrMRLPolicy", "PointRobot-v0", n_steps=40, device="cpu").learn(
            40, callback=PretrainedCheckpointCallback(save_freq=40)
        )

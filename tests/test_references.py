"""References: exact ones against closed forms, trained ones by what they can and can't see, their files."""

import dataclasses
import json
import pickle
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import yaml
from stable_baselines3.common.vec_env import VecEnv

from sb3_trmrl import AdaptationResult, TrMRLPPO, evaluate_adaptation, hyperparams_dir
from sb3_trmrl.common.env_util import make_meta_vec_env
from sb3_trmrl.common.references import (
    AGENTS,
    CLOSED_FORMS,
    SCRIPTS,
    SHIPPED,
    GoTo,
    RandomAgent,
    SeesTasks,
    TaskInObservation,
    file_name,
    files,
    load_references,
    make_references,
    task_vector,
    train_reference,
    trained,
)
from sb3_trmrl.envs import META_ENVS
from sb3_trmrl.envs.registration import relevant_kwargs

TINY = dict(timesteps=1, n_tasks=3, n_episodes=2)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("SB3_TRMRL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "references"


# ---- exact -----------------------------------------------------------------------------------------------------------


def test_oracle_of_the_bandit_is_what_the_best_arm_pays():
    tasks = [{"probabilities": [0.1, 0.9, 0.2, 0.3, 0.0]}, {"probabilities": [0.5] * 5}]
    expected = {name: 10 * reward(tasks) for name, (_, reward) in CLOSED_FORMS["MetaBandit-v0"].items()}
    np.testing.assert_allclose(expected["oracle"], [9.0, 5.0])
    np.testing.assert_allclose(expected["blind"], [3.0, 5.0])
    played = evaluate_adaptation(lambda tokens: np.array([1, 0]), "MetaBandit-v0", n_episodes=2_000, tasks=tasks)
    error = np.sqrt(10 * np.array([0.09, 0.25]) / 2_000)
    assert (np.abs(played.returns.mean(axis=1) - expected["oracle"]) < 4 * error).all()


@pytest.mark.parametrize("env_id", ["PointRobot-v0", "SparsePointRobot-v0"])
@pytest.mark.parametrize("split", ["test", "ood"])
def test_oracle_of_the_point_robots_is_the_shortest_way(env_id, split):
    tasks = evaluate_adaptation(GoTo(np.zeros((5, 2))), env_id, 5, 1, split).tasks
    result = evaluate_adaptation(SCRIPTS[env_id]["oracle"][1](tasks), env_id, n_episodes=1, tasks=tasks)
    slot_seed = int(np.random.SeedSequence(0).generate_state(1)[0] % 2**31)
    for index, task in enumerate(tasks):
        token, _ = gym.make(env_id).reset(seed=slot_seed + index, options={"task": task})
        # After t steps each coordinate is as near as t steps of 0.1 m can bring it; nothing is nearer
        gap = np.abs(np.array(task["goal"]) - token[:2])
        distance = np.linalg.norm(np.maximum(gap - 0.1 * np.arange(1, 21)[:, None], 0.0), axis=1)
        reward = -distance if env_id == "PointRobot-v0" else np.where(distance <= 0.2, 1.0 - distance, 0.0)
        assert result.returns[index, 0] == pytest.approx(reward.sum(), abs=1e-4)
        assert result.success is not None and result.success[index, 0] == (distance.min() <= 0.2)


def test_blind_cheetah_stands_still():
    env_id = "HalfCheetahDir-v0"
    tasks = [{"direction": 1.0}, {"direction": -1.0}]
    result = evaluate_adaptation(SCRIPTS[env_id]["blind"][1](tasks), env_id, n_episodes=2, tasks=tasks)
    assert np.abs(result.returns).max() < 10.0  # it falls a little; running earns hundreds


def test_random_agent_is_uniform_and_seeded():
    space = gym.make("PointRobot-v0").action_space
    first, again = (RandomAgent(space, seed=3).predict(np.zeros((2_000, 6)))[0] for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert first.min() >= -1.0 and first.max() <= 1.0 and abs(first.mean()) < 0.05
    assert first.std() == pytest.approx(1 / np.sqrt(3), rel=0.03)


# ---- trained ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("env_id", ["PointRobot-v0", "HalfCheetahVel-v0"])
def test_task_stands_behind_the_token(env_id):
    kwargs = dict(episodes_per_trial=1, horizon=3)
    plain, seeing = make_meta_vec_env(env_id, 2, seed=0, env_kwargs=kwargs), make_meta_vec_env(env_id, 2, 0, env_kwargs=kwargs)
    wrapped = TaskInObservation(seeing)
    plain.reset()  # as the wrapper has, to know the tasks
    size = plain.observation_space.shape[0]  # type: ignore[index]
    tokens: Any = plain.reset()
    more: Any = wrapped.reset()
    assert wrapped.observation_space.shape == more.shape[1:]
    generator = np.random.default_rng(0)
    for step in range(7):
        np.testing.assert_array_equal(more[:, :size], tokens)
        tasks = plain.env_method("get_task")
        np.testing.assert_array_equal(more[:, size:], [task_vector(task) for task in tasks])
        actions = generator.uniform(-1, 1, size=(2, *plain.action_space.shape)).astype(np.float32)  # type: ignore[misc]
        tokens, _, dones, infos = plain.step(actions)
        more, _, _, more_infos = wrapped.step(actions)
        assert dones.all() == (step % 3 == 2)
        for slot in np.flatnonzero(dones):
            # The last observation of a trial belongs to its task, not to the next one's
            expected = np.append(infos[slot]["terminal_observation"], task_vector(tasks[slot]))
            np.testing.assert_array_equal(more_infos[slot]["terminal_observation"], expected)
    assert plain.env_method("get_task") != tasks or step % 3 != 2


def changes(model: Any, columns: range) -> bool:
    """Whether the action depends on these columns of the observation."""
    observation = np.random.default_rng(0).normal(size=(1, model.observation_space.shape[0])).astype(np.float32)
    other = observation.copy()
    other[:, list(columns)] += 1.0
    first, second = (model.predict(one, deterministic=True)[0] for one in (observation, other))
    return not np.array_equal(first, second)


@pytest.mark.parametrize("agent, sees", [("oracle", "ot"), ("reactive", "opt"[:2]), ("blind", "o")])
def test_each_agent_sees_what_it_may(agent, sees):
    model = train_reference(agent, "PointRobot-v0", timesteps=1)
    parts = {"o": range(0, 2), "p": range(2, 6), "t": range(6, 8)}
    assert model.observation_space.shape == ((8,) if agent == "oracle" else (6,))
    for part, columns in parts.items():
        if columns.stop <= model.observation_space.shape[0]:
            assert changes(model, columns) == (part in sees), part


def test_oracle_is_trained_on_ood_tasks_too():
    oracle, blind = (train_reference(agent, "PointRobot-v0", timesteps=1) for agent in ("oracle", "blind"))
    splits = oracle.get_env().get_attr("split")  # type: ignore[union-attr]
    assert splits == ["ood", "train"] * (len(splits) // 2)
    assert set(blind.get_env().get_attr("split")) == {"train"}  # type: ignore[union-attr]
    # No such split: nothing to do
    assert set(train_reference("oracle", "HalfCheetahDir-v0", 0, 1).get_env().get_attr("split")) == {"train"}  # type: ignore[union-attr]


@pytest.mark.parametrize("agent", ["oracle", "reactive", "blind"])
def test_trained_references_remember_nothing(agent):
    model: Any = train_reference(agent, "PointRobot-v0", timesteps=1)
    tokens = np.random.default_rng(1).normal(size=(2, model.observation_space.shape[0])).astype(np.float32)
    fresh, _ = model.predict(tokens[1:], deterministic=True)
    _, state = model.predict(tokens[:1], deterministic=True)
    later, _ = model.predict(tokens[1:], state=state, deterministic=True)
    np.testing.assert_array_equal(fresh, later)


def test_ppo_is_that_of_the_yaml_file():
    block = yaml.safe_load((hyperparams_dir() / "trmrl.yml").read_text())["PointRobot-v0"]
    model = train_reference("blind", "PointRobot-v0", timesteps=1, seed=4)
    for name in ("n_steps", "batch_size", "gamma", "gae_lambda", "n_epochs"):
        assert getattr(model, name) == block[name]
    assert model.seed == 4 and model.n_envs == block["n_envs"]


@pytest.mark.slow
def test_oracle_learns_what_blind_cannot():
    # Seconds of training are enough to see who knows the goal
    oracle, blind = (train_reference(agent, "PointRobot-v0", timesteps=20_000) for agent in ("oracle", "blind"))
    tasks = [{"goal": [x, y]} for x in (-0.9, 0.9) for y in (-0.9, 0.9)] * 5
    kwargs: dict[str, Any] = dict(n_episodes=2, tasks=tasks)
    seeing = evaluate_adaptation(SeesTasks(oracle, tasks), "PointRobot-v0", **kwargs).returns.mean()
    not_seeing = evaluate_adaptation(blind, "PointRobot-v0", **kwargs).returns.mean()
    assert seeing > not_seeing + 4.0


def test_only_vectors():
    with pytest.raises(ValueError, match="must make a trial environment"):
        make_references("CartPole-v1", **TINY)  # type: ignore[arg-type]


# ---- files -----------------------------------------------------------------------------------------------------------


def test_made_cached_loaded_and_not_trained_again(cache, monkeypatch):
    path = make_references("MetaBandit-v0", command="the command", **TINY)  # type: ignore[arg-type]
    assert path == cache / "MetaBandit-v0.json"
    content = json.loads(path.read_text())
    assert list(content["agents"]) == list(AGENTS)
    entry = content["agents"]["reactive"]
    assert entry["seeds"] == [0] and entry["timesteps"] > 0 and entry["command"] == "the command"
    assert {"sb3_trmrl", "torch"} <= set(entry["versions"])
    assert np.shape(entry["returns"]["test"]) == (1, 3, 2)

    def no_training(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(files, "train_reference", no_training)
    make_references("MetaBandit-v0", agents=["reactive"], **TINY)  # type: ignore[arg-type]
    again = json.loads(path.read_text())
    assert again["agents"]["reactive"]["returns"] == entry["returns"]
    assert list(again["agents"]) == list(AGENTS)  # the others stay
    # Returns on other tasks do not stand beside those, and those do not go because nobody has thought of them
    with pytest.raises(ValueError, match=r"has \['blind', 'oracle', 'reactive'\] with other \['n_tasks', 'tasks'\]"):
        make_references("MetaBandit-v0", agents=["random"], timesteps=1, n_tasks=4, n_episodes=2)
    assert json.loads(path.read_text()) == again
    make_references("MetaBandit-v0", timesteps=1, n_tasks=4, n_episodes=2)
    assert np.shape(json.loads(path.read_text())["agents"]["random"]["returns"]["test"]) == (1, 4, 2)
    assert not list(cache.rglob(".*")), "nothing half written is left"


def test_two_that_make_references_of_one_family_lose_nothing(cache, monkeypatch):
    path = make_references("MetaBandit-v0", agents=["oracle"], **TINY)  # type: ignore[arg-type]
    make_players = files._players

    def another_one_is_quicker(*args: Any) -> Any:
        monkeypatch.setattr(files, "_players", make_players)
        make_references("MetaBandit-v0", agents=["random"], **TINY)  # type: ignore[arg-type]
        return make_players(*args)

    monkeypatch.setattr(files, "_players", another_one_is_quicker)
    make_references("MetaBandit-v0", agents=["reactive"], seeds=[0], **TINY)  # type: ignore[arg-type]
    assert set(json.loads(path.read_text())["agents"]) == {"oracle", "random", "reactive"}


def test_other_settings_are_other_agents(cache, monkeypatch):
    only = dict(agents=["reactive"], **TINY)
    make_references("MetaBandit-v0", **only)  # type: ignore[arg-type]
    settings = files.training_settings("MetaBandit-v0")
    monkeypatch.setattr(files, "training_settings", lambda env_id, conf_file: {**settings, "gamma": 0.5})
    trained = []

    def counted(*args: Any, **kwargs: Any) -> Any:
        trained.append(args)
        return train_reference(*args, **kwargs)

    monkeypatch.setattr(files, "train_reference", counted)
    make_references("MetaBandit-v0", **only)  # type: ignore[arg-type]
    make_references("MetaBandit-v0", **only)  # type: ignore[arg-type]
    monkeypatch.setattr(files, "versions", lambda: {"torch": "99"})
    make_references("MetaBandit-v0", **only)  # type: ignore[arg-type]
    make_references("MetaBandit-v0", **only)  # type: ignore[arg-type]
    assert len(trained) == 2 and len(list((cache / "MetaBandit-v0").glob("reactive_seed0_1_steps_*.zip"))) == 3


@pytest.mark.parametrize("name", ["NoMemory", "Columns"])
def test_agents_of_earlier_versions_load(name):
    # Their zips name these classes where they were then
    assert pickle.loads(f"csb3_trmrl.common.references\n{name}\n.".encode()).__name__ == name


def result_for(env_id: str, seed: int = 0, n_tasks: int = 2, n_episodes: int = 2, **env_kwargs: Any) -> AdaptationResult:
    agent = RandomAgent(gym.make(env_id).action_space, 0)
    return evaluate_adaptation(agent, env_id, n_tasks, n_episodes, seed=seed, env_kwargs=env_kwargs)


def test_rows_of_the_same_tasks(cache, monkeypatch):
    monkeypatch.setattr(files, "SHIPPED", cache / "nothing")
    assert load_references(result_for("MetaBandit-v0")) is None
    make_references("MetaBandit-v0", agents=["oracle", "random"], n_tasks=3, n_episodes=2)
    result = result_for("MetaBandit-v0", n_episodes=4)
    references = load_references(result)
    assert references is not None and references.paired and list(references.returns) == ["oracle", "random"]
    best = 10 * np.array([max(task["probabilities"]) for task in result.tasks])
    # Two of the three tasks; episodes beyond the known ones are like the last
    np.testing.assert_allclose(references.returns["oracle"], np.tile(best[:, None], 4), atol=1e-3)
    other = load_references(result_for("MetaBandit-v0", seed=7))
    assert other is not None and not other.paired and other.returns["oracle"].shape == (3, 2)
    # Another family, another horizon
    assert load_references(result_for("MetaBandit-v0", horizon=5)) is None
    horizon = load_references(result_for("MetaBandit-v0", horizon=10))
    assert horizon is not None and horizon.paired  # the default is no other horizon
    make_references("MetaBandit-v0", agents=["oracle"], n_tasks=3, n_episodes=1, env_kwargs=dict(horizon=5))
    shorter = load_references(result_for("MetaBandit-v0", horizon=5))
    assert shorter is not None
    np.testing.assert_allclose(shorter.returns["oracle"][:, 0], best / 2, atol=1e-3)


def test_own_references_of_the_same_tasks_are_paired():
    # More tasks than the shipped file has; all of its agents are made anew
    result = result_for("PointRobot-v0", n_tasks=41)
    shipped = load_references(result)
    assert shipped is not None and not shipped.paired
    make_references("PointRobot-v0", timesteps=1, n_tasks=41, n_episodes=2)
    own = load_references(result)
    assert own is not None and own.paired and set(own.returns) == set(AGENTS)
    assert {len(returns) for returns in own.returns.values()} == {41}


def test_equal_tasks_are_matched_in_order():
    a, b, c = {"direction": 1.0}, {"direction": -1.0}, {"direction": 2.0}
    rows = files._matching_rows([b, a, b, a, a], [a, b, a, b])
    assert rows is not None and rows.tolist() == [1, 0, 3, 2, 0]
    assert files._matching_rows([a, c], [a, b]) is None


def test_results_of_nobody_knows_what_have_no_references():
    tasks = [{"probabilities": [0.5] * 5}]
    result = evaluate_adaptation(lambda tokens: np.zeros(len(tokens), np.int64), "MetaBandit-v0", n_episodes=1, tasks=tasks)
    assert load_references(result) is None


@pytest.mark.parametrize("env_id", ["/tmp/evil", "../../evil", "..\\evil", 7, ["x"]])
def test_settings_of_a_result_lead_to_no_other_file(cache, env_id):
    cache.mkdir(parents=True)
    (cache.parent.parent / "evil.json").write_text("{}")
    result = result_for("PointRobot-v0")
    for settings in (dict(env_id=env_id), dict(env_kwargs=[1]), dict(split=["x"])):
        assert load_references(dataclasses.replace(result, settings={**result.settings, **settings})) is None


def test_broken_file_is_told(cache):
    result = result_for("MetaBandit-v0")
    cache.mkdir(parents=True)
    for text in ("", "[]", "{}", '{"tasks": {}, "agents": {"oracle": {}}}'):
        (cache / "MetaBandit-v0.json").write_text(text)
        with pytest.raises(ValueError, match=r"MetaBandit-v0\.json is no file of references, or it is broken"):
            load_references(result)
    (cache / "MetaBandit-v0.json").write_text("")
    with pytest.raises(ValueError, match=r"MetaBandit-v0\.json is no file of references, or it is broken"):
        make_references("MetaBandit-v0", agents=["random"], **TINY)  # type: ignore[arg-type]


def test_names_of_files():
    assert file_name("PointRobot-v0", dict(horizon=20, render_mode="rgb_array", episodes_per_trial=3)) == "PointRobot-v0.json"
    names = {file_name("PointRobot-v0", dict(horizon=n)) for n in (5, 6, 20)}
    assert len(names) == 3
    assert relevant_kwargs("PointRobot-v0", dict(horizon=5, split="ood")) == {"horizon": 5}


def test_settings_of_a_file(cache, tmp_path):
    conf_file = tmp_path / "mine.yml"
    conf_file.write_text("HalfCheetahVel-v0: {n_timesteps: 1, policy: TrMRLPolicy, n_steps: 8, batch_size: 8, gamma: 0.5}")
    make_references("HalfCheetahVel-v0", ["reactive"], n_tasks=1, n_episodes=1, env_kwargs={"horizon": 4}, conf_file=conf_file)
    (agent,) = cache.rglob("reactive_seed0_1_steps_*.zip")
    model = TrMRLPPO.load(agent)
    # As they stand there, not as perceptrons want them on physics
    assert (model.gamma, model.n_envs, model.n_steps, model.batch_size, model.n_epochs) == (0.5, 1, 8, 8, 10)


def test_what_the_file_says_of_the_environment_is_evaluated_too(cache, tmp_path):
    conf_file = tmp_path / "mine.yml"
    settings = "n_timesteps: 1, policy: TrMRLPolicy, n_steps: 8, batch_size: 8"
    conf_file.write_text(f"PointRobot-v0: {{{settings}, env_kwargs: {{horizon: 5, episodes_per_trial: 3}}}}")
    path = make_references("PointRobot-v0", ["reactive"], n_tasks=1, n_episodes=1, conf_file=conf_file)
    assert json.loads(path.read_text())["env_kwargs"] == {"horizon": 5}
    assert load_references(result_for("PointRobot-v0", horizon=5)) is not None


def test_a_keyword_that_is_the_familys_default_is_trained_with(cache, tmp_path, monkeypatch):
    conf_file = tmp_path / "mine.yml"
    settings = "n_timesteps: 1, policy: TrMRLPolicy, n_steps: 8, batch_size: 8"
    conf_file.write_text(f"PointRobot-v0: {{{settings}, env_kwargs: {{horizon: 7, episodes_per_trial: 3}}}}")
    made: list[Any] = []

    def make(env_id: str, n_envs: int, seed: int, env_kwargs: Any) -> VecEnv:
        made.append(env_kwargs)
        return make_meta_vec_env(env_id, n_envs, seed, env_kwargs=env_kwargs)

    monkeypatch.setattr(trained, "make_meta_vec_env", make)
    # 20 is PointRobot's own; trials are those of the file
    for kwargs, horizon in ({"horizon": 20, "episodes_per_trial": 9, "split": "test"}, 20), (None, 7):
        make_references("PointRobot-v0", ["reactive"], n_tasks=1, n_episodes=1, env_kwargs=kwargs, conf_file=conf_file)
        assert made.pop() == {"horizon": horizon, "episodes_per_trial": 3}


def test_a_module_before_the_id(cache):
    path = make_references("sb3_trmrl:MetaBandit-v0", ["oracle", "blind"], n_tasks=2, n_episodes=1)
    content = json.loads(path.read_text())
    assert path.name == "MetaBandit-v0.json" and content["env_id"] == "MetaBandit-v0"
    assert all("timesteps" not in entry for entry in content["agents"].values()), "closed forms, nothing was trained"
    assert file_name("sb3_trmrl:HalfCheetahVel-v0", {"horizon": 200}) == file_name("HalfCheetahVel-v0", {"horizon": 200})


def test_one_agent_on_other_tasks_leaves_the_others_paired(cache):
    make_references("PointRobot-v0", ["random"], n_tasks=3, n_episodes=1, eval_seed=7)
    references = load_references(result_for("PointRobot-v0"))
    assert references is not None and references.paired and "random" in references.returns


def test_mistakes():
    with pytest.raises(ValueError, match="agents must be some of"):
        make_references("MetaBandit-v0", agents=["orakel"])
    with pytest.raises(ValueError, match="seeds must hold at least one"):
        make_references("MetaBandit-v0", seeds=[])


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.json")), ids=lambda path: path.stem)
def test_shipped_references(path):
    content = json.loads(path.read_text())
    env_id = content["env_id"]
    assert env_id in META_ENVS and path.name == file_name(env_id, content["env_kwargs"])
    for entry in content["agents"].values():
        assert entry["command"].startswith("sb3-trmrl references") and entry["versions"]["mujoco"] and entry["how"]
        assert ("seeds" in entry) == ("timesteps" in entry)
    references = load_references(result_for(env_id, n_tasks=5, n_episodes=1))
    assert references is not None and references.paired
    test = {name: np.mean(entry["returns"]["test"]) for name, entry in content["agents"].items()}
    if {"oracle", "blind", "random"} <= set(test):
        assert test["oracle"] > test["blind"] >= test["random"] - 0.02 * abs(test["random"])

"""MetaEvalCallback: what it measures, when, what it logs and what it keeps."""

import json
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium.envs.registration import WrapperSpec
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecNormalize

from sb3_trmrl import RL2PPO, AdaptationResult, evaluate_adaptation
from sb3_trmrl.common import callbacks
from sb3_trmrl.common.callbacks import MetaEvalCallback
from sb3_trmrl.common.env_util import make_meta_vec_env
from sb3_trmrl.envs import make_trial_env
from sb3_trmrl.envs.trial import TrialWrapper
from tests.families import Counter

ENV_ID = "PointRobot-v0"


def make_model(env: Any, seed: int = 0) -> RL2PPO:
    policy_kwargs = dict(memory_encoder_kwargs=dict(hidden_size=8))
    return RL2PPO(
        "RL2Policy", env, n_steps=20, batch_size=40, n_epochs=1, seed=seed, device="cpu", policy_kwargs=policy_kwargs
    )


class Recorder(MetaEvalCallback):
    """Remembers what was logged at each evaluation."""

    logged: list[dict[str, Any]]

    def _evaluate(self) -> None:
        self.logged = [*getattr(self, "logged", [])]
        dump = self.logger.dump
        self.logger.dump = lambda step=0: self.logged.append({"step": step, **self.logger.name_to_value})  # type: ignore[method-assign]
        super()._evaluate()
        self.logger.dump = dump  # type: ignore[method-assign]


def test_measures_the_adaptation_curve_of_the_model_at_that_time(tmp_path):
    model = make_model(make_meta_vec_env(ENV_ID, n_envs=4, seed=0, env_kwargs=dict(horizon=5)))
    callback = Recorder(eval_freq=160, n_tasks=3, n_episodes=4, seed=7, save_path=tmp_path)
    # 80 steps in each iteration: evaluated behind the 2nd and the 4th rollout, with the weights of the 1st and 3rd update
    model.learn(330, callback=callback)
    assert callback.timesteps == [160, 320]

    saved = np.load(tmp_path / "meta_evaluations.npz")
    np.testing.assert_array_equal(saved["timesteps"], [160, 320])
    assert saved["returns"].shape == saved["lengths"].shape == saved["success"].shape == (2, 3, 4)
    assert (saved["lengths"] == 5).all(), "the horizon of training is kept"

    best = RL2PPO.load(tmp_path / "best_meta_model", device="cpu")
    again = evaluate_adaptation(best, ENV_ID, n_tasks=3, n_episodes=4, seed=7, env_kwargs=dict(horizon=5))
    best_index = int(saved["returns"].mean(axis=(1, 2)).argmax())
    np.testing.assert_allclose(saved["returns"][best_index], again.returns, rtol=1e-6)
    assert callback.best_mean_return == pytest.approx(saved["returns"].mean(axis=(1, 2)).max(), rel=1e-12)
    assert [json.loads(task) for task in saved["tasks"]] == again.tasks
    family = gym.make(ENV_ID, split="test").unwrapped
    assert isinstance(family, TrialWrapper)
    family.reset(seed=7)
    assert family.sample_tasks(3) == again.tasks, "held-out tasks"

    for index, logged in enumerate(callback.logged):
        assert logged["step"] == logged["time/total_timesteps"] == saved["timesteps"][index]
        curve = [logged[f"meta_eval/return_episode_{k}"] for k in range(1, 5)]
        np.testing.assert_allclose(curve, saved["returns"][index].mean(axis=0))
        np.testing.assert_allclose(logged["meta_eval/adaptation_gain"], curve[3] - curve[0])
        assert [logged[f"meta_eval/success_episode_{k}"] for k in range(1, 5)] == list(saved["success"][index].mean(axis=0))


def test_best_model_is_not_overwritten_by_a_worse_one(tmp_path):
    model = make_model(make_meta_vec_env(ENV_ID, n_envs=2, seed=0, env_kwargs=dict(horizon=5)))

    class HasSeenTheBest(MetaEvalCallback):
        def _on_training_start(self) -> None:
            super()._on_training_start()
            self.best_mean_return = 0.0  # the best possible return: the robot stands on its goal

    model.learn(80, callback=HasSeenTheBest(eval_freq=40, n_tasks=2, n_episodes=1, save_path=tmp_path))
    assert (tmp_path / "meta_evaluations.npz").is_file() and not (tmp_path / "best_meta_model.zip").exists()


def test_a_continued_training_goes_on_with_the_file(tmp_path):
    def evaluating(**kwargs: Any) -> MetaEvalCallback:
        return MetaEvalCallback(**{"eval_freq": 40, "n_tasks": 2, "n_episodes": 2, "save_path": tmp_path, **kwargs})

    def saved() -> tuple[list[int], np.ndarray]:
        with np.load(tmp_path / "meta_evaluations.npz") as arrays:
            return arrays["timesteps"].tolist(), arrays["returns"]

    model = make_model(make_meta_vec_env(ENV_ID, n_envs=2, seed=0, env_kwargs=dict(horizon=5)))
    model.learn(80, callback=evaluating())
    steps, returns = saved()
    assert steps == [40, 80]
    model.num_timesteps = 40  # an earlier checkpoint: what came after it is no part of the training that goes on
    callback = evaluating()
    model.learn(80, callback=callback, reset_num_timesteps=False)
    assert callback.timesteps == saved()[0] == [40, 80, 120]
    np.testing.assert_array_equal(saved()[1][0], returns[0])
    assert callback.results[0].settings["seed"] == 10_000 and callback.results[0].success is not None
    assert callback.best_mean_return == pytest.approx(saved()[1].mean(axis=(1, 2)).max(), rel=1e-12)
    # The same callback, and then a new training with it
    model.learn(40, callback=callback, reset_num_timesteps=False)
    assert saved()[0] == [40, 80, 120, 160]
    model.learn(40, callback=callback)
    assert callback.timesteps == saved()[0] == [40]
    # The same one, with a model that has gone back
    model.learn(80, callback=callback, reset_num_timesteps=False)
    model.num_timesteps = 80
    model.learn(40, callback=callback, reset_num_timesteps=False)
    assert callback.timesteps == saved()[0] == [40, 80, 120]
    # Other tasks, other keywords are no continuation, and nothing of what is there is lost
    others: list[tuple[dict[str, Any], str]] = [
        (dict(seed=1), "seed was 10000 and is 1"),
        (dict(env_kwargs=dict(horizon=6)), "env_kwargs was {'horizon': 5} and is {'horizon': 6}"),
        (dict(n_tasks=3, n_episodes=1), "n_episodes was 2 and is 1, n_tasks was 2 and is 3"),
    ]
    for kwargs, told in others:
        with pytest.raises(ValueError, match=rf"other settings \({told}\), .* another save_path"):
            model.learn(40, callback=evaluating(**kwargs), reset_num_timesteps=False)
        assert saved()[0] == [40, 80, 120] and model.num_timesteps == 120
    # Another training with the same callback is evaluated as it was trained
    other = make_model(make_meta_vec_env(ENV_ID, n_envs=2, seed=0, env_kwargs=dict(horizon=9)))
    other.learn(40, callback=callback)
    assert (callback.results[0].lengths == 9).all()
    # What is wrong shows before hours of training
    (tmp_path / "meta_evaluations.npz").write_bytes(b"PK")
    with pytest.raises(ValueError, match="is no file of a MetaEvalCallback, or it is broken"):
        other.learn(40, callback=evaluating(eval_freq=10**6), reset_num_timesteps=False)


def test_success_that_some_evaluations_do_not_tell(tmp_path, monkeypatch):
    told = iter([None, np.array([[True, False]]), None, np.array([[True, True]])])

    def evaluate(*args: Any, **kwargs: Any) -> AdaptationResult:
        return AdaptationResult([{}], np.zeros((1, 2)), np.ones((1, 2), dtype=np.int64), next(told))

    monkeypatch.setattr(callbacks, "evaluate_adaptation", evaluate)
    model = make_model(make_meta_vec_env(ENV_ID, 2))
    for reset in (True, False):  # the second training goes on with the file
        callback = Recorder(40, n_tasks=1, n_episodes=2, env_id=ENV_ID, save_path=tmp_path)
        model.learn(80, callback=callback, reset_num_timesteps=reset)
    saved = np.load(tmp_path / "meta_evaluations.npz")
    assert saved["timesteps"].tolist() == [40, 80, 120, 160]
    assert saved["success"].tolist() == [[[False, False]], [[True, False]], [[False, False]], [[True, True]]]
    assert [row["meta_eval/success_episode_1"] for row in callback.logged] == [0.0, 1.0]


def test_a_continued_training_keeps_the_best_model_so_far(tmp_path):
    model = make_model(make_meta_vec_env(ENV_ID, n_envs=2, seed=0, env_kwargs=dict(horizon=5)))
    settings: dict[str, Any] = dict(eval_freq=40, n_tasks=2, n_episodes=1, save_path=tmp_path)
    model.learn(40, callback=MetaEvalCallback(**settings))
    path, best = tmp_path / "meta_evaluations.npz", tmp_path / "best_meta_model.zip"
    with np.load(path) as arrays:
        best_possible = {**arrays, "returns": np.zeros_like(arrays["returns"])}
    np.savez(path, **best_possible)
    best.unlink()
    callback = MetaEvalCallback(**settings)
    model.learn(40, callback=callback, reset_num_timesteps=False)
    assert callback.timesteps == [40, 80] and not best.exists()


@pytest.mark.parametrize("steps", [40, 80, 240])
def test_a_training_that_is_broken_off_is_evaluated_when_it_would_have_been(steps, tmp_path):
    model = make_model(make_meta_vec_env(ENV_ID, n_envs=2, seed=0, env_kwargs=dict(horizon=5)))
    for _ in range(0, 240, steps):
        callback = MetaEvalCallback(eval_freq=50, n_tasks=1, n_episodes=1, save_path=tmp_path)
        model.learn(steps, callback=callback, reset_num_timesteps=False)
    assert callback.timesteps == [50, 100, 150, 200]


def test_the_best_model_is_whole_and_there_before_it_is_called_the_best(tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    model = make_model(make_meta_vec_env(ENV_ID, n_envs=2, seed=0, env_kwargs=dict(horizon=5)))
    callback = MetaEvalCallback(eval_freq=40, n_tasks=1, n_episodes=1, save_path=tmp_path)
    model.learn(40, callback=callback)

    def half(path: Any) -> None:
        path.write_bytes(b"half a zip")
        raise Killed

    callback.best_mean_return = -np.inf
    monkeypatch.setattr(model, "save", half)
    with pytest.raises(Killed):
        callback._save(0.0)
    assert RL2PPO.load(tmp_path / "best_meta_model", device="cpu").num_timesteps == 40
    (tmp_path / "meta_evaluations.npz").unlink()
    with pytest.raises(Killed):
        callback._save(1.0)
    assert not (tmp_path / "meta_evaluations.npz").exists()


def test_actions_are_drawn_where_that_is_wanted():
    callback = MetaEvalCallback(eval_freq=40, n_tasks=1, n_episodes=1, deterministic=False)
    make_model(make_meta_vec_env(ENV_ID, n_envs=2, seed=0, env_kwargs=dict(horizon=5))).learn(40, callback=callback)
    assert callback.results[0].settings["deterministic"] is False


def make_ppo(env: Any) -> PPO:
    return PPO("MlpPolicy", env, n_steps=20, batch_size=8, n_epochs=2, seed=0, device="cpu")


# SB3's own buffer shuffles by numpy's global generator, and actions with noise come from torch's
@pytest.mark.parametrize("make, deterministic", [(make_model, True), (make_model, False), (make_ppo, True), (make_ppo, False)])
def test_evaluating_leaves_training_alone(make, deterministic):
    weights = []
    for callback in (None, MetaEvalCallback(eval_freq=40, n_tasks=2, n_episodes=2, deterministic=deterministic)):
        model = make(make_meta_vec_env(ENV_ID, n_envs=2, seed=0))
        model.learn(160, callback=callback)
        weights.append(th.cat([parameter.detach().flatten() for parameter in model.policy.parameters()]))
    assert th.equal(*weights)


@pytest.mark.parametrize("vec_env_cls", [DummyVecEnv, SubprocVecEnv])
def test_finds_the_environment_of_training(vec_env_cls):
    env = make_meta_vec_env(ENV_ID, n_envs=2, env_kwargs=dict(horizon=7, split="ood"), vec_env_cls=vec_env_cls)
    callback = MetaEvalCallback(n_tasks=1)
    callback.init_callback(make_model(env))
    assert callback.env_id == ENV_ID and callback.env_kwargs == {"horizon": 7} and callback.split == "test"
    env.close()


def test_agents_behind_vec_normalize_see_what_they_were_trained_on():
    env = VecNormalize(make_meta_vec_env(ENV_ID, n_envs=2, seed=0), norm_reward=False)
    model = PPO("MlpPolicy", env, n_steps=20, batch_size=40, n_epochs=1, seed=0, device="cpu")
    callback = MetaEvalCallback(eval_freq=80, n_tasks=3, n_episodes=2, seed=0)
    model.learn(80, callback=callback)
    normalized = evaluate_adaptation(
        type("Normalizing", (), {"predict": staticmethod(lambda obs, **kw: model.predict(env.normalize_obs(obs), **kw))})(),
        ENV_ID, n_tasks=3, n_episodes=2,
    )  # fmt: skip
    raw = evaluate_adaptation(model.policy, ENV_ID, n_tasks=3, n_episodes=2)
    np.testing.assert_array_equal(evaluate_adaptation(model, ENV_ID, n_tasks=3, n_episodes=2).returns, normalized.returns)
    with pytest.raises(ValueError, match="do not fit"):  # spaces are looked at as ever
        evaluate_adaptation(model, "MetaBandit-v0", n_tasks=1, n_episodes=1)
    # The last update came after the evaluation, so compare a new evaluation by the callback
    callback._evaluate()
    np.testing.assert_array_equal(callback.results[-1].returns, normalized.returns)
    assert not np.allclose(raw.returns, normalized.returns)


class TurnsActions(gym.ActionWrapper):
    """What an agent has learned in it is the worst without it."""

    def action(self, action):
        return -action


def test_an_agent_is_not_judged_without_the_wrappers_of_its_training():
    env = make_vec_env(ENV_ID, n_envs=2, wrapper_class=TurnsActions)
    model = make_model(env)
    with pytest.raises(ValueError, match=rf"evaluate {ENV_ID} without TurnsActions, which training has.*give env_id"):
        model.learn(40, callback=MetaEvalCallback())
    recorded = make_vec_env(ENV_ID, n_envs=2, wrapper_class=gym.wrappers.RecordEpisodeStatistics)
    MetaEvalCallback().init_callback(make_model(recorded))
    turned = MetaEvalCallback(40, 2, 1, env_id=lambda **kwargs: TurnsActions(gym.make(ENV_ID, **kwargs)))
    model.learn(40, callback=turned)
    callback = MetaEvalCallback(40, 2, 1, env_id=ENV_ID)  # by name it is what is wanted
    callback.init_callback(model)
    callback._evaluate()
    assert not np.array_equal(turned.results[0].returns, callback.results[0].returns)


@pytest.mark.parametrize("registered", ["entry point", "additional_wrappers"])
def test_an_id_that_brings_its_wrappers_is_evaluated_with_them(registered):
    if registered == "entry point":
        gym.register("Turned-v0", entry_point=lambda **kwargs: TurnsActions(make_trial_env(ENV_ID, **kwargs)))
    else:
        wrapper = WrapperSpec("TurnsActions", f"{__name__}:TurnsActions", kwargs={})
        entry_point = gym.spec(ENV_ID).entry_point
        gym.register("Turned-v0", entry_point=entry_point, kwargs=dict(env_id=ENV_ID), additional_wrappers=(wrapper,))
    try:
        model = make_model(make_meta_vec_env("Turned-v0", n_envs=2))
        callback = MetaEvalCallback(40, 2, 1, seed=0)
        model._setup_learn(40, callback)  # where wrappers are looked at
        callback._evaluate()
        by_hand = evaluate_adaptation(
            model, lambda **kwargs: TurnsActions(gym.make(ENV_ID, **kwargs)), n_tasks=2, n_episodes=1
        )
        np.testing.assert_array_equal(callback.results[0].returns, by_hand.returns)
    finally:
        del gym.registry["Turned-v0"]


@pytest.mark.parametrize("name", ["eval_freq", "n_tasks", "n_episodes"])
@pytest.mark.parametrize("value", [0, -1, 2.5, True])
def test_bad_numbers(name, value):
    with pytest.raises(ValueError, match=f"{name} must be an integer of at least 1, got {value}"):
        MetaEvalCallback(**{name: value})


@pytest.mark.parametrize("seed", [-1, 1.5])
def test_bad_seed(seed):
    with pytest.raises(ValueError, match=f"seed must be an integer of at least 0, got {seed}"):
        MetaEvalCallback(seed=seed)


@pytest.mark.parametrize("name, value", [("split", "ood"), ("episodes_per_trial", 4), ("tasks", [{}])])
def test_keywords_that_are_arguments_of_the_callback(name, value):
    with pytest.raises(ValueError, match=rf"env_kwargs must not hold \['{name}'\]: MetaEvalCallback draws n_tasks"):
        MetaEvalCallback(env_kwargs={name: value})


def test_what_is_wrong_shows_when_training_starts():
    model = make_model(make_meta_vec_env("HalfCheetahDir-v0", n_envs=1))
    with pytest.raises(ValueError, match="split"):
        model.learn(20, callback=MetaEvalCallback(split="ood"))  # the family has none
    plain = PPO("MlpPolicy", gym.make("CartPole-v1"), device="cpu")
    with pytest.raises(ValueError, match=r"env_id='CartPole-v1' does not make a trial environment.*episodes_per_trial"):
        plain.learn(20, callback=MetaEvalCallback())
    with pytest.raises(ValueError, match="env_id must make a trial environment"):
        plain.learn(20, callback=MetaEvalCallback(env_id=lambda **kwargs: gym.make("CartPole-v1")))
    unregistered = make_model(DummyVecEnv([lambda: TrialWrapper(Counter(horizon=4))]))
    with pytest.raises(ValueError, match="needs env_id"):
        unregistered.learn(20, callback=MetaEvalCallback())


def test_numpy_seeds_and_flags_that_are_words(tmp_path):
    seed: Any = np.int64(3)
    word: Any = "False"
    assert type(MetaEvalCallback(seed=seed).seed) is int
    with pytest.raises(ValueError, match="deterministic must be True or False"):
        MetaEvalCallback(deterministic=word)
    of_numpy = evaluate_adaptation(lambda obs: np.zeros((len(obs), 2)), "PointRobot-v0", 2, 1, seed=seed)
    of_python = evaluate_adaptation(lambda obs: np.zeros((len(obs), 2)), "PointRobot-v0", 2, 1, seed=3)
    np.testing.assert_array_equal(of_numpy.returns, of_python.returns)
    assert of_numpy.settings == of_python.settings
    assert len(make_meta_vec_env("PointRobot-v0", 2, seed=seed).reset()) == 2


def test_a_save_path_that_cannot_be_is_told_before_training(tmp_path):
    (tmp_path / "file").touch()
    model = RL2PPO("RL2Policy", make_meta_vec_env("PointRobot-v0", 1, env_kwargs=dict(horizon=4)), n_steps=8, batch_size=8)
    with pytest.raises(OSError, match="file"):
        model.learn(8, callback=MetaEvalCallback(save_path=tmp_path / "file" / "below"))
    assert model.num_timesteps == 0

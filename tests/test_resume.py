"""Training that is resumed, in a new process or after a kill, is the training that was never interrupted, bit for bit."""

import json
import os
import random
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback, EveryNTimesteps
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnvWrapper, VecMonitor, VecNormalize

import sb3_trmrl
from sb3_trmrl import TrMRLPPO
from sb3_trmrl.common.callbacks import MetaEvalCallback
from sb3_trmrl.common.env_util import make_meta_vec_env
from sb3_trmrl.common.on_policy_algorithm import MemoryPPO
from sb3_trmrl.envs import META_ENVS, PointRobot, SparsePointRobot, make_trial_env
from sb3_trmrl.envs.meta_env import MetaEnv
from sb3_trmrl.envs.trial import TrialWrapper
from sb3_trmrl.hub import MalformedFileError, PretrainedCheckpointCallback, latest_checkpoint
from sb3_trmrl.hub.training_state import INFO_BUFFERS, join_arrays, split_arrays
from tests.families import Counter, cue_trials
from tests.resume_cases import CASES

SCRIPT = Path(__file__).parent / "resume_cases.py"
#: Its learning rate follows the total, so that its halves are made by a kill
SCHEDULED = "point_robot"
KILLED = (SCHEDULED, "cheetah_batched")
HALVES = [case for case in CASES if case != SCHEDULED]


def run_cases(folder: Path, *cases: str, killed: bool = False) -> dict[str, Any]:
    """
    :param cases: ``<part>:<case>``
    :return: What a process of its own prints about the trainings
    """
    process = subprocess.run(
        [sys.executable, str(SCRIPT), str(folder), *cases],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert process.returncode == (-9 if killed else 0), process.stderr
    return {} if killed else json.loads(process.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def trainings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Whole ones, and the rest of those that were saved half-way or killed, in a process that did not begin them."""
    folder = tmp_path_factory.mktemp("trainings")
    whole = run_cases(folder, *(f"whole:{case}" for case in CASES), *(f"first:{case}" for case in HALVES))
    for case in KILLED:
        run_cases(folder / "killed", f"killed:{case}", killed=True)
        # 4 rollouts: killed in the third, two are saved, one is kept
        assert list((folder / "killed" / case).glob("checkpoint_*")) == [latest_checkpoint(folder / "killed" / case)]
        os.rename(folder / "killed" / case, folder / f"{case}-killed")
    rest = [*(f"rest:{case}" for case in HALVES), *(f"rest:{case}-killed" for case in KILLED)]
    return {**whole, **run_cases(folder, *rest)}


def assert_equal(resumed: dict[str, Any], whole: dict[str, Any]) -> None:
    n_rows = len(resumed["log"])
    assert 0 < n_rows < len(whole["log"])
    assert {**resumed, "log": None} == {**whole, "log": None}
    # The log goes on with the same rows at the same steps, what the last update recorded included
    for mine, theirs in zip(resumed["log"], whole["log"][-n_rows:], strict=True):
        assert mine == theirs


@pytest.mark.parametrize("case", HALVES)
def test_a_new_process_goes_on_bit_for_bit(case: str, trainings: dict[str, Any]) -> None:
    assert_equal(trainings[f"rest:{case}"], trainings[f"whole:{case}"])


@pytest.mark.parametrize("case", KILLED)
def test_after_kill_9_in_mid_rollout_the_last_checkpoint_goes_on_bit_for_bit(case: str, trainings: dict[str, Any]) -> None:
    assert_equal(trainings[f"rest:{case}-killed"], trainings[f"whole:{case}"])


def test_the_fingerprint_tells_trainings_apart(trainings: dict[str, Any]) -> None:
    # A test of the test: nothing in it is a constant
    for key in ("weights", "optimizers", "environments", "torch", "trials", "log"):
        assert trainings["whole:two_phases"][key] != trainings["whole:episodes_separate_critic"][key]


# -- States of environments --------------------------------------------------------------------------------------------


def through_files(state: Any) -> Any:
    """:return: A state as it comes back from JSON and safetensors."""
    arrays: dict[str, np.ndarray] = {}
    data = json.loads(json.dumps(split_arrays(state, arrays), allow_nan=False))
    return join_arrays(data, {name: array.copy() for name, array in arrays.items()})


@pytest.mark.parametrize("env_id", META_ENVS)
@pytest.mark.parametrize("n_before", [0, 5, 17])
def test_every_family_goes_on_from_its_state(env_id: str, n_before: int) -> None:
    def step(env: TrialWrapper) -> list[Any]:
        token, reward, terminated, truncated, info = env.step(env.action_space.sample())
        if terminated or truncated:
            token = env.reset()[0]
        return [token.tolist(), reward, terminated, truncated, json.dumps(info, default=float)]

    env, other = (make_trial_env(env_id, episodes_per_trial=2, horizon=6) for _ in range(2))
    env.reset(seed=1)
    env.action_space.seed(2)
    for _ in range(n_before):
        step(env)
    other.reset(seed=99)
    state = env.get_trial_state()
    assert state is not None
    other.set_trial_state(through_files(state))
    env.action_space.seed(3)
    other.action_space.seed(3)
    for _ in range(30):
        assert step(env) == step(other)
    assert env.sample_tasks(2, "test") == other.sample_tasks(2, "test")


def test_a_list_of_tasks_goes_on_where_it_was() -> None:
    tasks = [{"goal": [float(i), 0.0]} for i in range(3)]
    env, other = (make_trial_env("PointRobot-v0", tasks=listed) for listed in (tasks, None))
    for _ in range(2):
        env.reset()
    other.reset(seed=0)
    other.set_trial_state(through_files(env.get_trial_state()))
    assert other.get_task() == tasks[1]
    other.reset()
    assert other.get_task() == tasks[2]
    # and where there was none, that of the environment is not played
    listless = make_trial_env("PointRobot-v0")
    listless.reset(seed=0)
    other.set_trial_state(through_files(listless.get_trial_state()))
    for env in (listless, other):
        env.reset()
    assert other.get_task() == listless.get_task()


class TellsOnlySuccess(SparsePointRobot):
    def _step(self, action: Any) -> Any:
        *step, info = super()._step(action)
        return (*step, {"success": True} if info["success"] else {})


def test_a_success_before_the_state_counts() -> None:
    env, other = (TrialWrapper(TellsOnlySuccess(horizon=3)) for _ in range(2))
    env.reset(seed=0, options={"task": {"goal": [0.25, 0.0]}})  # of radius 0.2, 0.25 from the start
    assert env.step(np.array([1.0, 0.0]))[-1] == {"success": True}
    other.reset(seed=0)
    other.set_trial_state(through_files(env.get_trial_state()))
    infos = [other.step(np.array([-1.0, 0.0]))[-1] for _ in range(2)]
    assert infos[0] == {} and infos[1]["inner_episode"]["success"] is True


class Scaled(PointRobot):
    def __init__(self, scale: float = 1.0):
        super().__init__()
        self.scale = scale


def test_a_state_of_other_settings_is_refused() -> None:
    env = TrialWrapper(Scaled(2.0))
    env.reset(seed=0)
    state = env.get_trial_state()
    assert state is not None
    TrialWrapper(Scaled(2)).set_trial_state(through_files(state))
    with pytest.raises(ValueError, match=r"'scale': 2.0.* does not fit .*'scale': 1.0"):
        TrialWrapper(Scaled(1.0)).set_trial_state(state)
    del state["identity"]["settings"]  # as files of earlier states of 0.1.0 are
    TrialWrapper(Scaled(1.0)).set_trial_state(state)
    state["identity"] = {}
    with pytest.raises(ValueError, match="does not fit"):
        TrialWrapper(Scaled(1.0)).set_trial_state(state)


def test_a_state_of_another_environment_is_refused() -> None:
    env = make_trial_env("PointRobot-v0")
    env.reset(seed=0)
    state = env.get_trial_state()
    assert state is not None
    for other in (make_trial_env("PointRobot-v0", split="test"), make_trial_env("SparsePointRobot-v0")):
        with pytest.raises(ValueError, match="does not fit"):
            other.set_trial_state(state)


def small(env: Any, n_steps: int = 10, **kwargs: Any) -> TrMRLPPO:
    encoder = dict(embed_dim=8, n_heads=2, n_layers=1)
    policy_kwargs = dict(net_arch=[8], memory_encoder_kwargs=encoder)
    settings: dict[str, Any] = dict(
        n_steps=n_steps, batch_size=20, n_epochs=1, seed=3, device="cpu", policy_kwargs=policy_kwargs
    )
    return TrMRLPPO("TrMRLPolicy", env, **settings, **kwargs)


def weights(model: MemoryPPO) -> list[th.Tensor]:
    return [tensor.clone() for tensor in model.policy.state_dict().values()]


def test_it_does_not_matter_which_vec_env_goes_on(tmp_path: Path) -> None:
    def make(vec_env_cls: Any = None) -> Any:
        return make_meta_vec_env("HalfCheetahDir-v0", 2, seed=0, env_kwargs=dict(horizon=7), vec_env_cls=vec_env_cls)

    small(make()).learn(20).save_pretrained(tmp_path / "model")
    ends = []
    for vec_env_cls in (None, DummyVecEnv):
        model = sb3_trmrl.load(tmp_path / "model", env=make(vec_env_cls), device="cpu")
        ends.append(weights(model.learn(40, reset_num_timesteps=False)))
    assert all(th.equal(one, two) for one, two in zip(*ends, strict=True))


def test_a_zip_goes_on_with_other_trials_and_noise(tmp_path: Path) -> None:
    def make() -> Any:
        return make_meta_vec_env("PointRobot-v0", 2, seed=0, env_kwargs=dict(horizon=7))

    def first_actions(model: MemoryPPO) -> Any:
        model.learn(model.num_timesteps + 20, reset_num_timesteps=model.num_timesteps == 0)
        tasks = [state["meta_env"]["task"]["goal"] for state in model.env.env_method("get_trial_state")]  # type: ignore[union-attr]
        return np.array(tasks), model.rollout_buffer.actions[0].copy()

    model = small(make())
    tasks, actions = first_actions(model)
    model.save(tmp_path / "model.zip")
    one, other = (first_actions(TrMRLPPO.load(tmp_path / "model.zip", env=make(), device="cpu")) for _ in range(2))
    for index, first in enumerate((tasks, actions)):
        np.testing.assert_array_equal(one[index], other[index])
        assert not np.isclose(one[index], first).any()


def test_what_a_monitor_copies_may_be_anything(tmp_path: Path) -> None:
    class Odd(gym.Wrapper[Any, Any, Any, Any]):
        def step(self, action: Any) -> Any:
            *result, info = self.env.step(action)
            return (*result, {**info, "stats": {0: 1}, "plain": [1, {"two": 2.0}]})

    env = make_meta_vec_env(
        lambda **kwargs: Odd(make_trial_env("PointRobot-v0", horizon=4)),
        2,
        monitor_kwargs=dict(info_keywords=("stats", "plain")),
    )
    model = small(env).learn(20)
    model.save_pretrained(tmp_path / "model")
    loaded = sb3_trmrl.load(tmp_path / "model", device="cpu")
    infos = loaded.ep_info_buffer
    assert infos and all(info["plain"] == [1, {"two": 2.0}] and "stats" not in info for info in infos)


def test_saving_a_loaded_model_again_loses_nothing(tmp_path: Path) -> None:
    env = make_meta_vec_env("PointRobot-v0", 2, seed=0, env_kwargs=dict(horizon=7))
    small(env).learn(40).save_pretrained(tmp_path / "first")
    sb3_trmrl.load(tmp_path / "first", device="cpu").save_pretrained(tmp_path / "again")
    ends = [
        weights(sb3_trmrl.load(tmp_path / name, device="cpu").learn(40, reset_num_timesteps=False))
        for name in ("first", "again")
    ]
    assert all(th.equal(one, two) for one, two in zip(*ends, strict=True))


def test_a_new_training_from_loaded_weights_starts_afresh(tmp_path: Path) -> None:
    env = make_meta_vec_env("PointRobot-v0", 2, seed=0, env_kwargs=dict(horizon=7))
    small(env).learn(40).save_pretrained(tmp_path / "model")
    model = sb3_trmrl.load(tmp_path / "model", device="cpu")
    assert model.num_timesteps == 40
    assert {getattr(model, name).maxlen for name in INFO_BUFFERS} == {100}
    model.learn(20)
    assert model.num_timesteps == 20
    # and once begun, nothing waits to be resumed
    assert model.pending_training_state is None


# -- Where trials can't go on ------------------------------------------------------------------------------------------


def foreign(n_envs: int = 2) -> DummyVecEnv:
    return DummyVecEnv([lambda: TrialWrapper(Counter(noise=1.0)) for _ in range(n_envs)])


def wrapped() -> DummyVecEnv:
    # OnlyTheAnswer counts steps, which nobody outside can know
    return DummyVecEnv([cue_trials for _ in range(2)])


@pytest.mark.parametrize("make", [foreign, wrapped])
def test_foreign_environments_start_fresh_trials_and_say_so(make: Any, tmp_path: Path) -> None:
    model = small(make())
    model.learn(20)
    model.save_pretrained(tmp_path / "model")
    loaded = sb3_trmrl.load(tmp_path / "model", env=make(), device="cpu")
    with pytest.warns(UserWarning, match="fresh trials.*is not known"):
        loaded.learn(20, reset_num_timesteps=False)
    assert loaded.num_timesteps == 40
    assert loaded._n_updates == 2


def test_without_a_seed_the_trials_of_the_start_are_not_played_again_either(tmp_path: Path) -> None:
    def seeded() -> VecMonitor:
        env = VecMonitor(foreign())
        env.seed(7)
        return env

    model = small(seeded())
    model.seed = None
    model.get_env().seed(7)  # type: ignore[union-attr]
    model.learn(20).save_pretrained(tmp_path / "model")
    loaded = sb3_trmrl.load(tmp_path / "model", env=seeded(), device="cpu")
    with pytest.warns(UserWarning, match="fresh trials"):
        loaded.learn(20, reset_num_timesteps=False)
    assert model.trial_info_buffer and loaded.trial_info_buffer
    tasks = [str(trial["task"]) for trial in loaded.trial_info_buffer]
    assert len(tasks) > len(model.trial_info_buffer) and len(set(tasks)) == len(tasks)


def test_a_training_does_not_depend_on_how_a_vec_env_stacks_rewards() -> None:
    # SubprocVecEnv's are float64
    ends = []
    for vec_env_cls in (DummyVecEnv, SubprocVecEnv):
        env = make_meta_vec_env("PointRobot-v0", 2, seed=0, env_kwargs=dict(horizon=7), vec_env_cls=vec_env_cls)
        ends.append(weights(small(env).learn(60)))
        env.close()
    assert all(th.equal(one, two) for one, two in zip(*ends, strict=True))


def test_fresh_trials_are_neither_those_of_the_start_nor_of_another_resumption(tmp_path: Path) -> None:
    model: MemoryPPO = small(foreign()).learn(20)
    for name in ("first", "second"):
        model.save_pretrained(tmp_path / name)
        model = sb3_trmrl.load(tmp_path / name, env=foreign(), device="cpu")
        with pytest.warns(UserWarning, match="fresh trials"):
            model.learn(20, reset_num_timesteps=False)
    assert model.trial_info_buffer is not None
    met = [json.dumps(trial["task"]) for trial in model.trial_info_buffer]
    assert len(set(met)) == len(met) >= 3 * 2


def test_without_an_environment_that_can_be_made_learn_says_what_to_do(tmp_path: Path) -> None:
    small(foreign()).learn(20).save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="pass env to from_pretrained, or call set_env"):
        sb3_trmrl.load(tmp_path / "model", device="cpu").learn(20, reset_num_timesteps=False)


@pytest.mark.parametrize(
    ("make", "wrapper"),
    [
        (lambda: VecNormalize(make_meta_vec_env("PointRobot-v0", 2, seed=0), norm_obs=False), "VecNormalize"),
        (lambda: make_meta_vec_env("PointRobot-v0", 2, seed=0, env_kwargs=dict(max_episode_steps=999)), "TimeLimit"),
        (lambda: DummyVecEnv([rewards_times_ten] * 2), "TransformReward"),
        (lambda: RewardsTimesTen(make_meta_vec_env("PointRobot-v0", 2, seed=0)), "RewardsTimesTen"),
    ],
)
def test_an_environment_in_wrappers_is_not_made_without_them(make: Any, wrapper: str, tmp_path: Path) -> None:
    small(make()).learn(20).save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match=f"trained in .*{wrapper}.*pass env to from_pretrained"):
        sb3_trmrl.load(tmp_path / "model", device="cpu").learn(20, reset_num_timesteps=False)


class RewardsTimesTen(VecEnvWrapper):
    def reset(self) -> Any:
        return self.venv.reset()

    def step_wait(self) -> Any:
        observations, rewards, dones, infos = self.venv.step_wait()
        return observations, 10 * rewards, dones, infos


def rewards_times_ten() -> Any:
    return gym.wrappers.TransformReward(gym.make("PointRobot-v0"), lambda reward: 10.0 * float(reward))


def test_an_environment_that_lost_its_statistics_starts_fresh_trials(tmp_path: Path) -> None:
    env = make_meta_vec_env("PointRobot-v0", 2, seed=0)
    small(VecNormalize(env, norm_obs=False)).learn(20).save_pretrained(tmp_path / "model")
    model = sb3_trmrl.load(tmp_path / "model", env=make_meta_vec_env("PointRobot-v0", 2, seed=0), device="cpu")
    with pytest.warns(UserWarning, match="fresh trials.*only one of the two environments is behind VecNormalize"):
        model.learn(20, reset_num_timesteps=False)


def test_an_environment_that_lost_its_monitor_starts_fresh_trials(tmp_path: Path) -> None:
    small(make_meta_vec_env("PointRobot-v0", 2, seed=0)).learn(20).save_pretrained(tmp_path / "model")
    bare = DummyVecEnv([lambda: make_trial_env("PointRobot-v0")] * 2)
    model = sb3_trmrl.load(tmp_path / "model", env=bare, device="cpu")
    with pytest.warns(UserWarning, match="fresh trials.*only one of the two environments is wrapped in Monitor"):
        model.learn(20, reset_num_timesteps=False)


class Warming(MetaEnv):
    """Its state is an attribute that only a reset makes."""

    splits = ("train", "test")
    task_shapes = {"rate": ()}

    def __init__(self) -> None:
        super().__init__(6)
        self.observation_space = spaces.Box(-np.inf, np.inf, (1,), np.float64)
        self.action_space = spaces.Box(-1.0, 1.0, (1,))

    def _sample_task(self, split: str) -> Any:
        return {"rate": self.np_random.uniform()}

    def _reset(self) -> np.ndarray:
        self.temperature = self.np_random.uniform(size=1)
        return self.temperature.copy()

    def _step(self, action: Any) -> Any:
        self.temperature = self.temperature + self._task["rate"] * action
        return self.temperature.copy(), -float(self.temperature[0] ** 2), False, False, {}

    def _get_state(self) -> Any:
        return {"temperature": self.temperature}

    def _set_state(self, state: Any) -> None:
        self.temperature = np.asarray(state["temperature"])


def test_a_family_whose_state_a_reset_makes_goes_on_bit_for_bit(tmp_path: Path) -> None:
    def make() -> DummyVecEnv:
        return DummyVecEnv([lambda: TrialWrapper(Warming(), 2)] * 2)

    model = small(make(), n_steps=10)
    model.learn(20)
    model.save_pretrained(tmp_path / "model")
    model.learn(20, reset_num_timesteps=False)
    loaded = sb3_trmrl.load(tmp_path / "model", env=make(), device="cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded.learn(20, reset_num_timesteps=False)
    for ours, theirs in zip(model.policy.parameters(), loaded.policy.parameters(), strict=True):
        assert th.equal(ours, theirs)


class Counting(Warming):
    """Remembers its draws."""

    def _sample_task(self, split: str) -> Any:
        self.draws.setdefault("splits", []).append(split)
        return super()._sample_task(split)


def test_draws_after_a_state_was_taken_leave_it() -> None:
    family, other = Counting(), Counting()
    family.set_task(family.sample_tasks(1)[0])
    family.reset()
    state = family.get_state()
    assert state is not None
    other.set_state(state)
    for drawing in (family, other):
        drawing.sample_tasks(1)
    assert state["draws"] == {"splits": ["train"]}
    env, another = TrialWrapper(family), TrialWrapper(other)
    env.reset(seed=0)
    state = env.get_trial_state()
    assert state is not None
    another.set_trial_state(state)
    for trials in (env, another):
        trials.sample_tasks(1)
    assert state["task_draws"] == {"train": {"splits": ["train"]}}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (dict(n_envs=3), "2 environment slots, this environment 3"),
        (dict(env_kwargs=dict(horizon=7, split="test")), "'split': 'test'"),
        (dict(env_kwargs=dict(horizon=8)), "'horizon': 8"),
        (dict(tasks=[dict(goal=[0.9, 0.0]), dict(goal=[-0.9, 0.0])]), "other tasks"),
    ],
)
def test_another_environment_starts_fresh_trials_and_says_why(change: dict[str, Any], reason: str, tmp_path: Path) -> None:
    settings: dict[str, Any] = dict(n_envs=2, env_kwargs=dict(horizon=7), seed=0)
    small(make_meta_vec_env("PointRobot-v0", **settings)).learn(40).save_pretrained(tmp_path / "model")
    env = make_meta_vec_env("PointRobot-v0", **{**settings, **change})
    model = sb3_trmrl.load(tmp_path / "model", env=env, device="cpu")
    with pytest.warns(UserWarning, match=f"fresh trials.*{reason}"):
        model.learn(30, reset_num_timesteps=False)


def test_the_tasks_of_an_environment_that_is_given_are_played(tmp_path: Path) -> None:
    tasks = [dict(goal=[0.9, 0.0]), dict(goal=[-0.9, 0.0])]

    def listed(tasks: Any) -> Any:
        return make_meta_vec_env("PointRobot-v0", 2, seed=0, env_kwargs=dict(horizon=7), tasks=tasks)

    small(listed(tasks)).learn(40).save_pretrained(tmp_path / "model")
    env = listed(None)
    model = sb3_trmrl.load(tmp_path / "model", env=env, device="cpu")
    with pytest.warns(UserWarning, match="fresh trials.*other tasks"):
        model.learn(30, reset_num_timesteps=False)
    assert env.get_attr("draws_tasks") == [True, True]
    for env in (listed(tasks), None):  # the same ones, and whatever it was: exactly where it was
        model = sb3_trmrl.load(tmp_path / "model", env=env, device="cpu")
        model.learn(30, reset_num_timesteps=False)
        assert model.env is not None and [task["goal"][0] for task in model.env.env_method("get_task")] == [0.9, -0.9]


class SaveInStep(BaseCallback):
    """Saves where the environments are a step ahead of the model."""

    def __init__(self, folder: Path):
        super().__init__()
        self.folder = folder

    def _on_step(self) -> bool:
        if self.n_calls == 3:
            self.model.save_pretrained(self.folder)  # type: ignore[attr-defined]
        return True


def test_saved_in_the_middle_of_a_step_it_does_not_pretend(tmp_path: Path) -> None:
    env = make_meta_vec_env("PointRobot-v0", 2, seed=0, env_kwargs=dict(horizon=7))
    small(env).learn(20, callback=SaveInStep(tmp_path / "model"))
    model = sb3_trmrl.load(tmp_path / "model", device="cpu")
    with pytest.warns(UserWarning, match="in the middle of a step"):
        model.learn(20, reset_num_timesteps=False)


def test_after_an_interrupt_at_the_end_of_a_trial_the_memory_is_empty() -> None:
    class Interrupt(BaseCallback):
        def _on_step(self) -> bool:
            if self.n_calls == 14:  # two episodes of seven steps
                raise KeyboardInterrupt
            return True

    model = small(make_meta_vec_env("PointRobot-v0", 2, seed=0, env_kwargs=dict(horizon=7, episodes_per_trial=2)), n_steps=20)
    with pytest.raises(KeyboardInterrupt):
        model.learn(40, callback=Interrupt())
    model.learn(40, reset_num_timesteps=False)
    own = model.rollout_buffer.memory_lengths[model.rollout_buffer.context_length :]
    np.testing.assert_array_equal(own[:, 0], [*range(1, 15), *range(1, 7)])


def test_a_learn_that_failed_before_training_is_repeated_bit_for_bit(tmp_path: Path) -> None:
    env = make_meta_vec_env("PointRobot-v0", 2, seed=0, env_kwargs=dict(horizon=7))
    model = small(env)
    model.learn(40).save_pretrained(tmp_path / "model")
    model.learn(40, reset_num_timesteps=False)
    loaded = sb3_trmrl.load(tmp_path / "model", device="cpu")
    with pytest.raises(ValueError, match="split"):
        loaded.learn(40, reset_num_timesteps=False, callback=MetaEvalCallback(40, split="tset"))
    loaded.learn(40, reset_num_timesteps=False)
    assert all(th.equal(one, two) for one, two in zip(weights(model), weights(loaded), strict=True))


def test_the_second_of_a_pair_of_gaussian_numbers_is_kept(tmp_path: Path) -> None:
    model = small(make_meta_vec_env("PointRobot-v0", 2, seed=0)).learn(20)
    random.gauss(0.0, 1.0)
    model.save_pretrained(tmp_path / "model")
    second = random.gauss(0.0, 1.0)
    sb3_trmrl.load(tmp_path / "model", device="cpu").learn(20, reset_num_timesteps=False)
    assert random.gauss(0.0, 1.0) == second


def test_training_stopped_by_a_callback_goes_on_bit_for_bit(tmp_path: Path) -> None:
    # In the middle of a rollout, the context of the next one is made of a part of it
    def stop(locals_: dict[str, Any], globals_: dict[str, Any]) -> bool:
        return bool(locals_["self"].num_timesteps < 46)

    model = small(make_meta_vec_env("PointRobot-v0", 2, seed=0, env_kwargs=dict(horizon=7)))
    model.learn(200, callback=stop)
    assert model.rollout_buffer.pos == 3
    model.save_pretrained(tmp_path / "model")
    random_state = th.get_rng_state()
    model.learn(40, reset_num_timesteps=False)
    loaded = sb3_trmrl.load(tmp_path / "model", device="cpu")
    assert not th.equal(th.get_rng_state(), random_state)
    loaded.learn(40, reset_num_timesteps=False)
    assert all(th.equal(one, two) for one, two in zip(weights(model), weights(loaded), strict=True))


# -- Checkpoints -------------------------------------------------------------------------------------------------------


def test_checkpoints_keep_the_last_and_the_best(tmp_path: Path) -> None:
    scores = iter([1.0, 3.0, None, 2.0, 3.0])
    callback = PretrainedCheckpointCallback(20, tmp_path, keep_last=2, score=lambda model: next(scores))
    env = make_meta_vec_env("PointRobot-v0", 2, seed=0, env_kwargs=dict(horizon=7))
    small(env).learn(100, callback=callback)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["best", "best.json", "checkpoint_100_steps", "checkpoint_80_steps"]
    # By number, not by name
    assert latest_checkpoint(tmp_path) == tmp_path / "checkpoint_100_steps"
    assert sb3_trmrl.load(tmp_path / "best", device="cpu").num_timesteps == 40
    assert json.loads((tmp_path / "best.json").read_text()) == {"score": 3.0, "num_timesteps": 40}

    # A resumed training knows the best so far, and goes on with the next multiple
    again = PretrainedCheckpointCallback(20, tmp_path, keep_last=2, score=lambda model: 2.5)
    sb3_trmrl.load(tmp_path / "checkpoint_100_steps", device="cpu").learn(40, callback=again, reset_num_timesteps=False)
    assert latest_checkpoint(tmp_path) == tmp_path / "checkpoint_140_steps"
    assert sb3_trmrl.load(tmp_path / "best", device="cpu").num_timesteps == 40


def test_checkpoints_come_at_the_first_boundary_after_each_n_steps(tmp_path: Path) -> None:
    callback = PretrainedCheckpointCallback(50, tmp_path, keep_last=9)
    small(make_meta_vec_env("PointRobot-v0", 2, seed=0, env_kwargs=dict(horizon=7))).learn(120, callback=callback)
    steps = sorted(int(path.name.split("_")[1]) for path in tmp_path.glob("checkpoint_*"))
    assert steps == [60, 100]


def test_a_folder_of_a_training_that_is_further_is_refused(tmp_path: Path) -> None:
    env = make_meta_vec_env("PointRobot-v0", 2, seed=0, env_kwargs=dict(horizon=7))
    small(env).learn(100, callback=PretrainedCheckpointCallback(20, tmp_path))
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ValueError, match="holds checkpoint_100_steps, this training is at 0 steps"):
        small(env).learn(20, callback=PretrainedCheckpointCallback(20, tmp_path))
    earlier = sb3_trmrl.load(tmp_path / "checkpoint_80_steps", device="cpu")
    with pytest.raises(ValueError, match="this training is at 80 steps"):
        earlier.learn(20, callback=PretrainedCheckpointCallback(20, tmp_path), reset_num_timesteps=False)
    assert sorted(tmp_path.iterdir()) == before
    # Other names are another training's
    small(env).learn(40, callback=PretrainedCheckpointCallback(20, tmp_path, name_prefix="other"))
    assert latest_checkpoint(tmp_path, "other") == tmp_path / "other_40_steps"


def test_a_score_of_numpy_is_a_score(tmp_path: Path) -> None:
    env = make_meta_vec_env("PointRobot-v0", 2, seed=0, env_kwargs=dict(horizon=7))
    small(env).learn(40, callback=PretrainedCheckpointCallback(20, tmp_path, score=lambda model: np.float32(0.5)))  # type: ignore
    assert json.loads((tmp_path / "best.json").read_text())["score"] == 0.5


def test_checkpoints_within_an_event_would_never_come(tmp_path: Path) -> None:
    callback = EveryNTimesteps(40, PretrainedCheckpointCallback(1, tmp_path / "checkpoints"))
    with pytest.raises(ValueError, match="EveryNTimesteps tells it of steps only: pass it to learn by itself"):
        small(make_meta_vec_env("PointRobot-v0", 2)).learn(20, callback=callback)


def test_no_checkpoint_yet(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path) is None
    (tmp_path / "checkpoint_20_steps").touch()
    (tmp_path / "checkpoint_30_steps").mkdir()
    assert latest_checkpoint(tmp_path) is None


def test_files_of_others_among_the_checkpoints_stay(tmp_path: Path) -> None:
    (tmp_path / "checkpoint_5_steps").write_text("mine")
    small(make_meta_vec_env("PointRobot-v0", 2)).learn(60, callback=PretrainedCheckpointCallback(20, tmp_path, keep_last=1))
    assert (tmp_path / "checkpoint_5_steps").read_text() == "mine"
    assert latest_checkpoint(tmp_path) == tmp_path / "checkpoint_60_steps"


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"score": "x", "num_timesteps": 1}'])
def test_a_broken_record_of_the_best_is_told(text: str, tmp_path: Path) -> None:
    model = small(make_meta_vec_env("PointRobot-v0", 2)).learn(20)
    (tmp_path / "best.json").write_text(text)
    with pytest.raises(ValueError, match=r"best\.json is no record of a best score, or it is broken"):
        model.learn(20, callback=PretrainedCheckpointCallback(20, tmp_path), reset_num_timesteps=False)


@pytest.mark.parametrize("arguments", [dict(save_freq=0), dict(save_freq=True), dict(save_freq=10, keep_last=0)])
def test_bad_numbers_of_checkpoints_are_refused(arguments: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must be an integer of at least 1"):
        PretrainedCheckpointCallback(save_path=tmp_path, **arguments)


def moved(state: np.ndarray, left: int, position: int) -> np.ndarray:
    """:return: The state of torch's generator, its position in the buffer moved."""
    state = state.copy()
    state[8:12] = np.frombuffer(np.int32(left).tobytes(), np.uint8)
    state[16:24] = np.frombuffer(np.int64(position).tobytes(), np.uint8)
    return state


def test_states_that_do_not_fit_are_malformed_files(tmp_path: Path) -> None:
    env = make_meta_vec_env("PointRobot-v0", 2, seed=0, env_kwargs=dict(horizon=7))
    small(env).learn(40).save_pretrained(tmp_path / "model")
    for break_it in (
        lambda state: state["rollout"]["slots"][0]["trial"].pop("returns"),
        lambda state: state["rollout"]["slots"][0]["trial"]["meta_env"].update(task={"goal": "somewhere"}),
        lambda state: state["rollout"]["slots"][1]["trial"].update(np_random={"bit_generator": "os.system"}),
        lambda state: state["rollout"].update(last_obs=np.zeros((2, 5), np.float32)),
        lambda state: state["rollout"]["context"].update(lengths=np.array([10**6, 3])),
        lambda state: state["rng"]["python"].update(internal=[1, 2]),
        lambda state: state["rng"].update(torch=np.zeros(3, np.uint8)),
        # torch and numpy would read there, outside of the generator's buffer
        lambda state: state["rng"].update(torch=moved(state["rng"]["torch"], left=624, position=624)),
        lambda state: state["rng"].update(torch=moved(state["rng"]["torch"], left=0, position=625)),
        lambda state: state["rng"]["python"].update(gauss="x"),
        lambda state: state.pop("rng"),
        lambda state: state["rollout"].update(last_original_obs="x"),
        # An episode without end, and a log of rewards as large as memory
        lambda state: state["rollout"]["slots"][0]["trial"]["meta_env"].update(elapsed_steps=-(10**9)),
        lambda state: state["rollout"]["slots"][0]["trial"].update(episode_length=3 * 10**8),
        lambda state: state["rollout"]["slots"][0]["trial"].update(lengths=[3 * 10**8], returns=[0.0], successes=[False]),
        lambda state: state["rollout"]["slots"][0]["trial"].update(lengths=[7] * 9, returns=[0.0] * 9, successes=[False] * 9),
        lambda state: state["rng"]["numpy"]["state"].update(pos=10**8),
        lambda state: state["rollout"]["slots"][1]["trial"].update(
            np_random={**np.random.Philox(0).state, "buffer_pos": -(10**9)}
        ),
        lambda state: state["rollout"]["slots"][1]["trial"].update(
            np_random={"bit_generator": "MT19937", "state": {"key": np.arange(2), "pos": 1}}
        ),
    ):
        model = sb3_trmrl.load(tmp_path / "model", device="cpu")
        assert model.pending_training_state is not None
        break_it(model.pending_training_state)
        with pytest.raises(MalformedFileError, match="does not fit"):
            model.learn(20, reset_num_timesteps=False)

"""Against a Hub on 127.0.0.1 (``hub_server.py``), with the real ``huggingface_hub`` client over HTTP."""

import io
import json
import os
import re
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
import yaml
from huggingface_hub import HfApi, ModelCard, constants
from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

import sb3_trmrl
from sb3_trmrl import RL2PPO, AdaptationResult, TrMRLPPO
from sb3_trmrl.cli import main
from sb3_trmrl.common.env_util import make_meta_vec_env
from sb3_trmrl.common.on_policy_algorithm import MemoryPPO
from sb3_trmrl.envs import PointRobot, TrialWrapper
from sb3_trmrl.hub import DownloadError, MalformedFileError, MissingFileError, PretrainedError
from sb3_trmrl.hub.model_card import model_card, training_script
from sb3_trmrl.hub.pretrained import MODEL_FILES, describe, read_config
from sb3_trmrl.hub.publish import pull_for_zoo
from sb3_trmrl.runs import load_run
from tests.hub_server import TOKEN, FakeHub, running_hub

KEPT = Path(__file__).parent / "data" / "pretrained_v1"
REPO = "tester/trmrl-PointRobot-v0"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    # Without its other protocol for large files, which is a service of its own: the client then uses HTTP for all
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    with running_hub() as server:
        yield server


@pytest.fixture
def account(hub: FakeHub, tmp_path: Path) -> dict[str, Any]:
    """Who downloads: the owner, with an empty cache."""
    return dict(endpoint=hub.endpoint, token=TOKEN, cache_dir=tmp_path / "cache")


def trained() -> TrMRLPPO:
    env = make_meta_vec_env("PointRobot-v0", 2, seed=0, env_kwargs=dict(horizon=7, episodes_per_trial=3))
    kwargs = dict(net_arch=[8], memory_encoder_kwargs=dict(embed_dim=8, n_heads=2, n_layers=1))
    model = TrMRLPPO("TrMRLPolicy", env, n_steps=20, batch_size=20, n_epochs=1, seed=3, device="cpu", policy_kwargs=kwargs)
    return model.learn(80)


def push(model: MemoryPPO, hub: FakeHub, repo_id: str = REPO, **kwargs: Any) -> str:
    return model.push_to_hub(repo_id, **{"n_eval_tasks": 0, "token": TOKEN, "endpoint": hub.endpoint, **kwargs})


def read_card(hub: FakeHub) -> Any:
    return ModelCard(hub.files(REPO)["README.md"].decode())


def weights(model: MemoryPPO) -> list[th.Tensor]:
    return [tensor.clone() for tensor in model.policy.state_dict().values()]


def acts(model: MemoryPPO) -> list[Any]:
    generator, state, actions = np.random.default_rng(0), None, []
    for _ in range(8):
        action, state = model.predict(generator.normal(size=(3, 6)).astype(np.float32), state, deterministic=True)
        actions.append(action.tolist())
    return actions


# -- There and back ----------------------------------------------------------------------------------------------------


def test_push_pull_predict_and_go_on(hub: FakeHub, account: dict[str, Any]) -> None:
    model = trained()
    address = push(model, hub)
    assert re.fullmatch(rf"{hub.endpoint}/{REPO}/commit/\w{{40}}", address)
    assert set(hub.files(REPO)) == MODEL_FILES | {"README.md"}
    loaded = sb3_trmrl.load(REPO, device="cpu", **account)
    assert type(loaded) is TrMRLPPO
    assert acts(loaded) == acts(model)
    # Exactly as the one that never left, running trials included
    random_numbers = th.get_rng_state()
    model.learn(80, reset_num_timesteps=False)
    th.set_rng_state(random_numbers)
    loaded.learn(80, reset_num_timesteps=False)
    assert all(th.equal(one, two) for one, two in zip(weights(loaded), weights(model), strict=True))
    # Really over HTTP, and by the client's own routes
    requests = {re.sub(r"\w{40,}", "*", request) for request in hub.requests}
    assert {
        "POST /api/repos/create",
        f"POST /api/models/{REPO}/preupload/main",
        f"POST /{REPO}.git/info/lfs/objects/batch",
        "PUT /upload/*",
        f"POST /api/models/{REPO}/commit/main",
        f"GET /{REPO}/resolve/*/model.safetensors",
    } <= requests


def test_a_push_is_one_commit_and_leaves_nothing_of_the_last_one(hub: FakeHub, account: dict[str, Any]) -> None:
    model = trained()
    push(model, hub, sb3_zip=True)
    assert "trmrl-PointRobot-v0.zip" in hub.files(REPO)
    model.learn(40, reset_num_timesteps=False)
    push(model, hub, training_state=False, commit_message="weights only")
    assert len(hub.repositories[REPO].commits) == 3  # the first is that of the empty repository
    assert set(hub.files(REPO)) == {"config.json", "model.safetensors", "README.md"}
    assert sb3_trmrl.load(REPO, device="cpu", **account).num_timesteps == 120


def test_revisions(hub: FakeHub, account: dict[str, Any]) -> None:
    model = trained()
    first = push(model, hub).rpartition("/")[2]
    model.learn(40, reset_num_timesteps=False)
    push(model, hub)
    assert TrMRLPPO.from_pretrained(REPO, revision=first, device="cpu", **account).num_timesteps == 80
    assert TrMRLPPO.from_pretrained(REPO, revision="main", device="cpu", **account).num_timesteps == 120
    with pytest.raises(RevisionNotFoundError):
        sb3_trmrl.load(REPO, revision="no-such-branch", **account)


def test_private_repositories_open_with_their_owners_token_only(hub: FakeHub, account: dict[str, Any]) -> None:
    push(trained(), hub, private=True)
    assert hub.repositories[REPO].private
    for token in (False, "hf_somebody_else"):
        with pytest.raises(RepositoryNotFoundError):
            sb3_trmrl.load(REPO, **{**account, "token": token})
    assert sb3_trmrl.load(REPO, device="cpu", **account).num_timesteps == 80


def test_what_is_not_there(hub: FakeHub, account: dict[str, Any]) -> None:
    with pytest.raises(RepositoryNotFoundError):
        sb3_trmrl.load("tester/nothing", **account)
    push(trained(), hub)
    repository = hub.repositories[REPO]
    repository.commit("main", {}, ["model.safetensors"])
    with pytest.raises(MissingFileError, match=r"holds no model.safetensors"):
        sb3_trmrl.load(REPO, **account)
    repository.commit("main", {}, ["config.json"])
    with pytest.raises(MissingFileError, match=rf"{REPO} on the Hub holds no config.json"):
        sb3_trmrl.load(REPO, **account)


def test_a_repository_without_any_file_of_a_model(hub: FakeHub, account: dict[str, Any]) -> None:
    HfApi(endpoint=hub.endpoint, token=TOKEN).create_repo(REPO)
    with pytest.raises(MissingFileError, match=rf"{REPO} on the Hub holds no config.json.*huggingface_sb3.load_from_hub"):
        sb3_trmrl.load(REPO, **account)


def test_files_that_do_not_belong_together_are_refused(hub: FakeHub, account: dict[str, Any]) -> None:
    push(trained(), hub)
    # A file of another model of the same shape, put there by hand
    model = trained()
    with th.no_grad():
        model.policy.action_net.bias.add_(1.0)
    push(model, hub, "tester/other")
    hub.repositories[REPO].commit("main", {"model.safetensors": hub.files("tester/other")["model.safetensors"]}, [])
    with pytest.raises(MalformedFileError, match=r"not the file that config\.json was written with"):
        sb3_trmrl.load(REPO, **account)


def test_a_download_that_breaks_off_is_taken_up_again(hub: FakeHub, account: dict[str, Any]) -> None:
    model = trained()
    push(model, hub)
    hub.break_downloads = 2
    assert acts(sb3_trmrl.load(REPO, device="cpu", **account)) == acts(model)
    assert hub.break_downloads == 0


def test_a_download_that_stays_broken_leaves_nothing_that_loads_wrong(
    hub: FakeHub, account: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # the client waits between its attempts
    model = trained()
    push(model, hub)
    hub.break_downloads = 10**6
    with pytest.raises(DownloadError, match="broke off"):
        sb3_trmrl.load(REPO, **account)
    # What is in the cache now is not whole, and is not taken for it
    with pytest.raises((MissingFileError, LocalEntryNotFoundError)):
        sb3_trmrl.load(REPO, **account, local_files_only=True)
    hub.break_downloads = 0
    assert acts(sb3_trmrl.load(REPO, device="cpu", **account)) == acts(model)
    assert acts(sb3_trmrl.load(REPO, device="cpu", **account, local_files_only=True)) == acts(model)


def test_arguments_for_the_hub_do_not_go_with_a_folder() -> None:
    with pytest.raises(ValueError, match=r"is a folder, \['token', 'revision'\]"):
        sb3_trmrl.load(KEPT, revision="main", token="x")


def test_a_model_behind_statistics_is_not_published(hub: FakeHub, tmp_path: Path) -> None:
    env = VecNormalize(make_vec_env("CartPole-v1", 2, seed=0))
    kwargs = dict(memory_encoder_kwargs=dict(hidden_size=4))
    model = RL2PPO("RL2Policy", env, n_steps=20, batch_size=20, n_epochs=1, device="cpu", policy_kwargs=kwargs).learn(40)
    model.save_pretrained(tmp_path / "model")
    assert main(["hub", "pull", str(tmp_path / "model"), "--zoo", str(tmp_path / "logs")]) == 1
    with pytest.raises(PretrainedError, match="The model was trained behind VecNormalize"):
        push(model, hub)
    with pytest.raises(ValueError, match="others would lack"), pytest.warns(UserWarning, match="was trained behind"):
        load_run(tmp_path / "model")
    with pytest.warns(UserWarning, match="was trained behind VecNormalize"):
        loaded = sb3_trmrl.load(tmp_path / "model", device="cpu")
    loaded.save_pretrained(tmp_path / "again")
    with pytest.warns(UserWarning, match="was trained behind VecNormalize"):
        assert main(["hub", "push", str(tmp_path / "again"), REPO, "--token", TOKEN]) == 1
    # Who goes on training gives an environment that keeps statistics, and it gets these
    with pytest.warns(UserWarning, match="was trained behind VecNormalize"):
        sb3_trmrl.load(tmp_path / "model", device="cpu")
    again = VecNormalize(make_vec_env("CartPole-v1", 2, seed=0))
    with warnings.catch_warnings(action="error"):
        loaded = sb3_trmrl.load(tmp_path / "model", env=again, device="cpu")
    observations = np.ones((2, 5), np.float32)[:, : again.observation_space.shape[0]]  # type: ignore[index]
    np.testing.assert_array_equal(again.normalize_obs(observations), env.normalize_obs(observations))
    model.save_pretrained(tmp_path / "weights", training_state=False)
    with pytest.warns(UserWarning, match="without the state of its training, and so without the statistics"):
        sb3_trmrl.load(tmp_path / "weights", env=VecNormalize(make_vec_env("CartPole-v1", 2)), device="cpu")
    more = VecNormalize(make_vec_env("CartPole-v1", 3, seed=0))  # of other slots, which learn all the same
    with pytest.warns(UserWarning, match="fresh trials"):
        sb3_trmrl.load(tmp_path / "model", env=more, device="cpu").learn(20, reset_num_timesteps=False)
    with pytest.warns(UserWarning, match="fresh trials"):
        loaded.learn(20, reset_num_timesteps=False)
    assert isinstance(again.obs_rms, RunningMeanStd) and isinstance(env.obs_rms, RunningMeanStd)
    assert again.obs_rms.count > env.obs_rms.count > 40


# -- The model card ----------------------------------------------------------------------------------------------------


def test_a_secret_in_the_command_need_not_be_published(hub: FakeHub) -> None:
    model = trained()
    model.train_command = "python train.py --token hf_secret"
    push(model, hub, sb3_zip=True, train_command="")
    files = hub.files(REPO)
    assert not any(b"hf_secret" in content for content in files.values())
    with zipfile.ZipFile(io.BytesIO(next(content for name, content in files.items() if name.endswith(".zip")))) as inside:
        assert not any(b"hf_secret" in inside.read(name) for name in inside.namelist())
    assert json.loads(files["config.json"])["training"]["command"] is None


def test_the_card_says_what_it_is_and_how_well_it_adapts(hub: FakeHub, tmp_path: Path) -> None:
    returns = np.array([[1.0, 2.0, 4.0], [3.0, 4.0, 8.0]])
    success = np.array([[False, True, True], [False, False, True]])
    tasks: list[Any] = [{"goal": [0.0, 1.0]}, {"goal": [1.0, 0.0]}]
    adaptation = AdaptationResult(tasks=tasks, returns=returns, lengths=np.full((2, 3), 7), success=success)
    (tmp_path / "agent.mp4").write_bytes(b"a video")
    command = "python -m rl_zoo3.train --algo trmrl --env PointRobot-v0"
    push(trained(), hub, adaptation=adaptation, video=tmp_path / "agent.mp4", train_command=command)
    files = hub.files(REPO)
    card = read_card(hub)
    assert card.data.library_name == "stable-baselines3"
    tags = {"reinforcement-learning", "stable-baselines3", "meta-reinforcement-learning", "PointRobot-v0"}
    assert tags <= set(card.data.tags or [])
    metrics = {result.metric_type: result for result in card.data.eval_results or []}
    # Trials of 7 and 15: what leaderboards split at "+/-"
    assert metrics["mean_reward"].metric_value == "11.00 +/- 4.00"
    assert metrics["return_episode_3"].metric_value == "6.00 +/- 2.00"
    assert {(result.task_type, result.dataset_type) for result in metrics.values()} == {
        ("reinforcement-learning", "PointRobot-v0")
    }
    assert "| 2 | 3.00 [2.00, 4.00] | 50% |" in card.text
    assert files["adaptation_curve.png"].startswith(b"\x89PNG") and "](adaptation_curve.png)" in card.text
    assert files["replay.mp4"] == b"a video"
    assert command in card.text and json.loads(files["config.json"])["training"]["command"] == command
    assert f"sb3_trmrl.load({REPO!r})" in card.text


def test_without_being_told_the_card_evaluates_on_unseen_tasks(hub: FakeHub) -> None:
    push(trained(), hub, n_eval_tasks=3)
    card = read_card(hub)
    assert "One trial on each of 3 unseen tasks" in card.text
    # Trials as long as in training
    assert [result.metric_type for result in card.data.eval_results or []][1:] == [f"return_episode_{i}" for i in (1, 2, 3)]


def test_the_cards_script_makes_the_same_model(hub: FakeHub) -> None:
    model = trained()
    push(model, hub)
    text = hub.files(REPO)["README.md"].decode()
    script = re.findall(r"```python\n(.*?)```", text, re.DOTALL)[-1]
    namespace: dict[str, Any] = {}
    exec(script.replace("model.learn(", "model.device; model.learn("), namespace)
    again = namespace["model"]
    assert again.num_timesteps == 80
    assert all(th.equal(one, two.cpu()) for one, two in zip(weights(model), weights(again), strict=True))


def test_the_cards_usage_plays_what_the_card_has_played(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    env = make_meta_vec_env("MetaBandit-v0", 1, seed=0, env_kwargs=dict(n_arms=3, episodes_per_trial=4))
    model = TrMRLPPO("TrMRLPolicy", env, n_steps=8, batch_size=8, device="cpu")
    push(model, hub, n_eval_tasks=20)
    usage = re.findall(r"```python\n(.*?)```", hub.files(REPO)["README.md"].decode(), re.DOTALL)[0]
    monkeypatch.setattr(sb3_trmrl, "load", lambda repo_id: model)
    namespace: dict[str, Any] = {}
    exec(usage, namespace)
    shown = [result.metric_value for result in read_card(hub).data.eval_results][1:]
    assert [text.split()[0] for text in shown] == [f"{value:.2f}" for value in namespace["result"].curve] and len(shown) == 4


def test_the_cards_usage_of_an_environment_without_tasks(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    model = TrMRLPPO("TrMRLPolicy", "CartPole-v1", n_steps=8, batch_size=8, device="cpu")
    push(model, hub)
    usage = re.findall(r"```python\n(.*?)```", hub.files(REPO)["README.md"].decode(), re.DOTALL)[0]
    monkeypatch.setattr(sb3_trmrl, "load", lambda repo_id: model)
    exec(usage, {})


def test_an_agent_trained_in_wrappers_is_not_judged_without_them(
    hub: FakeHub, tmp_path: Path, command: Callable[..., tuple[int, str, str]]
) -> None:
    def make() -> gym.Env:
        return gym.wrappers.RescaleAction(gym.make("PointRobot-v0"), -np.float32(10), np.float32(10))

    model = TrMRLPPO("TrMRLPolicy", DummyVecEnv([make]), n_steps=8, batch_size=8, device="cpu")
    with pytest.warns(UserWarning, match="no adaptation results: it was trained in RescaleAction"):
        push(model, hub, n_eval_tasks=3)
    card = hub.files(REPO)["README.md"].decode()
    assert "mean_reward" not in card and "evaluate_adaptation" not in card
    assert "env = ...  # the same in RescaleAction; with which arguments can't be told" in card
    assert "1 slots, in RescaleAction" in command("info", REPO)[1]
    folder = model.save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="was trained in RescaleAction, which are not put around"):
        load_run(folder)
    # In another environment, which may have them
    assert load_run(folder, env_id="SparsePointRobot-v0").env_id == "SparsePointRobot-v0"


def make_shorter_robot(**kwargs: Any) -> TrialWrapper:
    return TrialWrapper(PointRobot(horizon=4), **kwargs)


@pytest.fixture
def own_family() -> Iterator[str]:
    gym.register("ShorterRobot-v0", entry_point=make_shorter_robot)
    yield "ShorterRobot-v0"
    gym.registry.pop("ShorterRobot-v0", None)


def make_four_episodes(episodes_per_trial: int = 4, **kwargs: Any) -> TrialWrapper:
    return TrialWrapper(PointRobot(horizon=4), episodes_per_trial, **kwargs)


def make_fixed() -> TrialWrapper:
    return TrialWrapper(PointRobot(horizon=4), 3)


@pytest.mark.parametrize(
    ("entry_point", "wrapper", "numbers"),
    [
        (make_four_episodes, None, 4),
        (make_fixed, None, "unexpected keyword argument"),
        (make_shorter_robot, gym.wrappers.FlattenObservation, "it was trained in FlattenObservation"),
    ],
)
def test_whatever_a_family_takes_its_agent_is_published(
    entry_point: Any, wrapper: Any, numbers: Any, hub: FakeHub, own_family: str
) -> None:
    gym.registry[own_family].entry_point = entry_point
    env = DummyVecEnv([lambda: gym.make(own_family) if wrapper is None else wrapper(gym.make(own_family))])
    policy_kwargs = dict(normalize_observations=False)
    model = TrMRLPPO("TrMRLPolicy", env, n_steps=20, batch_size=20, n_epochs=1, device="cpu", policy_kwargs=policy_kwargs)
    if isinstance(numbers, str):
        with pytest.warns(UserWarning, match=rf"no adaptation results: .*{numbers}"):
            push(model, hub, n_eval_tasks=3)
    else:
        push(model, hub, n_eval_tasks=3)
    card = hub.files(REPO)["README.md"].decode()
    assert ("## Adaptation" in card) is (f"name: return_episode_{numbers}" in card) is isinstance(numbers, int)
    assert "A meta-reinforcement-learning agent on **ShorterRobot-v0**" in card
    if wrapper is None:
        assert f"'ShorterRobot-v0', n_episodes={3 if isinstance(numbers, str) else numbers})" in card


def test_own_families_get_their_numbers(hub: FakeHub, own_family: str) -> None:
    env = make_meta_vec_env(own_family, 2, seed=0, env_kwargs=dict(episodes_per_trial=3))
    model = TrMRLPPO("TrMRLPolicy", env, n_steps=20, batch_size=20, n_epochs=1, seed=3, device="cpu").learn(40)
    push(model, hub, n_eval_tasks=3)
    card = hub.files(REPO)["README.md"].decode()
    assert "One trial on each of 3 unseen tasks" in card and "name: return_episode_3" in card
    first = f"# First import the module that registers 'ShorterRobot-v0', perhaps {__name__.partition('.')[0]}\n"
    assert f"{first}import sb3_trmrl\n" in card and f"{first}from sb3_trmrl import TrMRLPPO\n" in card
    assert "sb3_trmrl.evaluate_adaptation(model, 'ShorterRobot-v0', n_episodes=3)" in card
    assert "model.set_env(env)  # made as below\nmodel.learn(100_000, reset_num_timesteps=False)" in card
    # Who has not imported it gets no numbers, and is told
    del gym.registry[own_family]
    with pytest.warns(UserWarning, match=r"no adaptation results: ShorterRobot-v0 is not registered here.*--gym-packages"):
        push(model, hub, n_eval_tasks=3)
    assert "## Adaptation" not in hub.files(REPO)["README.md"].decode()


def test_a_card_without_numbers_says_why_and_plain_environments_have_no_tasks(hub: FakeHub, tmp_path: Path) -> None:
    trained().save(tmp_path / "model.zip")
    with pytest.warns(UserWarning, match="which environment the model was trained in is not known"):
        push(TrMRLPPO.load(tmp_path / "model.zip", device="cpu"), hub, n_eval_tasks=3)
    model = TrMRLPPO("TrMRLPolicy", "Pendulum-v1", n_steps=20, batch_size=20, n_epochs=1, seed=3, device="cpu")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "The model card")
        push(model, hub, n_eval_tasks=3)
    card = hub.files(REPO)["README.md"].decode()
    assert "A reinforcement-learning agent with a memory on **Pendulum-v1**" in card
    assert "meta-reinforcement-learning" not in card and "Not told its task" not in card
    assert "print(evaluate_policy(model, gym.make('Pendulum-v1')))" in card and "First import" not in card


def test_the_card_promises_the_resumption_that_there_is(hub: FakeHub, tmp_path: Path) -> None:
    exactly = "exactly where it stopped"
    model = trained()
    push(model, hub)
    assert exactly in hub.files(REPO)["README.md"].decode()
    # Nothing to resume from: not when it is saved, and not after it was loaded
    model.save_pretrained(tmp_path / "weights", training_state=False)
    again = sb3_trmrl.load(tmp_path / "weights", device="cpu")
    push(again, hub)
    assert "To go on training" not in hub.files(REPO)["README.md"].decode()
    assert "training.json" not in hub.files(REPO)
    # Trained since, it is
    again.learn(40, reset_num_timesteps=False)
    push(again, hub)
    assert exactly in hub.files(REPO)["README.md"].decode()
    # SB3's zip has optimizer and counters, no environments
    model.save(tmp_path / "model.zip")
    push(TrMRLPPO.load(tmp_path / "model.zip", device="cpu"), hub)
    assert "with its optimizer and counters, in fresh trials" in hub.files(REPO)["README.md"].decode()


def test_a_command_does_not_leave_its_fence(tmp_path: Path) -> None:
    config = read_config(trained().save_pretrained(tmp_path / "model"))
    config["training"]["command"] = "python -c '```' # [here](http://evil)"
    card = model_card(config, REPO)
    assert "````bash\npython -c '```' # [here](http://evil)\n````" in card


@pytest.mark.parametrize("env_id", [".", "..", "a:..", "a/..", "../a", "x" * 300])
def test_an_id_that_is_no_name_makes_no_folder(env_id: str, tmp_path: Path) -> None:
    folder = trained().save_pretrained(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config["environment"]["id"] = env_id
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(PretrainedError, match="has no id that RL Zoo could use"):
        pull_for_zoo(str(folder), tmp_path / "logs")
    assert not (tmp_path / "logs").exists()


def test_the_cards_script_has_classes(hub: FakeHub) -> None:
    env = make_meta_vec_env("PointRobot-v0", 1, seed=0)
    kwargs = dict(activation_fn=th.nn.ReLU, optimizer_class=th.optim.AdamW, memory_encoder="gru")
    model = TrMRLPPO("TrMRLPolicy", env, n_steps=8, batch_size=8, device="cpu", policy_kwargs=kwargs)
    namespace: dict[str, Any] = {}
    exec(training_script(describe(model)).replace("model.learn(", "("), namespace)
    assert namespace["model"].policy_kwargs == kwargs


# -- Commands, and the stock path --------------------------------------------------------------------------------------


def run(hub: FakeHub, folder: Path, *arguments: str, **env: str) -> "subprocess.CompletedProcess[str]":
    """:return: A Python program in a process of its own, whose Hub is the one on 127.0.0.1."""
    own = dict(
        HF_ENDPOINT=hub.endpoint, HF_HOME=str(folder / "home"), HF_TOKEN=TOKEN, HF_HUB_DISABLE_XET="1", OMP_NUM_THREADS="1"
    )
    clean = {key: value for key, value in os.environ.items() if key != "TRUST_REMOTE_CODE"}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=folder, env={**clean, **own, **env}, capture_output=True, text=True, check=False)


@pytest.fixture
def command(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """:return: Runs ``sb3-trmrl hub ...`` here: exit code, what it prints, errors."""
    # As HF_ENDPOINT and HF_HOME do when the client is imported
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, hub.endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(["hub", *arguments, "--token", TOKEN])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return call


def test_push_info_and_pull(hub: FakeHub, tmp_path: Path, command: Callable[..., tuple[int, str, str]]) -> None:
    trained().save_pretrained(tmp_path / "model")
    code, out, err = command("push", "model", REPO, "--n-tasks", "2", "--private", "--sb3-zip")
    assert code == 0, err
    assert f"Published: {hub.endpoint}/{REPO}/commit/" in out
    assert hub.repositories[REPO].private and "trmrl-PointRobot-v0.zip" in hub.files(REPO)

    code, out, err = command("info", REPO)
    assert code == 0, err
    assert re.search(r"algorithm +TrMRLPPO, TrMRLPolicy\n", out) and re.search(r"steps +80\n", out)
    assert re.search(r"resumes +exactly\n", out)

    code, out, err = command("pull", REPO, "pulled")
    assert code == 0, err
    assert {path.name for path in (tmp_path / "pulled").iterdir()} == MODEL_FILES
    assert sb3_trmrl.load(tmp_path / "pulled", device="cpu").num_timesteps == 80


def test_a_zip_of_sb3_can_be_pushed(hub: FakeHub, tmp_path: Path, command: Callable[..., tuple[int, str, str]]) -> None:
    trained().save(tmp_path / "model.zip")
    code, _, err = command("push", "model.zip", REPO, "--algo", "trmrl", "--env", "PointRobot-v0", "--n-tasks", "2")
    assert code == 0, err
    config = json.loads(hub.files(REPO)["config.json"])
    assert (config["environment"]["id"], config["training"]["num_timesteps"]) == ("PointRobot-v0", 80)
    _, out, _ = command("info", REPO)
    assert re.search(r"resumes +with fresh trials\n", out)
    trained().save_pretrained(tmp_path / "folder")
    code, _, err = command("push", "folder", REPO, "--env", "MetaBandit-v0")
    assert code == 1 and "--algo, --env and --env-kwargs are of a zip file; folder tells its own" in err


def test_a_zip_is_judged_with_the_keywords_of_its_training(
    hub: FakeHub, tmp_path: Path, command: Callable[..., tuple[int, str, str]]
) -> None:
    trained().save(tmp_path / "model.zip")
    zip_file = ("push", "model.zip", REPO, "--algo", "trmrl", "--env", "PointRobot-v0", "--n-tasks", "2")
    # An option with many values stands last or before another
    code, _, err = command(*zip_file, "--env-kwargs", "horizon:7", "episodes_per_trial:3", "--private")
    assert code == 0, err
    assert json.loads(hub.files(REPO)["config.json"])["environment"]["kwargs"] == {"horizon": 7, "episodes_per_trial": 3}
    card = hub.files(REPO)["README.md"].decode()
    assert "n_episodes=3, env_kwargs=dict(horizon=7)" in card


def test_info_of_weights_that_were_loaded_and_saved(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained().save_pretrained(tmp_path / "weights", training_state=False)
    sb3_trmrl.load(tmp_path / "weights", device="cpu").save_pretrained(tmp_path / "again")
    assert main(["hub", "info", str(tmp_path / "again")]) == 0
    assert re.search(r"resumes +no: weights only\n", capsys.readouterr().out)


def test_pull_checks_before_it_writes(hub: FakeHub, tmp_path: Path, command: Callable[..., tuple[int, str, str]]) -> None:
    push(trained(), hub)
    config = json.loads(hub.files(REPO)["config.json"])
    config["hyperparameters"]["policy_kwargs"]["memory_encoder"] = "os.system"
    hub.repositories[REPO].commit("main", {"config.json": json.dumps(config).encode()}, [])
    for target in (["pulled"], ["--zoo", "logs"]):
        code, _, err = command("pull", REPO, *target)
        assert code == 1 and "memory_encoder must be one of" in err
    assert not (tmp_path / "pulled").exists() and not (tmp_path / "logs").exists()


def test_pulled_for_rl_zoo_its_own_tool_plays_it(
    hub: FakeHub, tmp_path: Path, command: Callable[..., tuple[int, str, str]]
) -> None:
    push(trained(), hub)
    for number in ("1", "2"):
        code, out, err = command("pull", REPO, "--zoo", "logs")
        assert code == 0, err
        assert f"python -m rl_zoo3.enjoy --algo trmrl --env PointRobot-v0 -f logs --exp-id {number}" in out
    enjoy = ["-m", "sb3_trmrl.zoo", "enjoy", "--algo", "trmrl", "--env", "PointRobot-v0", "-f", "logs", "--exp-id", "1"]
    done = run(hub, tmp_path, *enjoy, "--no-render", "--n-timesteps", "100", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    # With the environment that it was trained in: three episodes of 7 steps
    assert "Episode Length 21" in done.stdout


def test_pull_for_rl_zoo_names_the_environment_as_the_zoo_wants_it(
    hub: FakeHub, command: Callable[..., tuple[int, str, str]]
) -> None:
    push(trained(), hub)
    config = json.loads(hub.files(REPO)["config.json"])
    config["environment"]["id"] = "Mine/PointRobot-v0"
    hub.repositories[REPO].commit("main", {"config.json": json.dumps(config).encode()}, [])
    code, out, err = command("pull", REPO, "--zoo", "logs")
    assert code == 0, err
    assert "--env Mine/PointRobot-v0 -f logs --exp-id 1" in out


STOCK = """
import os
from huggingface_sb3 import load_from_hub
from sb3_trmrl import TrMRLPPO
file = ("tester/trmrl-PointRobot-v0", "trmrl-PointRobot-v0.zip")
try:
    load_from_hub(*file)
except ValueError as error:
    print("refused", "TRUST_REMOTE_CODE" in str(error))
os.environ["TRUST_REMOTE_CODE"] = "True"
print("steps", TrMRLPPO.load(load_from_hub(*file), device="cpu").num_timesteps)
"""
#: What the start-up file of the package does for ``python -m rl_zoo3.load_from_hub``, installed or not
ZOO_DOWNLOAD = """
import runpy
from sb3_trmrl.zoo.registration import register
register()
runpy.run_module("rl_zoo3.load_from_hub", run_name="__main__")
"""


def test_the_stock_path_loads_the_zip_if_the_user_trusts_it(hub: FakeHub, tmp_path: Path) -> None:
    push(trained(), hub, sb3_zip=True)
    done = run(hub, tmp_path, "-c", STOCK)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "refused True\nsteps 80\n"


def test_canary_rl_zoo3_load_from_hub_still_fails_without_normalisation_statistics(hub: FakeHub, tmp_path: Path) -> None:
    """
    rl_zoo3 2.9.2 looks for ``vec_normalize.pkl`` and waits for an error of ``requests`` where there is none; the client has
    long raised others. When this test fails upstream is mended: say so in docs/guide/hub.md, beside ``hub pull --zoo``.
    """
    push(trained(), hub, sb3_zip=True)
    stock = [
        "-c",
        ZOO_DOWNLOAD,
        "--algo",
        "trmrl",
        "--env",
        "PointRobot-v0",
        "-f",
        "logs",
        "-orga",
        "tester",
    ]
    done = run(hub, tmp_path, *stock, TRUST_REMOTE_CODE="True")
    assert done.returncode != 0
    assert "vec_normalize.pkl" in done.stderr and "EntryNotFoundError" in done.stderr


def test_rl_zoo3_load_from_hub_works_with_normalisation_statistics(hub: FakeHub, tmp_path: Path) -> None:
    env = VecNormalize(make_meta_vec_env("PointRobot-v0", 2, seed=0, env_kwargs=dict(horizon=7)), norm_obs=False)
    kwargs = dict(memory_encoder_kwargs=dict(hidden_size=4))
    model = RL2PPO("RL2Policy", env, n_steps=20, batch_size=20, n_epochs=1, device="cpu", policy_kwargs=kwargs).learn(40)
    push(model, hub, "tester/rl2-PointRobot-v0", sb3_zip=True)
    stock = [
        "-c",
        ZOO_DOWNLOAD,
        "--algo",
        "rl2",
        "--env",
        "PointRobot-v0",
        "-f",
        "logs",
        "-orga",
        "tester",
    ]
    done = run(hub, tmp_path, *stock, TRUST_REMOTE_CODE="True")
    assert done.returncode == 0, done.stderr
    run_folder = tmp_path / "logs" / "rl2" / "PointRobot-v0_1"
    assert RL2PPO.load(run_folder / "PointRobot-v0.zip", device="cpu").num_timesteps == 40
    assert yaml.safe_load((run_folder / "PointRobot-v0" / "env_kwargs.yml").read_text()) == {"horizon": 7}
    assert (run_folder / "PointRobot-v0" / "vecnormalize.pkl").exists()

"""The command line does what the functions do, and ends with one line and a code where the user is wrong."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import yaml
from sb3_contrib import RecurrentPPO
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import VecNormalize

import sb3_trmrl.hub
from sb3_trmrl import RL2PPO, AdaptationResult, TrMRLPPO, evaluate_adaptation
from sb3_trmrl.cli import main
from sb3_trmrl.cli.parser import make_parser
from sb3_trmrl.cli.sources import parse_sources
from sb3_trmrl.cli.text import no_references, to_json
from sb3_trmrl.common.env_util import make_meta_vec_env
from sb3_trmrl.common.logs import NoLogsError
from sb3_trmrl.common.references import RandomAgent
from sb3_trmrl.common.references.files import file_name
from sb3_trmrl.runs import ALGORITHMS, learning_curves, load_run

SMALL = dict(memory_encoder_kwargs=dict(embed_dim=8, n_heads=2, n_layers=1))
FEW = ["--n-tasks", "3", "--n-episodes", "2"]
ENV = "PointRobot-v0"


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch) -> None:
    monkeypatch.setenv("SB3_TRMRL_CACHE", str(tmp_path_factory.mktemp("cache")))


def make_model() -> TrMRLPPO:
    return TrMRLPPO("TrMRLPolicy", ENV, seed=0, device="cpu", policy_kwargs=SMALL)


@pytest.fixture(scope="module")
def model_zip(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("model") / "model.zip"
    make_model().save(path)
    return str(path)


@pytest.fixture(scope="module")
def zoo_folder(tmp_path_factory) -> Path:
    """Log folders as RL Zoo leaves them: two runs of TrMRL, the later one with another seed, and logs."""
    root = tmp_path_factory.mktemp("logs") / "trmrl"
    for number in (1, 2):
        folder = root / f"{ENV}_{number}"
        (folder / ENV).mkdir(parents=True)
        make_model().save(folder / f"{ENV}.zip")
        pairs: dict[str, Any] = {
            # --eval-env-kwargs episodes_per_trial:6
            "args.yml": dict(algo="trmrl", env=ENV, env_kwargs=None, eval_env_kwargs=dict(episodes_per_trial=6), seed=number),
            "config.yml": dict(env_kwargs=dict(episodes_per_trial=3, horizon=4), n_envs=2),
        }
        for name, content in pairs.items():
            items = yaml.safe_dump([[key, value] for key, value in content.items()])
            indented = "".join(f"  {line}\n" for line in items.splitlines())
            (folder / ENV / name).write_text("!!python/object/apply:collections.OrderedDict\n-\n" + indented)
        (folder / "0.monitor.csv").write_text('#{"t_start": 0.0, "env_id": "X"}\nr,l,t\n-6.0,12,1.0\n-3.0,12,2.0\n')
        np.savez(folder / "evaluations.npz", timesteps=[24], results=[[-12.0, -6.0]])
    return root


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def error_of(capsys, *arguments: object) -> str:
    """The one line of a failing command."""
    assert run(*arguments) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("sb3-trmrl: error: ") and captured.err.count("\n") == 1
    return captured.err


# ---- evaluate ----------------------------------------------------------------------------------------------------------


def test_evaluate_prints_and_writes_what_the_function_returns(capsys, tmp_path, model_zip):
    code = run("evaluate", model_zip, "--algo", "trmrl", "--env", ENV, *FEW, "--seed", 3, "--split", "test", "ood",
               "-o", tmp_path / "r.npz", tmp_path / "r.json", tmp_path / "r.png", tmp_path / "r.svg")  # fmt: skip
    out = capsys.readouterr().out
    assert code == 0
    for split in ("test", "ood"):
        expected = evaluate_adaptation(make_model(), ENV, 3, 2, split, seed=3)
        for ending in ("npz", "json"):
            written = AdaptationResult.load(tmp_path / f"r_{split}.{ending}")
            np.testing.assert_allclose(written.returns, expected.returns)
            assert written.tasks == expected.tasks and written.settings["split"] == split
        assert (tmp_path / f"r_{split}.png").stat().st_size > 10_000 and "<svg" in (tmp_path / f"r_{split}.svg").read_text()
        lower, upper = expected.interval()
        assert f"{expected.curve[0]:.2f} [{lower[0]:.2f}, {upper[0]:.2f}]" in out
    # The references that come with the package; another seed has other tasks
    assert "oracle" in out and "other tasks of the same split" in out and "reactive's score" in out


def test_evaluate_in_json_is_json_alone(capsys, model_zip):
    assert run("evaluate", model_zip, "--algo", "trmrl", "--env", ENV, *FEW, "--env-kwargs", "horizon:5", "--json") == 0
    data = json.loads(capsys.readouterr().out)["test"]
    expected = evaluate_adaptation(make_model(), ENV, 3, 2, env_kwargs=dict(horizon=5))
    np.testing.assert_allclose(data["returns"], expected.returns)
    np.testing.assert_allclose(data["interval"], expected.interval())
    assert data["env_kwargs"] == {"horizon": 5} and data["tasks"] == expected.tasks and "references" not in data


def test_values_of_keywords():
    words = ["a:1e-3", "b:-2.5E+1", "c:1e", "d:ood", "e:10", "f:[1, 2]", "g:0.5", "h:'1e3'"]
    values = make_parser().parse_args(["references", ENV, "--env-kwargs", *words]).env_kwargs
    assert values == dict(a=1e-3, b=-25.0, c="1e", d="ood", e=10, f=[1, 2], g=0.5, h="1e3")


def test_stochastic_and_one_after_the_other(capsys, model_zip):
    returns = []
    for more in ([], ["--n-envs", "1"], ["--stochastic"]):
        assert run("evaluate", model_zip, "--algo", "trmrl", "--env", ENV, *FEW, "--json", *more) == 0
        returns.append(json.loads(capsys.readouterr().out)["test"]["returns"])
    np.testing.assert_allclose(returns[0], returns[1], atol=1e-4)
    assert not np.allclose(returns[0], returns[2])


@pytest.mark.parametrize("algo, cls, policy", [("rl2", RL2PPO, "RL2Policy"), ("ppo", PPO, "MlpPolicy"),
                                               ("ppo_lstm", RecurrentPPO, "MlpLstmPolicy")])  # fmt: skip
def test_every_algorithm(capsys, tmp_path, algo, cls, policy):
    model = cls(policy, "MetaBandit-v0", seed=0, device="cpu")
    model.save(tmp_path / "model.zip")
    assert run("evaluate", tmp_path / "model.zip", "--algo", algo, "--env", "MetaBandit-v0", *FEW, "--json") == 0
    expected = evaluate_adaptation(model, "MetaBandit-v0", 3, 2)
    np.testing.assert_array_equal(json.loads(capsys.readouterr().out)["test"]["returns"], expected.returns)


def test_log_folders_of_the_zoo_tell_everything(capsys, zoo_folder):
    found = load_run(zoo_folder)
    assert (found.name, found.env_id, found.episodes_per_trial) == (f"{ENV}_2", ENV, 3)
    assert load_run(zoo_folder / f"{ENV}_1").name == f"{ENV}_1"
    assert load_run(zoo_folder / f"{ENV}_1" / f"{ENV}.zip").env_id == ENV
    curves = learning_curves(zoo_folder)
    np.testing.assert_array_equal(curves["training"].returns, [[-2.0], [-1.0]])
    np.testing.assert_array_equal(curves["evaluation"].returns, [[-2.0, -1.0]])
    assert run("evaluate", zoo_folder, *FEW, "--json") == 0
    data = json.loads(capsys.readouterr().out)["test"]
    # The keywords of training, but for the length of the trial
    assert data["env_kwargs"] == {"horizon": 4} and np.shape(data["returns"]) == (3, 2)


def test_zips_beside_others_have_their_own_facts(tmp_path):
    for number, name in enumerate("AB"):
        make_model().save(tmp_path / f"{name}.zip")
        (tmp_path / name).mkdir()
        (tmp_path / name / "args.yml").write_text(yaml.safe_dump(dict(algo="trmrl", env=ENV)))
        (tmp_path / name / "config.yml").write_text(yaml.safe_dump(dict(env_kwargs=dict(horizon=7 + number))))
    VecNormalize(make_meta_vec_env(ENV, 2)).save(str(tmp_path / "A" / "vecnormalize.pkl"))
    first, second = (load_run(tmp_path / f"{name}.zip") for name in "AB")
    assert (first.env_kwargs, second.env_kwargs) == (dict(horizon=7), dict(horizon=8))
    assert first.vec_normalize is not None and second.vec_normalize is None
    (tmp_path / "B.zip").rename(tmp_path / "best.zip")
    for source in (tmp_path / "best.zip", tmp_path):
        with pytest.raises(ValueError, match=r"several runs \(A, B\): give a zip file that is named as one"):
            load_run(source)
    # As pushed models have it; a config.yml alone is somebody else's
    alone = tmp_path / "pulled"
    alone.mkdir()
    for name in ("best.zip", "B/args.yml", "B/config.yml"):
        shutil.copy(tmp_path / name, alone)
    assert load_run(alone / "best.zip").playing_kwargs == dict(horizon=8)
    shutil.copy(tmp_path / "A" / "vecnormalize.pkl", alone / "vec_normalize.pkl")
    assert load_run(alone / "best.zip").vec_normalize is not None
    (alone / "args.yml").unlink()
    run = load_run(alone / "best.zip", "trmrl")
    assert run.playing_kwargs == {} and run.vec_normalize is None
    with pytest.raises(NoLogsError):  # and not that there are several runs
        learning_curves(tmp_path)


def test_an_id_may_name_its_module(tmp_path):
    model = TrMRLPPO("TrMRLPolicy", make_meta_vec_env(ENV, 2, env_kwargs=dict(horizon=7)), device="cpu", policy_kwargs=SMALL)
    (tmp_path / ENV).mkdir()
    model.save(tmp_path / f"{ENV}.zip")
    (tmp_path / ENV / "args.yml").write_text(yaml.safe_dump(dict(algo="trmrl", env=ENV)))
    (tmp_path / ENV / "config.yml").write_text(yaml.safe_dump(dict(env_kwargs=dict(horizon=7))))
    model.save_pretrained(tmp_path / "saved" / "model")
    for source in (tmp_path / f"{ENV}.zip", tmp_path / "saved" / "model"):
        for env_id in (None, ENV, f"sb3_trmrl:{ENV}"):
            assert load_run(source, env_id=env_id).playing_kwargs == dict(horizon=7)
        assert load_run(source, env_id="sb3_trmrl:MetaBandit-v0").playing_kwargs == {}


def test_pretrained_folders(capsys, tmp_path):
    model = make_model()
    model.save_pretrained(tmp_path / "model")
    assert run("evaluate", tmp_path / "model", *FEW, "--json") == 0
    expected = evaluate_adaptation(model, ENV, 3, 2)
    np.testing.assert_allclose(json.loads(capsys.readouterr().out)["test"]["returns"], expected.returns, atol=1e-5)


def test_a_folder_that_a_kill_left_under_another_name(capsys, tmp_path):
    make_model().save_pretrained(tmp_path / "agent")
    (tmp_path / "agent").rename(tmp_path / ".agent.new")
    assert run("evaluate", tmp_path / "agent", "--env", ENV, *FEW, "--json") == 0


def test_environment_of_a_folder_that_names_a_module_is_not_imported(tmp_path, monkeypatch):
    model = make_model()
    model.save_pretrained(tmp_path / "model")
    load = sb3_trmrl.hub.load

    def loaded_with(env_id: str) -> Any:
        def changed(*args: Any, **kwargs: Any) -> Any:
            found: Any = load(*args, **kwargs)
            found.saved_environment = {**found.saved_environment, "id": env_id}
            return found

        monkeypatch.setattr(sb3_trmrl.hub, "load", changed)
        return load_run(tmp_path / "model").env_id

    assert loaded_with(ENV) == ENV
    assert loaded_with(f"antigravity:{ENV}") is None and "antigravity" not in sys.modules


@pytest.fixture()
def normalized_run(tmp_path) -> Path:
    """A run of PPO behind VecNormalize, as RL Zoo leaves it."""
    folder = tmp_path / f"{ENV}_1"
    (folder / ENV).mkdir(parents=True)
    env = VecNormalize(make_meta_vec_env(ENV, 2, seed=0, env_kwargs=dict(horizon=4)))
    model = PPO("MlpPolicy", env, n_steps=64, batch_size=64, learning_rate=0.03, seed=0, device="cpu").learn(256)
    model.save(folder / f"{ENV}.zip")
    env.save(str(folder / ENV / "vecnormalize.pkl"))
    (folder / ENV / "args.yml").write_text(yaml.safe_dump(dict(algo="ppo", env=ENV)))
    (folder / ENV / "config.yml").write_text(yaml.safe_dump(dict(env_kwargs=dict(horizon=4), normalize=True)))
    return folder


def test_normalised_runs_are_evaluated_with_their_statistics(capsys, normalized_run):
    model = PPO.load(normalized_run / f"{ENV}.zip", device="cpu")
    raw = make_meta_vec_env(ENV, 3, env_kwargs=dict(horizon=4, episodes_per_trial=2, split="test"))
    env = VecNormalize.load(str(normalized_run / ENV / "vecnormalize.pkl"), raw)
    expected = evaluate_adaptation(model, env, 3, 2).returns
    assert (expected != evaluate_adaptation(model, raw, 3, 2).returns).all(), "it makes a difference"
    for source in (normalized_run, normalized_run / f"{ENV}.zip"):
        assert run("evaluate", source, *FEW, "--json") == 0
        np.testing.assert_allclose(json.loads(capsys.readouterr().out)["test"]["returns"], expected)


def test_memory_behind_statistics_is_not_inspected_without_them(capsys, normalized_run):
    assert "trained behind VecNormalize" in error_of(capsys, "inspect", normalized_run, *FEW)


def test_statistics_of_rewards_alone_change_nothing(normalized_run):
    path = normalized_run / ENV / "vecnormalize.pkl"
    VecNormalize(make_meta_vec_env(ENV, 2), norm_obs=False).save(str(path))
    assert load_run(normalized_run).vec_normalize is None
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"vecnormalize\.pkl is broken"):
        load_run(normalized_run)
    path.unlink()
    with pytest.raises(
        ValueError, match=r"trained behind VecNormalize, whose statistics are not in .*: put its vecnormalize\.pkl there"
    ):
        load_run(normalized_run)


def test_tuples_of_the_command_line(capsys, zoo_folder, tmp_path):
    run_folder = shutil.copytree(zoo_folder / f"{ENV}_1", tmp_path / f"{ENV}_1")
    args = dict(algo="trmrl", env=ENV, hyperparams=dict(policy_kwargs=dict(optimizer_kwargs=dict(betas=(0.9, 0.95)))))
    (run_folder / ENV / "args.yml").write_text(yaml.dump(args))  # as the zoo
    assert "python/tuple" in (run_folder / ENV / "args.yml").read_text()
    assert run("evaluate", run_folder, *FEW) == 0


def test_names_with_a_slash_are_found_as_the_zoo_writes_them(normalized_run):
    (normalized_run / ENV / "args.yml").write_text(yaml.safe_dump(dict(algo="ppo", env="lab/Thermo-v0")))
    final, best = normalized_run / f"{ENV}.zip", normalized_run / "best_model.zip"
    model = PPO.load(final, device="cpu")
    model.num_timesteps = 1
    model.save(best)
    final.rename(normalized_run / "lab-Thermo-v0.zip")
    found = load_run(normalized_run, env_id=ENV)
    assert found.model.num_timesteps == 256 and (found.env_id, found.trained_on) == (ENV, "lab/Thermo-v0")


def test_another_environment_has_its_own_keywords(capsys, zoo_folder):
    assert run("evaluate", zoo_folder, "--env", "SparsePointRobot-v0", *FEW, "--json") == 0
    assert json.loads(capsys.readouterr().out)["test"]["env_kwargs"] == {}
    assert run("evaluate", zoo_folder, "--env", ENV, *FEW, "--json") == 0
    assert json.loads(capsys.readouterr().out)["test"]["env_kwargs"] == {"horizon": 4}


def test_references_that_nobody_asked_for_are_not_missed(capsys, model_zip, tmp_path):
    few = (model_zip, "--algo", "trmrl", "--env", ENV, *FEW)
    assert run("evaluate", *few, "--no-references", "-o", tmp_path / "R.JSON") == 0
    assert "No references" not in capsys.readouterr().out and len(AdaptationResult.load(tmp_path / "R.JSON").tasks) == 3
    assert run("evaluate", *few, "--env-kwargs", "horizon:3") == 0
    told = capsys.readouterr().out
    assert f"No references for this family, split and keywords: `sb3-trmrl references {ENV} --env-kwargs horizon:3`" in told
    few_steps = ["--timesteps", "64", "--n-tasks", "3", "--n-episodes", "2", "--agents", "random"]
    assert run(*shlex.split(told.split("`")[1])[1:], *few_steps) == 0
    assert run("evaluate", *few, "--env-kwargs", "horizon:3") == 0
    assert "No references" not in capsys.readouterr().out


@pytest.mark.parametrize("algo, env_id", [("sac", ENV), ("dqn", "MetaBandit-v0"), ("tqc", ENV)])
def test_runs_of_the_other_algorithms(capsys, algo, env_id, tmp_path):
    ALGORITHMS[algo]("MlpPolicy", env_id, device="cpu", seed=0).save(tmp_path / "model.zip")  # type: ignore[call-arg]
    assert run("evaluate", tmp_path / "model.zip", "--algo", algo, "--env", env_id, *FEW, "--json") == 0
    assert np.shape(json.loads(capsys.readouterr().out)["test"]["returns"]) == (3, 2)


def test_version(capsys):
    with pytest.raises(SystemExit, match=r"^0$"):
        run("--version")
    assert capsys.readouterr().out == f"sb3-trmrl {sb3_trmrl.__version__}\n"


@pytest.mark.parametrize("stdout", ["no reader", "closed"])
def test_nobody_has_to_read_it(stdout, results, tmp_path):
    # As `| head -1`, where the pipe has no reader when the table comes, and as `>&-`
    read, write = os.pipe()
    os.close(read)
    command = shlex.join([sys.executable, "-m", "sb3_trmrl", "compare", str(results / "b.npz"), "-o", str(tmp_path / "p.png")])
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    process = subprocess.run(
        command + (" >&-" if stdout == "closed" else ""),
        shell=True, stdout=write, stderr=subprocess.PIPE, text=True, env=environment, check=False,
    )  # fmt: skip
    os.close(write)
    assert (process.returncode, process.stderr) == (0, "") and (tmp_path / "p.png").exists()


@pytest.mark.parametrize(
    "value, written",
    [
        (3, "n:3"), (1e-5, "n:1e-05"), (1.5, "n:1.5"), (None, "n:null"), (True, "n:true"), ("true", "'n:\"true\"'"),
        ("ä", "'n:\"ä\"'"), ([1, 2], "'n:[1, 2]'"), ((1, 2), "'n:[1, 2]'"), ({"a": "b c"}, """'n:{"a": "b c"}'"""),
        ([1e-5, 2], None), (np.inf, None), (np.zeros(2), None),
    ],
)  # fmt: skip
def test_the_command_for_references_is_one_that_makes_them(value, written):
    settings = dict(env_id=ENV, env_kwargs=dict(n=value))
    result = AdaptationResult([{}], np.zeros((1, 1)), np.ones((1, 1), np.int64), None, settings=settings)
    told = no_references(result, ["lab"])
    known = "No references for this family, split and keywords"
    if written is None:
        assert told == f"{known}."
        return
    assert told == f"{known}: `sb3-trmrl references {ENV} --env-kwargs {written} --gym-packages lab` makes them."
    kwargs = make_parser().parse_args(shlex.split(told.split("`")[1])[1:]).env_kwargs
    assert file_name(ENV, kwargs) == file_name(ENV, dict(n=value))
    result.settings["env_id"] = "NotRegistered-v0"
    assert no_references(result) == f"{known}."


def test_yaml_of_a_log_folder_runs_nothing(tmp_path, zoo_folder):
    folder = tmp_path / "run"
    (folder / "x").mkdir(parents=True)
    (folder / "x" / "args.yml").write_text("!!python/object/apply:os.mkdir\n- " + str(tmp_path / "made"))
    with pytest.raises(ValueError, match="can't be read"):
        load_run(folder)
    assert not (tmp_path / "made").exists()
    (folder / "x" / "args.yml").write_text("algo: trmrl\nbetas: !!python/tuple [0.9, !!python/object/apply:os.mkdir [x]]")
    with pytest.raises(ValueError, match="can't be read"):
        load_run(folder)
    (folder / "x" / "args.yml").write_text("!!python/object/apply:collections.OrderedDict []")
    with pytest.raises(ValueError, match="can't be read"):
        load_run(folder)


def test_wrappers_of_the_zoo_are_missed(capsys, zoo_folder, tmp_path):
    folder = tmp_path / f"{ENV}_1"
    shutil.copytree(zoo_folder / f"{ENV}_1", folder)
    (folder / ENV / "config.yml").write_text("env_wrapper: package.Wrapper\n")
    for source in (folder, folder / f"{ENV}.zip"):
        assert "wrappers of RL Zoo, {'env_wrapper': 'package.Wrapper'}" in error_of(capsys, "evaluate", source, *FEW)
    assert run("plot", "learning", folder, "-o", tmp_path / "l.png") == 0  # but what it learned can be seen


# ---- compare, plot ---------------------------------------------------------------------------------------------------


@pytest.fixture
def results(tmp_path) -> Path:
    """Saved results of two agents, of which one has two training seeds."""
    actions = gym.make(ENV).action_space
    agents: dict[str, Any] = dict(
        a1=RandomAgent(actions, 1), a2=RandomAgent(actions, 2), b=lambda tokens: np.zeros((len(tokens), 2))
    )
    for name, agent in agents.items():
        evaluate_adaptation(agent, ENV, 5, 2).save(tmp_path / f"{name}.npz")
    return tmp_path


def test_compare(capsys, results):
    sources = [f"random={results / 'a1.npz'},{results / 'a2.npz'}", f"still={results / 'b.npz'}"]
    assert run("compare", *sources, "-o", results / "c.png") == 0
    out = capsys.readouterr().out
    lines = {line.split()[0]: line.split() for line in out.splitlines() if line}
    assert lines["random"][1] == "2" and lines["still"][1] == "1" and "(oracle)" in lines
    assert (results / "c.png").stat().st_size > 10_000
    assert run("compare", *sources, "--json") == 0
    agents = json.loads(capsys.readouterr().out)["agents"]
    loaded = {name: AdaptationResult.load(results / f"{name}.npz").returns for name in ("a1", "a2", "b")}
    np.testing.assert_allclose(agents["random"]["curve"], (loaded["a1"] + loaded["a2"]).mean(axis=0) / 2)
    still, random = loaded["b"][:, -1], np.stack([loaded["a1"], loaded["a2"]])[:, :, -1]
    assert agents["still"]["probability_better_than_first"] == pytest.approx((still > random).mean())
    assert agents["still"]["iqm_last_episode"] == pytest.approx(np.sort(still)[1:-1].mean())


def test_models_are_evaluated_to_be_compared(capsys, zoo_folder, results):
    arguments = [zoo_folder / f"{ENV}_1", zoo_folder / f"{ENV}_2", *FEW, "--json"]
    assert run("compare", *arguments) == 0
    agents = json.loads(capsys.readouterr().out)["agents"]
    # The same model twice: ties
    assert agents[f"{ENV}_2"]["probability_better_than_first"] == 0.5


@pytest.mark.parametrize("kind", ["adaptation", "tasks", "profile"])
def test_plots_of_results(capsys, results, kind):
    for ending in ("png", "svg"):
        assert run("plot", kind, results / "a1.npz", f"still={results / 'b.npz'}", "-o", results / f"{kind}.{ending}") == 0
        assert (results / f"{kind}.{ending}").stat().st_size > 5_000
    assert capsys.readouterr().out.count("Written: ") == 2


def test_paths_with_signs_that_part_arguments(capsys, results):
    for folder in ("lr=0.1", "a,b"):
        (results / folder).mkdir()
        path = results / folder / "b.npz"
        path.write_bytes((results / "b.npz").read_bytes())
        assert run("compare", path, f"named={results / 'a1.npz'}", "--json") == 0
        assert list(json.loads(capsys.readouterr().out)["agents"]) == ["b", "named"]
        assert run("plot", "adaptation", path, "-o", results / "p.png") == 0
        capsys.readouterr()
    several = f"{results / 'lr=0.1' / 'b.npz'},{results / 'lr=0.1' / 'b.npz'}"
    assert run("compare", several, f"x={results / 'a,b' / 'b.npz'}", "--json") == 0
    agents = json.loads(capsys.readouterr().out)["agents"]
    assert {name: agent["n_runs"] for name, agent in agents.items()} == {"b": 2, "x": 1}


def test_names_of_folders_are_whole(tmp_path):
    for name in ("m1.0", "m1.5", "result.npz", "model.zip"):
        (tmp_path / name).mkdir() if name.startswith("m1") else (tmp_path / name).touch()
    sources = [str(tmp_path / name) for name in ("m1.0", "m1.5", "result.npz", "model.zip")]
    assert list(parse_sources([*sources, "user/agent-1.0"])) == ["m1.0", "m1.5", "result", "model", "agent-1.0"]


def test_curves_of_unequal_lengths_in_any_order(results):
    evaluate_adaptation(lambda o: np.zeros((len(o), 2)), ENV, 5, 4, seed=0).save(results / "longer.npz")
    for order in (("b.npz", "longer.npz"), ("longer.npz", "b.npz")):
        assert run("plot", "adaptation", *(results / name for name in order), "-o", results / "p.png") == 0


def test_more_files_than_a_path_may_have_characters(capsys, results):
    paths = []
    for number in range(20):
        paths.append(results / f"a_result_of_seed_{number}.npz")
        paths[-1].write_bytes((results / "b.npz").read_bytes())
    assert run("compare", "many=" + ",".join(map(str, paths)), "--json") == 0
    assert json.loads(capsys.readouterr().out)["agents"]["many"]["n_runs"] == 20


def test_plot_learning(zoo_folder, tmp_path):
    assert run("plot", "learning", zoo_folder, f"first={zoo_folder / f'{ENV}_1'}", "-o", tmp_path / "l.png") == 0
    assert (tmp_path / "l.png").stat().st_size > 5_000


def test_inspect_and_its_plots(capsys, zoo_folder, tmp_path):
    assert run("inspect", zoo_folder, "--n-tasks", 3, "-o", tmp_path / "i") == 0
    out = capsys.readouterr().out
    assert re.search(r"layer +head +on this step", out) and "inspection.npz, attention.png, embeddings.png" in out
    for kind in ("attention", "embeddings"):
        assert run("plot", kind, tmp_path / "i" / "inspection.npz", "-o", tmp_path / f"{kind}.svg") == 0
        assert (tmp_path / "i" / f"{kind}.png").stat().st_size > 5_000
    capsys.readouterr()
    assert run("inspect", zoo_folder, "--n-tasks", 3, "--json") == 0
    assert len(json.loads(capsys.readouterr().out)["attention"]) == 2  # heads


def test_inspect_without_attention(capsys, zoo_folder, tmp_path):
    assert run("inspect", zoo_folder, "--n-tasks", 3, "--n-attention", 0, "-o", tmp_path / "i") == 0
    out = capsys.readouterr().out
    assert "Attention" not in out and "no attention" not in out and "inspection.npz, embeddings.png" in out
    assert "n_attention must be at least 0, got -1" in error_of(capsys, "inspect", zoo_folder, "--n-attention", -1)


def test_gym_packages_of_every_command_that_builds(capsys, model_zip, tmp_path, monkeypatch):
    (tmp_path / "mine_to_register.py").write_text("print('registered')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    few = ("--algo", "trmrl", "--env", ENV, *FEW)
    assert run("evaluate", model_zip, *few, "--gym-packages", "mine_to_register") == 0
    assert capsys.readouterr().out.startswith("registered")
    parser = make_parser()
    plot = ["plot", "tasks", "x", "-o", "y.png"]
    for command in (
        plot,
        ["compare", "x"],
        ["inspect", "x"],
        ["report", "x"],
        ["references", ENV],
        ["hub", "pull", "a/b", "c"],
    ):
        assert parser.parse_args([*command, "--gym-packages", "a", "b"]).gym_packages == ["a", "b"]
        assert parser.parse_args(command).gym_packages == []
    unknown = error_of(capsys, "evaluate", model_zip, "--algo", "trmrl", "--env", "Nobodys-v0")
    assert "Nobodys" in unknown and "If a module registers it, name that with --gym-packages" in unknown
    assert "No module named 'nowhere'" in error_of(capsys, "evaluate", model_zip, "--gym-packages", "nowhere")


def test_report(capsys, zoo_folder, tmp_path):
    assert run("report", zoo_folder, *FEW, "--split", "test", "-o", tmp_path / "report.html") == 0
    text = (tmp_path / "report.html").read_text()
    assert "sb3-trmrl report " in text and "Learning curves" in text and "Attention" in text


def test_references(capsys, tmp_path):
    arguments = ["references", "MetaBandit-v0", "--agents", "oracle", "blind", "--n-tasks", 2, "--n-episodes", 2]
    assert run(*arguments, "-o", tmp_path) == 0
    out = capsys.readouterr().out
    content = json.loads((tmp_path / "MetaBandit-v0.json").read_text())
    assert content["agents"]["oracle"]["command"] == "sb3-trmrl " + " ".join(map(str, [*arguments, "-o", tmp_path]))
    assert "MetaBandit-v0, 2 ood tasks" in out and "expected return of the best arm" in out


# ---- mistakes --------------------------------------------------------------------------------------------------------


def test_mistakes_of_evaluate(capsys, model_zip, tmp_path):
    start = ["evaluate", model_zip, "--algo", "trmrl"]
    assert "give --env" in error_of(capsys, *start)
    assert "model's observation_space is Box(6,), the environment's is Box(8,)" in error_of(
        capsys, *start, "--env", "MetaBandit-v0"
    )
    assert "n_tasks must be an integer of at least 1, got 0" in error_of(capsys, *start, "--env", ENV, "--n-tasks", 0)
    assert "n_episodes must be an integer of at least 1, got 0" in error_of(capsys, *start, "--env", ENV, "--n-episodes", 0)
    assert "Did you mean 'test'" in error_of(capsys, *start, "--env", ENV, "--split", "tset")
    assert "PointRobt" in error_of(capsys, *start, "--env", "PointRobt-v0")
    assert "horizn" in error_of(capsys, *start, "--env", ENV, "--env-kwargs", "horizn:3")
    assert "must end in one of" in error_of(capsys, *start, "--env", ENV, "-o", "r.bmp")
    (tmp_path / "model.safetensors").touch()
    part = error_of(capsys, "evaluate", tmp_path / "model.safetensors")
    assert f"is part of a saved model: give its folder, {tmp_path}" in part
    assert "which algorithm" in error_of(capsys, "evaluate", model_zip, "--env", ENV)
    assert "there is no model at" in error_of(capsys, "evaluate", tmp_path / "nowhere.zip")
    assert "holds no model" in error_of(capsys, "evaluate", tmp_path)
    (tmp_path / "broken.zip").write_bytes(b"PK\x03\x04 broken")
    assert "broken.zip" in error_of(capsys, "evaluate", tmp_path / "broken.zip", "--algo", "trmrl", "--env", ENV)
    np.savez(tmp_path / "arrays.npz", a=np.ones(3))
    assert "is no model of TrMRLPPO" in error_of(capsys, "evaluate", tmp_path / "arrays.npz", "--algo", "trmrl", "--env", ENV)
    assert "seed must be an integer of at least 0, got -1" in error_of(capsys, *start, "--env", ENV, "--seed", -1)


def test_mistakes_of_the_others(capsys, results, zoo_folder):
    path = results / "broken.npz"
    path.write_bytes((results / "b.npz").read_bytes()[:300])
    for command in (["compare", path], ["plot", "adaptation", path, "-o", results / "p.png"]):
        assert "broken.npz is no saved AdaptationResult, or it is broken" in error_of(capsys, *command)
    evaluate_adaptation(lambda o: np.zeros((len(o), 2)), ENV, 5, 2, seed=1).save(results / "other.npz")
    assert "other tasks: evaluate them with the same seed" in error_of(
        capsys, "compare", results / "b.npz", results / "other.npz"
    )
    assert "two agents are called 'b'" in error_of(capsys, "compare", results / "b.npz", results / "b.npz")
    assert "'A=' names no file" in error_of(capsys, "compare", "A=")
    (results / "folder.png").mkdir()
    for output, told in (("folder.png", "is a folder"), ("b.npz/p.png", "b.npz' is no folder that you may write to")):
        assert told in error_of(capsys, "plot", "adaptation", results / "b.npz", "-o", results / output)
    told = error_of(capsys, "plot", "attention", results / "b.npz", "-o", results / "p.png")
    assert "b.npz is no saved Inspection, or it is broken: it has no 'embeddings'. `sb3-trmrl inspect` writes one" in told
    assert "is no folder" in error_of(capsys, "plot", "learning", results / "b.npz", "-o", results / "p.png")
    assert "no monitor.csv" in error_of(capsys, "plot", "learning", results, "-o", results / "p.png")
    assert "parameter must be one of" in error_of(
        capsys, "plot", "tasks", results / "b.npz", "--parameter", "speed", "-o", results / "p.png"
    )
    assert "must end in one of .html" in error_of(capsys, "report", zoo_folder, "-o", results / "r.pdf")
    assert "Environment `Nothing` doesn't exist" in error_of(capsys, "references", "Nothing-v0")
    for name in ("n-episodes", "n-tasks", "timesteps"):
        message = f"{name.replace('-', '_')} must be an integer of at least 1, got 0"
        assert message in error_of(capsys, "references", ENV, f"--{name}", 0)


def test_wrong_usage_ends_with_2(capsys):
    for arguments in ([], ["evalute"], ["evaluate"], ["evaluate", "x", "--env-kwargs", "horizon=3"], ["plot", "curve", "x"]):
        with pytest.raises(SystemExit) as end:
            main(arguments)
        assert end.value.code == 2
    assert "expected name:value, got 'horizon=3'" in capsys.readouterr().err


def test_devices(capsys):
    parser = make_parser()
    for device in ("cpu", "auto"):
        assert parser.parse_args(["evaluate", "x", "--device", device]).device == device
    for device in ("gpu", "meta", "cuda:99"):  # SB3 would take the CPU for a GPU that is not there
        with pytest.raises(SystemExit):
            parser.parse_args(["evaluate", "x", "--device", device])
        error = capsys.readouterr().err
        assert re.search(rf"argument --device: '{device}' is none here \(.+\): cpu, cuda, cuda:1 or auto", error)


def test_help_of_every_command(capsys):
    for command in ([], ["evaluate"], ["compare"], ["plot"], ["inspect"], ["report"], ["references"], ["hub"]):
        with pytest.raises(SystemExit) as end:
            main([*command, "--help"])
        assert end.value.code == 0
        assert " ".join(["usage: sb3-trmrl", *command]) in capsys.readouterr().out


def test_as_a_module(model_zip):
    arguments = ["evaluate", model_zip, "--algo", "trmrl", "--env", ENV, *FEW, "--split", "nowhere"]
    ended = subprocess.run([sys.executable, "-m", "sb3_trmrl", *arguments], capture_output=True, text=True, check=False)
    assert ended.returncode == 1 and ended.stdout == ""
    assert ended.stderr.startswith("sb3-trmrl: error: split='nowhere'") and "Traceback" not in ended.stderr


def test_numbers_for_json():
    data = {"a": np.float64(np.nan), "b": np.array([1, 2]), "c": (np.int64(3), True, None), 4: np.bool_(True)}
    assert json.loads(json.dumps(to_json(data))) == {"a": None, "b": [1, 2], "c": [3, True, None], "4": True}

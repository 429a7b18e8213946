"""
RL Zoo's commands, as a user types them after ``pip install``: in a new virtual environment, with the wheel and with an
editable install. Nothing is downloaded: the dependencies are those of the environment that runs the tests.
"""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import imageio
import numpy as np
import pytest
import yaml

from sb3_trmrl import TrMRLPPO
from sb3_trmrl.common.env_util import make_meta_vec_env

ROOT = Path(__file__).resolve().parent.parent
CHEETAH = "HalfCheetahVel-v0"
BANDIT = "MetaBandit-v0"
INSTALLS = ("wheel", "editable")

pytestmark = pytest.mark.slow


class FreshVenv:
    """
    A virtual environment with the package and nothing else, beside the dependencies of the running environment.

    :param folder: Folder for it
    :param kind: ``"wheel"`` or ``"editable"``
    """

    def __init__(self, folder: Path, kind: str):
        self.venv, self.work = folder / "venv", folder / "work"
        self.work.mkdir(parents=True)
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(self.venv)], check=True)
        self.python_path = self.venv / "bin" / "python"
        (self.site,) = self.venv.glob("lib/python*/site-packages")
        # Names of folders only: the .pth files in these folders, such as those of an editable install, are not executed
        dependencies = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
        (self.site / "dependencies.pth").write_text("\n".join(dependencies), encoding="utf-8")
        self.before = self.files()
        # A copy, since a build leaves folders behind
        source = folder / "source"
        leftovers = shutil.ignore_patterns(".*", "__pycache__", "build", "dist", "*.egg-info", "logs", "runs", "venv")
        shutil.copytree(ROOT, source, ignore=leftovers)
        offline = ("--no-deps", "--no-build-isolation", "--no-index")
        if kind == "wheel":
            self.pip("wheel", *offline, "-w", str(folder), str(source))
            shutil.rmtree(source)
            (wheel,) = folder.glob("*.whl")
            self.pip("install", *offline, str(wheel))
        else:
            self.pip("install", *offline, "-e", str(source))

    def files(self) -> set[str]:
        """:return: The files beside the dependencies, with what Python compiled of them."""
        return {path.relative_to(self.site).as_posix() for path in self.site.rglob("*") if path.is_file()}

    def pip(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(self.python_path), *arguments]
        result = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert result.returncode == 0, result.stdout + result.stderr

    def try_python(self, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        """:return: What ``python ...`` came to, in the folder :attr:`work`."""
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PYTEST"))}
        threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "MPLBACKEND": "Agg", "COLUMNS": "100"}
        command = [str(self.python_path), *arguments]
        return subprocess.run(
            command, cwd=self.work, env={**clean, **threads, **env}, capture_output=True, text=True, timeout=300
        )

    def python(self, *arguments: str, **env: str) -> str:
        """:return: Everything that ``python ...`` printed."""
        result = self.try_python(*arguments, **env)
        printed = result.stdout + result.stderr
        assert result.returncode == 0, f"python {' '.join(arguments)}\n{printed}"
        return printed


@pytest.fixture(scope="session", params=INSTALLS)
def zoo(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FreshVenv]:
    yield FreshVenv(tmp_path_factory.mktemp(request.param), request.param)


def play(model_path: Path, n_envs: int, n_steps: int, remember: bool = True) -> list[float]:
    """:return: What ``rl_zoo3.enjoy`` should see: the return of the first trial in each environment."""
    model = TrMRLPPO.load(model_path, device="cpu")
    env = make_meta_vec_env(CHEETAH, n_envs=n_envs, seed=0, env_kwargs=dict(episodes_per_trial=2, horizon=200))
    observations, state, starts = env.reset(), None, np.ones(n_envs, dtype=bool)
    returns = np.zeros(n_envs)
    for _ in range(n_steps):
        actions, state = model.predict(observations, state if remember else None, starts, deterministic=True)  # type: ignore[arg-type]
        observations, rewards, starts, _ = env.step(actions)
        returns += rewards
    env.close()
    return returns.tolist()


def monitored_returns(folder: Path) -> list[float]:
    """:return: The return of the first episode of each environment, from SB3's monitor files."""
    rows = [path.read_text().splitlines()[2] for path in sorted(folder.glob("*.monitor.csv"))]
    return [float(row.split(",")[0]) for row in rows]


def test_train_enjoy_record_continue(zoo):
    command = ("-m", "rl_zoo3.train", "--algo", "trmrl", "--env", CHEETAH, "-n", "4000")
    printed = zoo.python(*command, "-P", "--seed", "0")
    assert "sb3_trmrl/hyperparams/trmrl.yml" in printed.replace("source/hyperparams", "sb3_trmrl/hyperparams")
    assert "eval_env_kwargs={'episodes_per_trial': 2, 'horizon': 200, 'split': 'test'}" in printed
    assert "8,000/4,000" in printed, "the progress bar"
    assert "return_episode_2" in printed and re.search(r"ep_len_mean +\| 400", printed)
    run = zoo.work / "logs" / "trmrl" / f"{CHEETAH}_1"
    model = run / f"{CHEETAH}.zip"
    assert len(list(run.glob("*.monitor.csv"))) == 20

    # A new agent hardly acts. With larger actions it shows whether memory is handed on, also over the episodes of a trial
    agent = TrMRLPPO.load(model, device="cpu")
    agent.policy.action_net.weight.data *= 100
    agent.save(model)
    expected, forgetful = play(model, 1, 400), play(model, 1, 400, remember=False)
    printed = zoo.python("-m", "rl_zoo3.enjoy", "--algo", "trmrl", "--env", CHEETAH, "-f", "logs", "--no-render", "-n", "401")
    (reward,) = re.findall(r"Episode Reward: (-\d+\.\d+)\nEpisode Length 400\n", printed)
    np.testing.assert_allclose(float(reward), expected[0], atol=0.011)
    assert abs(expected[0] - forgetful[0]) > 0.1
    # In 4 processes, whose trials end together: 401 steps, so that each is written down
    enjoy = ("-m", "rl_zoo3.enjoy", "--algo", "trmrl", "--env", CHEETAH, "-f", "logs", "--no-render", "--n-envs", "4")
    zoo.python(*enjoy, "-n", "401", "--reward-log", "rewards")
    np.testing.assert_allclose(monitored_returns(zoo.work / "rewards"), play(model, 4, 400), atol=1e-2)

    # --eval-freq evaluates, on the test split or another one; -i goes on with the agent
    printed = zoo.python(
        *command, "-i", str(model), "--eval-freq", "4000", "--eval-episodes", "2", "--eval-env-kwargs", "split:'ood'"
    )
    assert "Loading pretrained agent" in printed and "'split': 'ood'" in printed
    evaluations = np.load(zoo.work / "logs" / "trmrl" / f"{CHEETAH}_2" / "evaluations.npz")
    assert evaluations["timesteps"].tolist() == [4000, 8000] and (evaluations["ep_lengths"] == 400).all()
    continued = TrMRLPPO.load(zoo.work / "logs" / "trmrl" / f"{CHEETAH}_2" / f"{CHEETAH}.zip", device="cpu")
    assert continued.n_iterations == 1 and continued._n_updates > TrMRLPPO.load(model, device="cpu")._n_updates

    plots = ("-e", CHEETAH, "-f", "logs")
    zoo.python("-m", "rl_zoo3.plots.plot_train", "-a", "trmrl", *plots, "-w", "5")
    printed = zoo.python("-m", "rl_zoo3.plots.all_plots", "-a", "trmrl", *plots, "--no-display", "-o", "plots")
    last = evaluations["results"][-1].mean()
    assert re.search(rf"\|{CHEETAH}\|{last:.0f} \+/- 0", printed.replace(" |", "|").replace("| ", "|")), printed
    assert (zoo.work / "plots.pkl").is_file()

    record = ("-m", "rl_zoo3.record_video", "--algo", "trmrl", "--env", CHEETAH, "-f", "logs", "--exp-id", "1", "-n", "20")
    result = zoo.try_python(*record)
    if "OpenGL backend" in result.stderr and "does not work" in result.stderr:
        pytest.skip(f"no OpenGL here: {result.stderr}")
    assert result.returncode == 0, result.stderr
    (video,) = (run / "videos").glob("*.mp4")
    frames = np.stack(imageio.mimread(video))
    assert len(frames) == 21 and frames[0].std() > 10 and not np.array_equal(frames[0], frames[-1])


def test_options_of_train_and_optimize(zoo):
    train = ("-m", "rl_zoo3.train", "--algo", "rl2", "--env", BANDIT)
    callback = "callback:[{'sb3_trmrl.common.callbacks.MetaEvalCallback': dict(eval_freq=1600, n_tasks=3, n_episodes=4)}]"
    parameters = ("-params", "n_epochs:2", "policy_kwargs:dict(memory_encoder_kwargs=dict(hidden_size=16))", callback)
    options = ("--eval-freq", "1600", "--save-freq", "1600", "--tensorboard-log", "tensorboard", "--env-kwargs", "n_arms:3")
    printed = zoo.python(*train, "-n", "4000", *options, *parameters)
    run = zoo.work / "logs" / "rl2" / f"{BANDIT}_1"
    assert "return_episode_4" in printed and "meta_eval" in printed
    config = yaml.unsafe_load((run / BANDIT / "config.yml").read_text())
    assert config["n_epochs"] == 2 and config["env_kwargs"] == {"n_arms": 3}
    assert {f"rl_model_{steps}_steps.zip" for steps in (1600, 3200, 4800)} < {path.name for path in run.iterdir()}
    assert (run / "best_model.zip").is_file() and (run / "best_meta_model.zip").is_file()
    assert np.load(run / "evaluations.npz")["timesteps"].tolist() == [1600, 3200, 4800]
    assert np.load(run / "meta_evaluations.npz")["returns"].shape == (3, 3, 4)
    assert list((zoo.work / "tensorboard" / BANDIT / "RL2PPO_1").glob("events*"))

    study = ("--storage", "study/study.log", "--study-name", "rl2")
    printed = zoo.python(*train, "-n", "2000", "-optimize", "--n-trials", "2", "--no-optim-plots", *study)
    assert "Number of finished trials:  2" in printed and "'split': 'train'" in printed
    (report,) = (zoo.work / "logs" / "rl2").glob("report_*.csv")
    last = report.read_text().splitlines()[2].split(",")
    names = report.read_text().splitlines()[0].split(",")
    printed = zoo.python(*train, "-n", "1600", *study, "--trial-id", "1", "--eval-freq", "-1")
    config = yaml.unsafe_load((zoo.work / "logs" / "rl2" / f"{BANDIT}_3" / BANDIT / "config.yml").read_text())
    assert config["learning_rate"] == float(last[names.index("params_learning_rate")])
    assert config["policy_kwargs"]["memory_encoder"] == last[names.index("params_memory_encoder")]


def test_paper_settings_in_subprocesses_and_baselines(zoo):
    small = ("-params", "n_envs:2", "n_steps:40", "batch_size:40", "n_epochs:1")
    paper = (
        "--conf-file",
        "hyperparams/trmrl_paper.yml",
        "--vec-env",
        "subproc",
        "--env-kwargs",
        "episodes_per_trial:2",
        "horizon:10",
        "-f",
        "paper",
    )
    printed = zoo.python("-m", "rl_zoo3.train", "--algo", "trmrl", "--env", CHEETAH, "-n", "160", *paper, *small)
    assert "hyperparams/trmrl_paper.yml" in printed and "policy_decay" in printed
    assert re.search(r"total_timesteps +\| 160", printed) and re.search(r"ep_len_mean +\| 20 ", printed)
    for algo, n_steps in (("ppo", 2048), ("ppo_lstm", 128)):
        printed = zoo.python("-m", "rl_zoo3.train", "--algo", algo, "--env", CHEETAH, "-n", "100")
        assert re.search(rf"total_timesteps +\| {n_steps}", printed)
        assert (zoo.work / "logs" / algo / f"{CHEETAH}_1" / f"{CHEETAH}.zip").is_file()


def test_errors_are_the_zoos(zoo):
    for arguments, error in (
        (("--algo", "trmlr", "--env", BANDIT), "error: argument --algo: invalid choice: 'trmlr'"),
        (("--algo", "trmrl", "--env", "MetaBandit-v1"), f"MetaBandit-v1 not found in gym registry, you maybe meant {BANDIT}?"),
        (
            ("--algo", "trmrl", "--env", BANDIT, "-params", "learing_rate:0.1"),
            "TypeError: TrMRLPPO.__init__() got an unexpected keyword argument 'learing_rate'",
        ),
    ):
        result = zoo.try_python("-m", "rl_zoo3.train", "-n", "100", *arguments)
        assert result.returncode != 0 and error in result.stderr
        assert not re.search(r'File ".*(sb3_trmrl|source)/', result.stderr), result.stderr


def test_other_programs_do_not_notice(zoo, tmp_path):
    ours = "import sys; print([name for name in sys.modules if name.startswith(('sb3', 'rl_zoo', 'torch'))])"
    assert zoo.python("-c", ours) == "[]\n"
    # The word alone loads nothing but the hook, which waits
    assert zoo.python("-c", ours, "rl_zoo3") == "['sb3_trmrl_zoo_hook']\n"
    assert zoo.python("-c", ours, "rl_zoo3", SB3_TRMRL_NO_ZOO_HOOK="0") == "['sb3_trmrl_zoo_hook']\n"

    # Broken packages: only programs that need them fail, with their own error
    for name in ("torch", "sb3_trmrl"):
        (tmp_path / name / name).mkdir(parents=True)
        (tmp_path / name / name / "__init__.py").write_text(f"raise ImportError('{name} is broken')")
    for command in (("-c", "print('fine')"), ("-c", "print('fine')", "rl_zoo3"), ("-m", "json.tool", "--help")):
        result = zoo.try_python(*command, PYTHONPATH=str(tmp_path / "torch"))
        assert result.returncode == 0 and result.stderr == ""
    result = zoo.try_python("-m", "rl_zoo3.train", "--help", PYTHONPATH=str(tmp_path / "torch"))
    assert "ImportError: torch is broken" in result.stderr and "sb3_trmrl" not in result.stderr
    result = zoo.try_python("-m", "rl_zoo3.train", "--help", PYTHONPATH=str(tmp_path / "sb3_trmrl"))
    assert result.returncode == 0 and "ppo_lstm}" in result.stdout
    assert "could not register its algorithms with RL Zoo (ImportError: sb3_trmrl is broken)" in result.stderr


def test_off_switch_fallback_and_console_script(zoo):
    train = ("-m", "rl_zoo3.train", "--algo", "trmrl", "--env", BANDIT, "-n", "100")
    result = zoo.try_python(*train, SB3_TRMRL_NO_ZOO_HOOK="1")
    assert "invalid choice: 'trmrl'" in result.stderr
    # The fallback needs no hook; subprocesses find the environments
    small = ("-params", "n_envs:2", "n_steps:20", "batch_size:40", "n_epochs:1", "--vec-env", "subproc", "-f", "fallback")
    off = {"SB3_TRMRL_NO_ZOO_HOOK": "1"}
    zoo.python("-m", "sb3_trmrl.zoo", "train", "--algo", "trmrl", "--env", BANDIT, "-n", "40", *small, **off)
    enjoy = ("-m", "sb3_trmrl.zoo", "enjoy", "--algo", "trmrl", "--env", BANDIT, "-f", "fallback", "--no-render", "-n", "101")
    assert "Episode Length 100" in zoo.python(*enjoy, **off)
    result = zoo.try_python("-m", "sb3_trmrl.zoo", "trian")
    assert result.returncode == 1 and "usage: python -m sb3_trmrl.zoo {train,enjoy," in result.stderr
    assert "ppo_lstm,trmrl,rl2}" in zoo.python("-m", "rl_zoo3.cli", "train", "--help")


@pytest.mark.parametrize("kind", INSTALLS)
def test_uninstall_leaves_nothing_behind(tmp_path, kind):
    venv = FreshVenv(tmp_path, kind)
    assert "trmrl" in venv.python("-m", "rl_zoo3.train", "--help")
    assert {"sb3_trmrl_zoo_hook.pth", "sb3_trmrl_zoo_hook.py"} <= venv.files() - venv.before
    venv.pip("uninstall", "-y", "sb3_trmrl")
    assert venv.files() == venv.before
    assert "trmrl" not in venv.python("-m", "rl_zoo3.train", "--help")

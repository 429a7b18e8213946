"""The report is one well-formed file that loads nothing and whose pictures can be decoded."""

import base64
import io
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3 import PPO

from sb3_trmrl import RL2PPO, AdaptationResult, TrMRLPPO, evaluate_adaptation
from sb3_trmrl.cli import main
from sb3_trmrl.common.references import References
from sb3_trmrl.envs.trial import TrialWrapper
from sb3_trmrl.report import _adaptation, write_report
from sb3_trmrl.runs import Run
from tests.families import Counter

VOID = {"meta", "img", "br", "hr", "link", "input"}


class Page(HTMLParser):
    """Checks that tags are closed in order; collects what is looked at."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def pictures(self) -> dict[str, np.ndarray]:
        """:return: Decoded pictures by their alternative text."""
        from matplotlib.image import imread

        found = {}
        for tag, attributes in self.tags:
            if tag == "img":
                source = str(attributes["src"])
                assert source.startswith("data:image/png;base64,")
                found[str(attributes["alt"])] = imread(io.BytesIO(base64.b64decode(source.partition(",")[2])))
        return found


def make_run(kind: str, folder: Path | None = None) -> Run:
    if kind == "trmrl":
        small = dict(memory_encoder_kwargs=dict(embed_dim=8, n_heads=2, n_layers=1))
        model = TrMRLPPO("TrMRLPolicy", "PointRobot-v0", device="cpu", seed=0, policy_kwargs=small)
    elif kind == "rl2":
        model = RL2PPO("RL2Policy", "PointRobot-v0", device="cpu", seed=0)  # type: ignore[assignment]
    else:
        model = PPO("MlpPolicy", "PointRobot-v0", device="cpu", seed=0)  # type: ignore[assignment]
    return Run("a <b>run</b> & more", model, "PointRobot-v0", dict(episodes_per_trial=2, split="train"), folder)


def test_everything_in_one_file(tmp_path):
    start = '#{"t_start": 0.0, "env_id": "X"}\nr,l,t\n'
    (tmp_path / "0.monitor.csv").write_text(start + "".join(f"-{30 - i},40,{i}.0\n" for i in range(20)))
    run = make_run("trmrl", tmp_path)
    path = tmp_path / "folder" / "report.html"
    write_report(run, path, n_tasks=4, n_episodes=3, command="sb3-trmrl report 'x'")
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert text.startswith("<!DOCTYPE html>") and "<b>run</b>" not in text
    assert "a <b>run</b> & more" in page.text
    # Nothing is loaded and nothing runs
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object"} and "http" not in text
    pictures = page.pictures()
    assert list(pictures) == [
        "Adaptation curve on train tasks",
        "Adaptation curve on test tasks",
        "Adaptation curve on ood tasks",
        "Return against the task parameter",
        "Performance profile",
        "Learning curves",
        "Attention weights per layer and head",
        "Memory embeddings",
    ]
    assert all(min(image.shape[:2]) > 300 and image[..., :3].std() > 0.03 for image in pictures.values())
    # The numbers of the evaluation, to the digit
    result = evaluate_adaptation(run.model, "PointRobot-v0", n_tasks=4, n_episodes=3, split="ood")
    for value in result.curve:
        assert f"{value:.2f}" in page.text
    assert "score" in page.text and "oracle" in page.text  # references come with the package
    assert "sb3-trmrl report 'x'" in page.text


@pytest.mark.parametrize("kind, expected", [("rl2", {"Memory embeddings"}), ("ppo", set())])
def test_what_there_is_of_other_models(tmp_path, kind, expected):
    path = tmp_path / "report.html"
    write_report(make_run(kind), path, splits=["test"], n_tasks=2, n_episodes=1)
    pictures = set(Page(path.read_text()).pictures())
    assert pictures & {"Memory embeddings", "Attention weights per layer and head", "Learning curves"} == expected
    assert "Adaptation curve on test tasks" in pictures and "Adaptation curve on ood tasks" not in pictures


def test_no_split_is_none(tmp_path):
    with pytest.raises(ValueError, match=r"splits must name at least one, got \[\]"):
        write_report(make_run("ppo"), tmp_path / "report.html", splits=[])


BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="needs Chromium or Chrome")
def test_opens_in_a_real_browser(tmp_path):
    from matplotlib.image import imread

    path, screenshot = tmp_path / "report.html", tmp_path / "screenshot.png"
    write_report(make_run("trmrl"), path, ["test"], 3, 2)
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--window-size=1100,4000", f"--user-data-dir={tmp_path / 'user'}"]
    subprocess.run(
        [str(BROWSER), *flags, f"--screenshot={screenshot}", path.as_uri()], check=True, timeout=120, capture_output=True
    )
    image = imread(screenshot)[..., :3]
    # The agent's blue line and dots are in the adaptation curve, the tasks and the profile, from top to bottom
    blue = (np.abs(image - np.array([0x00, 0x72, 0xB2]) / 255) < 0.03).all(axis=-1)
    assert blue.sum() > 1_000 and np.ptp(np.nonzero(blue)[0]) > 1_000
    # Text on white around them
    assert (image > 0.99).mean() > 0.5


def test_without_references_and_logs(tmp_path):
    # An empty log folder, and a horizon that there are no references for
    write_report(make_run("ppo", tmp_path), tmp_path / "report.html", ["test"], 2, 2, env_kwargs=dict(horizon=3))
    page = Page((tmp_path / "report.html").read_text())
    assert "No references for this family" in page.text and "Learning curves" not in page.pictures()


def test_no_score_where_the_oracle_is_no_better_than_the_blind_agent():
    returns = np.ones((3, 2))
    result = AdaptationResult([{}] * 3, returns, np.ones((3, 2), dtype=np.int64), None, settings={})
    references = References({name: returns for name in ("oracle", "blind", "reactive")}, True, {"oracle": "x", "blind": "y"})
    page = Page(" ".join(_adaptation("test", result, references)))
    assert "nan" not in page.text and "inf" not in page.text and page.text.count("-") >= 4


class Named(Counter):
    """Tasks are words alone: there are no numbers to draw against."""

    task_shapes: Any = {}

    def _sample_task(self, split: str) -> dict[str, Any]:
        return {"name": "left"}

    def check_task(self, task: Any) -> dict[str, Any]:
        return dict(task)

    def _step(self, action: Any) -> Any:
        return self.observation_space.sample(), 0.0, False, False, {}


def test_tasks_that_are_words(tmp_path, capsys):
    gym.register("Named-v0", entry_point=lambda **kwargs: TrialWrapper(Named(horizon=3), **kwargs))
    try:
        small = dict(memory_encoder_kwargs=dict(embed_dim=8, n_heads=2, n_layers=1))
        model = TrMRLPPO("TrMRLPolicy", "Named-v0", device="cpu", seed=0, policy_kwargs=small)
        write_report(Run("words", model, "Named-v0"), tmp_path / "report.html", ["test"], 1, 2)
        assert "Attention" in (tmp_path / "report.html").read_text()
        model.save(tmp_path / "model.zip")
        few = ["--algo", "trmrl", "--env", "Named-v0", "--n-tasks", "1"]
        assert main(["inspect", str(tmp_path / "model.zip"), *few, "-o", str(tmp_path / "i")]) == 0
        assert "inspection.npz, attention.png\n" in capsys.readouterr().out
    finally:
        del gym.registry["Named-v0"]


def test_mistakes(tmp_path):
    with pytest.raises(ValueError, match=r"must end in \.html, got .*report\.pdf"):
        write_report(make_run("ppo"), tmp_path / "report.pdf")
    unknown = Run("name", make_run("ppo").model, None)
    with pytest.raises(ValueError, match="does not tell its environment"):
        write_report(unknown, tmp_path / "report.html")

"""The scripts of ``benchmarks/`` that keep results: on few steps, and with files of one's own."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
DOCS = sorted(path for path in (ROOT / "docs").rglob("*") if path.suffix in (".md", ".png") and "_build" not in path.parts)
PAGE = """# Mine

<!-- PointRobot-v0: agents -->
old
<!-- end -->

<!-- PointRobot-v0: speed -->
<!-- end -->
"""


def script(name: str, folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, str(ROOT / "benchmarks" / name), *arguments]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=300)


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.slow
def test_a_campaign_and_its_report(tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in DOCS}
    ours = [
        "--families",
        "PointRobot-v0",
        "--seeds",
        "0",
        "--timesteps",
        "1",
        "--results",
        "new/mine.jsonl",
        "--folder",
        "runs",
    ]
    # A run that fails costs no other one
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "PointRobot-v0_rl2_seed0_1_steps").write_text("no folder")
    done = script("campaign.py", tmp_path, *ours, "--agents", "rl2", "trmrl")
    assert done.returncode == 1 and "1 of 2 runs failed" in done.stderr and "PointRobot-v0 rl2 seed 0 failed:" in done.stderr
    assert "[2/2] PointRobot-v0 trmrl seed 0: return per episode" in done.stdout
    # What is there is not run again
    done = script("campaign.py", tmp_path, *ours, "--agents", "trmrl", "trmrl-1-layer")
    assert done.returncode == 0 and done.stdout.startswith("1 runs of 1 steps to do"), done.stderr
    runs = lines_of(tmp_path / "new" / "mine.jsonl")
    assert [run["agent"] for run in runs] == ["trmrl", "trmrl-1-layer"]
    assert len(runs[0]["returns"]["test"]) == 20 and runs[0]["curve"][-1][0] == runs[0]["timesteps"]

    done = script("campaign_report.py", tmp_path, "--results", "new/mine.jsonl")
    assert done.returncode == 0, done.stderr
    assert "| **TrMRL (`trmrl.yml`)** | 1 |" in done.stdout and "| TrMRL with 1 layer | 1 |" in done.stdout
    (tmp_path / "new" / "page.md").write_text(PAGE)
    done = script("campaign_report.py", tmp_path, "--results", "new/mine.jsonl", "--page", "new/page.md")
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "new" / "page.md").read_text()
    assert "**TrMRL" in page and "old" not in page and "![PointRobot-v0](images/results_pointrobot.png)" in page
    assert (tmp_path / "new" / "images" / "results_pointrobot.png").stat().st_size > 10_000
    # Single factors alone have a table, too
    (tmp_path / "one.jsonl").write_text(json.dumps(runs[1]) + "\n")
    done = script("campaign_report.py", tmp_path, "--results", "one.jsonl")
    assert done.returncode == 0 and "| TrMRL with 1 layer | 1 |" in done.stdout, done.stderr
    assert before == {path: path.read_bytes() for path in DOCS}


@pytest.mark.parametrize(
    ("option", "value", "told"),
    [
        ("--families", "PointRobto-v0", "PointRobto-v0 has no block in hyperparams/trmrl.yml"),
        ("--jobs", "0", "must be at least 1, got 0"),
        ("--device", "cuda:99", "'cuda:99' is none here"),
    ],
)
def test_what_is_wrong_shows_before_the_campaign(option: str, value: str, told: str, tmp_path: Path) -> None:
    # Were it not told, little would be trained
    little = ["--timesteps", "1", "--seeds", "0", "--results", "mine.jsonl", "--folder", "runs"]
    done = script("campaign.py", tmp_path, *little, "--agents", "trmrl", "--families", "PointRobot-v0", option, value)
    assert done.returncode == 2 and f"argument {option}: {told}" in done.stderr and not done.stdout


@pytest.mark.slow
def test_memories_are_compared_over_trainings_of_one_length(tmp_path: Path) -> None:
    ours = ["--families", "SparsePointRobot-v0", "--agents", "reactive", "--output", "new/mine.jsonl"]
    done = script("memory_learning.py", tmp_path, *ours, "--seeds", "0", "--timesteps", "3200", "--jobs", "1")
    assert done.returncode == 0, done.stderr
    (run,) = lines_of(tmp_path / "new" / "mine.jsonl")
    longer = [*run["curve"], [10 * run["curve"][-1][0], run["curve"][-1][1]]]
    runs = [run, {**run, "seed": 1}, {**run, "seed": 2, "curve": longer}]
    (tmp_path / "new" / "mine.jsonl").write_text("".join(json.dumps(line) + "\n" for line in runs))
    done = script("memory_learning.py", tmp_path, *ours, "--report", "pictures")
    assert done.returncode == 0, done.stderr
    (row,) = [row for row in done.stdout.splitlines() if row.startswith("| reactive")]
    assert row.split(" | ")[1] == "2", "those of equal length"
    assert (tmp_path / "pictures" / "memory_learning_sparsepointrobot.png").stat().st_size > 10_000

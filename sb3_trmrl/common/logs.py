"""Learning curves from what SB3 and RL Zoo leave in a log folder."""

import csv
import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from sb3_trmrl.common.npz import read_arrays


@dataclass(frozen=True)
class LearningCurve:
    """
    Returns in the course of training.

    :param timesteps: Steps of training, all environments together, ascending, (n_points,)
    :param returns: What was returned then, (n_points, n_returns)
    :param unit: What a return is of: ``"return of a trial"`` or ``"return per episode"``; or ``"success rate"``
    """

    timesteps: np.ndarray
    returns: np.ndarray
    unit: str


class NoLogsError(ValueError):
    """A folder has no logs."""


TRIAL, EPISODE, SUCCESS = "return of a trial", "return per episode", "success rate"


def read_learning_curves(
    folder: str | Path, episodes_per_trial: int | None = None, evaluation_episodes_per_trial: int | None = None
) -> dict[str, LearningCurve]:
    """
    Read all that there is of

    - ``*monitor.csv`` (``Monitor``): returns of the trials of training, all environments together,
    - ``progress.csv`` (SB3's CSV logger): ``rollout/ep_rew_mean``,
    - ``evaluations.npz`` (``EvalCallback``): returns of the trials of evaluation,
    - ``meta_evaluations.npz`` (``MetaEvalCallback``): return per episode on held-out tasks, and the success rate there.

    :param folder: A log folder
    :param episodes_per_trial: If given, returns of trials are divided by it, so that all curves are per episode
    :param evaluation_episodes_per_trial: Episodes of the trials of ``evaluations.npz``; ``episodes_per_trial`` if None
    :return: Curves by what they are: ``"training"``, ``"training (mean of 100 trials)"``, ``"evaluation"``,
        ``"held-out tasks"``, ``"success on held-out tasks"`` (over all tasks and episodes)
    :raises NoLogsError: if there is none of these files
    :raises ValueError: if one is broken. A last line of text that has no end was cut off, and is left out
    """
    folder = Path(folder)
    curves: dict[str, LearningCurve] = {}
    monitors = sorted(folder.glob("*monitor.csv"))
    if monitors and (curve := _read_monitors(monitors)) is not None:
        curves["training"] = curve
    if (folder / "progress.csv").exists() and (curve := _read_progress(folder / "progress.csv")) is not None:
        curves["training (mean of 100 trials)"] = curve
    if (folder / "evaluations.npz").exists():
        curves["evaluation"] = _read_evaluations(folder / "evaluations.npz", "results", TRIAL)
    if (folder / "meta_evaluations.npz").exists():
        curves["held-out tasks"] = _read_evaluations(folder / "meta_evaluations.npz", "returns", EPISODE)
        if "success" in read_arrays(folder / "meta_evaluations.npz"):
            success = _read_evaluations(folder / "meta_evaluations.npz", "success", SUCCESS)
            curves["success on held-out tasks"] = replace(success, returns=success.returns.mean(axis=1, keepdims=True))
    if not curves:
        raise NoLogsError(
            f"{folder} has no monitor.csv, progress.csv, evaluations.npz or meta_evaluations.npz with any returns: give the "
            "folder of one run, for example logs/trmrl/HalfCheetahVel-v0_1."
        )
    for name, curve in curves.items():
        n_episodes = (name == "evaluation" and evaluation_episodes_per_trial) or episodes_per_trial
        if curve.unit == TRIAL and n_episodes is not None:
            curves[name] = LearningCurve(curve.timesteps, curve.returns / n_episodes, EPISODE)
    return curves


def _whole_lines(path: Path) -> list[str]:
    # A kill, or a full disk, cuts the last one
    with path.open(encoding="utf-8", newline="") as file:
        return [line for line in file if line.endswith("\n")]


def _read_monitors(paths: list[Path]) -> LearningCurve | None:
    # SB3's own reader (load_results) needs pandas and sorts by wall time: (time, length, return) of each trial
    rows: list[tuple[float, int, float]] = []
    for path in paths:
        try:
            head, *lines = _whole_lines(path) or [""]
            if not lines:
                continue
            start, before = float(json.loads(head.removeprefix("#"))["t_start"]), 0.0
            for row in csv.DictReader(lines):
                seconds = float(row["t"])
                if seconds < before:  # continued (override_existing=False), without a start of its own
                    start += before
                before = seconds
                rows.append((start + seconds, int(row["l"]), float(row["r"])))
        except (ValueError, KeyError, TypeError, OverflowError, csv.Error) as error:
            raise ValueError(f"{path} is no monitor file, or it is broken: {error!r}") from error
    if not rows:
        return None
    rows.sort()
    return LearningCurve(np.cumsum([row[1] for row in rows]), np.array([[row[2]] for row in rows]), TRIAL)


def _read_progress(path: Path) -> LearningCurve | None:
    try:
        rows = [
            (int(float(row["time/total_timesteps"])), float(row["rollout/ep_rew_mean"]))
            for row in csv.DictReader(_whole_lines(path))
            if row.get("rollout/ep_rew_mean") and row.get("time/total_timesteps")
        ]
    except (ValueError, OverflowError, csv.Error) as error:
        raise ValueError(f"{path} is no log of SB3, or it is broken: {error!r}") from error
    if not rows:
        return None
    return LearningCurve(np.array([row[0] for row in rows]), np.array([[row[1]] for row in rows]), TRIAL)


def _read_evaluations(path: Path, key: str, unit: str) -> LearningCurve:
    try:
        file = read_arrays(path)
        timesteps, returns = file["timesteps"], np.asarray(file[key], dtype=np.float64)
        if timesteps.ndim != 1 or timesteps.dtype.kind not in "iuf" or len(returns) != len(timesteps) or returns.size == 0:
            raise ValueError(
                f"timesteps and {key} must be numbers, (n_evaluations,) and (n_evaluations, ...), got {timesteps.dtype} "
                f"{timesteps.shape} and {returns.shape}"
            )
        # (n_evaluations, ...) -> (n_evaluations, n_returns)
        return LearningCurve(timesteps, returns.reshape(len(timesteps), -1), unit)
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise ValueError(f"{path} is broken, or no file of evaluations: {error}") from error

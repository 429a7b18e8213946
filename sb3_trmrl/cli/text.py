"""What the commands print: tables, intervals, and the same as data for ``--json``."""

import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np

from sb3_trmrl.common.argument_types import key_value
from sb3_trmrl.common.evaluation import AdaptationResult
from sb3_trmrl.common.references import References
from sb3_trmrl.common.statistics import adaptation_score, interquartile_mean
from sb3_trmrl.envs.registration import relevant_kwargs


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """
    :param header: Names of the columns.
    :param rows: Cells.
    :return: Lines joined by newlines; the first column stands left, the others right.
    """
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    lines = []
    for row in (header, *rows):
        first, *others = (
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        lines.append("  ".join([first, *others]).rstrip())
    return "\n".join(lines)


def number(value: float, digits: int = 2) -> str:
    """
    :param value: A return or a score.
    :param digits: Digits behind the point.
    :return: It as text, ``-`` if it is no number.
    """
    return "-" if np.isnan(value) else f"{value:.{digits}f}"


def with_interval(value: float, lower: float, upper: float, digits: int = 2) -> str:
    """
    :param value: A number.
    :param lower: Lower bound.
    :param upper: Upper bound.
    :param digits: Digits behind the point.
    :return: ``1.00 [0.50, 1.50]``, or ``-``
    """
    if np.isnan(value):
        return "-"
    return f"{number(value, digits)} [{number(lower, digits)}, {number(upper, digits)}]"


def digits_of(returns: np.ndarray) -> int:
    """
    :param returns: All returns of a table.
    :return: How many digits behind the point are worth reading.
    """
    return 1 if np.abs(returns).max() >= 50.0 else 2


def to_json(value: Any) -> Any:
    """
    :param value: Numbers, arrays, lists, dicts.
    :return: The same for ``json.dumps``; what is not finite is None: no number, or a bound of an open interval.
    """
    if isinstance(value, dict):
        return {str(key): to_json(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(part) for part in value]
    if isinstance(value, np.ndarray):
        return to_json(value.tolist())
    if isinstance(value, (float, np.floating)):
        return float(value) if np.isfinite(value) else None
    return value.item() if isinstance(value, np.generic) else value


def no_references(result: AdaptationResult, gym_packages: Sequence[str] = ()) -> str:
    """
    :param result: A result for which :func:`~sb3_trmrl.common.references.load_references` has found nothing.
    :param gym_packages: Modules that were imported for it.
    :return: A line that tells so, with the command that makes them if its environment is registered and its keywords can be
        written on a command line.
    """
    known = "No references for this family, split and keywords"
    env_id, env_kwargs = result.settings.get("env_id"), result.settings.get("env_kwargs")
    if not isinstance(env_id, str) or env_id not in gym.registry:
        return f"{known}."
    command = ["sb3-trmrl", "references", env_id]
    if kwargs := relevant_kwargs(env_id, env_kwargs if isinstance(env_kwargs, dict) else None):
        try:
            texts = [f"{name}:{json.dumps(value, ensure_ascii=False)}" for name, value in kwargs.items()]
            if json.dumps(dict(map(key_value, texts))) != json.dumps(kwargs):
                return f"{known}."
        except (TypeError, ValueError):
            return f"{known}."
        command += ["--env-kwargs", *texts]
    if gym_packages:
        command += ["--gym-packages", *gym_packages]
    return f"{known}: `{shlex.join(command)}` makes them."


def describe_references(references: References | None) -> list[str]:
    """
    :param references: References.
    :return: Lines that tell how they were made; none without references.
    """
    if references is None:
        return []
    lines = [f"{name}: {how}" for name, how in references.how.items()]
    if not references.paired:
        lines.append("The references played other tasks of the same split than this evaluation (other seed or more tasks).")
    return lines


def evaluation_text(result: AdaptationResult, references: References | None) -> str:
    """
    :param result: What is shown.
    :param references: References for it.
    :return: A table by episode and what the references are.
    """
    lower, upper = result.interval()
    digits = digits_of(result.curve)
    header = ["episode", "return [95 % interval]"]
    columns = [
        [str(index + 1) for index in range(result.n_episodes)],
        [with_interval(*cells, digits) for cells in zip(result.curve, lower, upper, strict=True)],
    ]
    if result.success is not None:
        header.append("success")
        columns.append([f"{rate:.0%}" for rate in result.success.mean(axis=0)])
    for name, returns in ({} if references is None else references.returns).items():
        header.append(name)
        columns.append([number(value, digits) for value in returns.mean(axis=0)])
    scores = {} if references is None else references.scores(result.returns[None])
    if scores:
        header.append("score [95 % interval]")
        columns.append([with_interval(*cells) for cells in zip(scores["score"], *scores["score_interval"], strict=True)])
    if "reactive_score" in scores:
        header.append("reactive's score")
        columns.append([number(value) for value in scores["reactive_score"]])
    parts = [table(header, list(zip(*columns, strict=True))), *describe_references(references)]
    environments = result.by_environment()
    if len(environments) > 1:
        parts += ["", environments_text(environments, digits)]
    return "\n".join(parts)


def environments_text(environments: Mapping[str, AdaptationResult], digits: int) -> str:
    """
    :param environments: Results by environment, of families that have several.
    :param digits: Decimals of returns.
    :return: A table of the first and the last episode.
    """
    header = ["environment", "tasks", "first return", "last return"]
    rows = [
        [name, str(part.n_tasks), number(part.curve[0], digits), number(part.curve[-1], digits)]
        for name, part in environments.items()
    ]
    if all(part.success is not None for part in environments.values()):
        header += ["first success", "last success"]
        for row, part in zip(rows, environments.values(), strict=True):
            assert part.success is not None
            row += [f"{rate:.0%}" for rate in part.success.mean(axis=0)[[0, -1]]]
    return table(header, rows)


def evaluation_data(result: AdaptationResult, references: References | None) -> dict[str, Any]:
    """
    :param result: What is shown.
    :param references: References for it.
    :return: The same as data.
    """
    data: dict[str, Any] = {
        **result.settings,
        "n_tasks": result.n_tasks,
        "n_episodes": result.n_episodes,
        "curve": result.curve,
        "interval": result.interval(),
        "returns": result.returns,
        "lengths": result.lengths,
        "success": result.success,
        "tasks": result.tasks,
        "wall_time": result.wall_time,
        **({} if references is None else references.scores(result.returns[None])),
    }
    environments = result.by_environment()
    if environments:
        data["environments"] = {
            name: {
                "n_tasks": part.n_tasks,
                "curve": part.curve,
                "success": None if part.success is None else part.success.mean(axis=0),
            }
            for name, part in environments.items()
        }
    if references is not None:
        data["references"] = {
            name: {"curve": returns.mean(axis=0), "how": references.how[name]} for name, returns in references.returns.items()
        }
        data["references_paired"] = references.paired
    return data


def comparison_text(data: dict[str, Any], first: AdaptationResult, references: References | None) -> str:
    """
    :param data: Numbers by agent.
    :param first: One of the results.
    :param references: References for them.
    :return: A table by agent and what it shows.
    """
    has_scores = any("score" in entry for entry in data.values())
    header = ["agent", "runs", "episode 1", f"episode {first.n_episodes}", "IQM of the last [95 %]", "gain"]
    header += ["score of the last [95 %]"] if has_scores else []
    header += ["P(better than first) [95 %]"] if len(data) > 1 else []
    digits = digits_of(first.curve)
    rows = []
    for name, entry in data.items():
        row = [name, str(entry["n_runs"])]
        row += [with_interval(entry["curve"][i], entry["interval"][0][i], entry["interval"][1][i], digits) for i in (0, -1)]
        lower, upper = entry["iqm_interval"]
        row.append(with_interval(float(entry["iqm_last_episode"]), float(lower), float(upper), digits))
        row.append(number(entry["gain"], digits))
        if has_scores:
            row.append(with_interval(entry["score"][-1], *(bound[-1] for bound in entry["score_interval"])))
        if "probability_interval" in entry:
            row.append(with_interval(float(entry["probability_better_than_first"]), *entry["probability_interval"]))
        elif len(data) > 1:
            row.append("")
        rows.append(row)
    if references is not None:
        for name, returns in references.returns.items():
            curve = returns.mean(axis=0)
            middle = float(interquartile_mean(returns[:, -1:]))
            row = [f"({name})", "", *(number(value, digits) for value in (curve[0], curve[-1], middle, curve[-1] - curve[0]))]
            if has_scores:
                score = adaptation_score(returns, references.returns["blind"], references.returns["oracle"])
                row.append(number(score[-1]))
            rows.append(row + [""] * (len(header) - len(row)))
    settings = first.settings
    lines = [f"{settings.get('env_id')}: {first.n_tasks} {settings.get('split')} tasks, {first.n_episodes} episodes", ""]
    return "\n".join([*lines, table(header, rows), *describe_references(references)])

"""Return against the task's parameter, inside and outside of the range that was trained on."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import gymnasium as gym
import numpy as np

from sb3_trmrl.common.evaluation import AdaptationResult, make_trials
from sb3_trmrl.common.references import References
from sb3_trmrl.envs.meta_env import Task
from sb3_trmrl.plots.style import agent_style, finish, legend_label, new_figure, reference_style, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def has_parameters(task: Task) -> bool:
    """
    :param task: A task.
    :return: Whether there are numbers in it, and not words alone.
    """
    return any(not isinstance(value, str) for value in task.values())


def task_parameter(result: AdaptationResult, parameter: str | None = None) -> tuple[str, np.ndarray]:
    """
    The number that tasks are sorted by.

    :param result: Whose tasks.
    :param parameter: Name of a task parameter, of an entry of it (``"goal[1]"``), or of the angle of a point in the plane
        (``"goal angle"``); by default the only number, else the direction of a point in the plane, else the first entry.
    :return: Name with indices, and the value of each task, ``(n_tasks,)``.
    :raises ValueError: If the tasks have no such parameter.
    """
    first = result.tasks[0]
    entries: dict[str, np.ndarray] = {}
    for name in first:
        if isinstance(first[name], str):
            continue
        try:
            values = np.array([np.ravel(task[name]) for task in result.tasks], dtype=np.float64)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"the tasks do not all have numbers of one shape for {name!r}: {error!r}.") from error
        for index in range(values.shape[1]):
            entries[name if values.shape[1] == 1 else f"{name}[{index}]"] = values[:, index]
        if values.shape[1] == 2:
            entries[f"{name} angle"] = np.arctan2(values[:, 1], values[:, 0])
    if not entries:
        raise ValueError("the tasks have no parameters to draw returns against.")
    if parameter is None:
        angles = [name for name in entries if name.endswith(" angle")]
        parameter = angles[0] if angles else next(iter(entries))
    if parameter not in entries:
        raise ValueError(f"parameter must be one of {list(entries)[:12]}, got {parameter!r}.")
    return parameter, entries[parameter]


def training_range(result: AdaptationResult, parameter: str | None = None) -> tuple[float, float] | None:
    """
    Between which values training tasks lie.

    :param result: Of ``evaluate_adaptation`` with a registered id.
    :param parameter: See :func:`task_parameter`.
    :return: Smallest and largest value of 1,000 training tasks; None if the result does not tell its environment, or one that
        is not registered.
    """
    env_id = result.settings.get("env_id")
    # A file may name anything, and gym.make imports what stands before a colon
    if not isinstance(env_id, str) or env_id not in gym.registry:
        return None
    family = make_trials(env_id, result.settings.get("env_kwargs", {}))
    family.reset(seed=0)
    tasks = family.sample_tasks(1_000, split="train")
    family.close()
    _, values = task_parameter(dataclasses.replace(result, tasks=tasks), parameter)
    return float(values.min()), float(values.max())


def reference_lines(
    results: Sequence[tuple[AdaptationResult, References | None]], parameter: str | None = None
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """
    :param results: Results and the references for each.
    :param parameter: See :func:`task_parameter`.
    :return: Of oracle and blind, as far as they have played the same tasks: parameters and returns of the last episode,
        ``(n_tasks,)`` each, for :func:`draw_task_returns`.
    """
    lines = {}
    for agent in ("oracle", "blind"):
        points = [
            (task_parameter(result, parameter)[1], references.returns[agent][:, -1])
            for result, references in results
            if references is not None and references.paired and agent in references.returns
        ]
        if points:
            values, returns = (np.concatenate(part) for part in zip(*points, strict=True))
            lines[agent] = values, returns
    return lines


def draw_task_returns(
    axes: "Axes",
    results: Mapping[str, AdaptationResult],
    references: Mapping[str, tuple[np.ndarray, np.ndarray]] | None = None,
    parameter: str | None = None,
    shaded: tuple[float, float] | None = None,
    title: str = "",
) -> None:
    """
    Draw the return of the last episode against the task's parameter into axes.

    :param axes: Matplotlib's axes
    :param results: Results by name in the legend, for example one per split
    :param references: By name, parameters and returns of tasks, (n_tasks,) each, drawn as a grey line
    :param parameter: Which parameter, see :func:`task_parameter`
    :param shaded: Where training tasks lie, see :func:`training_range`
    :param title: Title of the picture
    :raises ValueError: for results of several environments
    """
    ids = [result.settings.get("env_id") for result in results.values()]  # None: played in an environment without id
    environments = sorted({str(env_id).rpartition(":")[2] for env_id in ids if env_id is not None})
    if len(environments) > 1:
        raise ValueError(f"results must be of one environment, whose tasks are on the horizontal axis, got {environments}.")
    if shaded is not None:
        axes.axvspan(*shaded, color="0.93", zorder=0, label="training range")
    for index, (name, (values, returns)) in enumerate((references or {}).items()):
        order = np.argsort(values)
        color, linestyle, _ = reference_style(name, index)
        axes.plot(
            values[order], returns[order], color=color, linestyle=linestyle, linewidth=1.2, label=legend_label(name), zorder=1
        )
    xlabel = ""
    for index, (name, result) in enumerate(results.items()):
        xlabel, values = task_parameter(result, parameter)
        color, _, marker = agent_style(index)
        axes.scatter(
            values,
            result.returns[:, -1],
            color=color,
            marker=marker,
            s=34,
            edgecolor="white",
            linewidth=0.6,
            label=legend_label(name),
        )
    finish(axes, f"task: {xlabel}", "return of the last episode", title)


def plot_task_returns(
    results: Mapping[str, AdaptationResult],
    path: str | Path,
    references: Mapping[str, tuple[np.ndarray, np.ndarray]] | None = None,
    parameter: str | None = None,
    shaded: tuple[float, float] | None = None,
    title: str = "",
) -> None:
    """
    Draw the return of the last episode against the task's parameter, with the training range shaded.

    :param results: Results by name in the legend, for example one per split
    :param path: Where to write the picture (the ending chooses the format: png, svg, pdf)
    :param references: By name, parameters and returns of tasks, (n_tasks,) each, drawn as a grey line
    :param parameter: Which parameter, see :func:`task_parameter`
    :param shaded: Where training tasks lie, see :func:`training_range`
    :param title: Title of the picture
    :raises ValueError: for another ending or a parameter that the tasks do not have
    """
    figure = new_figure()
    draw_task_returns(figure.subplots(), results, references, parameter, shaded, title)
    save_figure(figure, path)

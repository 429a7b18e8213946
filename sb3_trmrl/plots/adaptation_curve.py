"""Return against episode index within the trial."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sb3_trmrl.common.evaluation import AdaptationResult, stack_runs
from sb3_trmrl.common.statistics import curve_interval
from sb3_trmrl.plots.style import agent_style, finish, legend_label, new_figure, reference_style, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_adaptation_curve(
    axes: "Axes",
    results: Mapping[str, AdaptationResult | Sequence[AdaptationResult]],
    references: Mapping[str, float | np.ndarray] | None = None,
    title: str = "",
) -> None:
    """
    Draw adaptation curves with their bootstrap intervals over tasks into axes.

    :param axes: Matplotlib's axes
    :param results: Result of each agent, or results of several runs of it on the same tasks, by its name in the legend
    :param references: Return of agents that don't adapt: a number, or one for each episode
    :param title: Title of the picture
    """
    from matplotlib.ticker import MaxNLocator

    curves = {name: stack_runs(runs) for name, runs in results.items()}
    n_episodes = max(returns.shape[2] for returns in curves.values())
    episodes = np.arange(1, n_episodes + 1)
    for index, (name, value) in enumerate((references or {}).items()):
        level = np.broadcast_to(value, n_episodes)
        color, linestyle, _ = reference_style(name, index)
        label = f"{legend_label(name)} ({np.mean(level):.4g})"
        if n_episodes == 1 or np.ndim(value) == 0:
            axes.axhline(float(level[0]), color=color, linestyle=linestyle, linewidth=1.3, label=label)
        else:
            axes.plot(episodes, level, color=color, linestyle=linestyle, linewidth=1.3, label=label)
    for index, (name, returns) in enumerate(curves.items()):
        color, linestyle, marker = agent_style(index)
        own = episodes[: returns.shape[2]]
        lower, upper = curve_interval(returns)
        mean = returns.mean(axis=(0, 1))
        if n_episodes == 1:  # points beside each other; an area would have no width
            own = own + 0.08 * (index - (len(curves) - 1) / 2)
            axes.errorbar(own, mean, (mean - lower, upper - mean), color=color, linewidth=2, capsize=4)
        else:
            axes.fill_between(own, lower, upper, color=color, alpha=0.18, linewidth=0)
        axes.plot(own, mean, color=color, linestyle=linestyle, marker=marker, linewidth=2, label=legend_label(name))
    if n_episodes == 1:
        axes.set_xlim(0.5, 1.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    finish(axes, "episode of the trial", "return", title)


def plot_adaptation_curve(
    results: Mapping[str, AdaptationResult | Sequence[AdaptationResult]],
    path: str | Path,
    references: Mapping[str, float | np.ndarray] | None = None,
    title: str = "",
) -> None:
    """
    Draw adaptation curves with their bootstrap intervals over tasks, and references as grey lines.

    :param results: Result of each agent, or results of several runs of it on the same tasks, by its name in the legend
    :param path: Where to write the picture (the ending chooses the format: png, svg, pdf)
    :param references: Return of agents that don't adapt: a number per episode, for example ``{"blind": 5.0, "oracle": 8.3}``,
        or an array of shape (n_episodes,)
    :param title: Title of the picture
    :raises ValueError: for another ending
    """
    figure = new_figure()
    draw_adaptation_curve(figure.subplots(), results, references, title)
    save_figure(figure, path)

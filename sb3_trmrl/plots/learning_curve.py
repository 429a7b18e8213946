"""Return against steps of training, from the logs of SB3 and RL Zoo."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sb3_trmrl.common.logs import SUCCESS, LearningCurve
from sb3_trmrl.plots.style import agent_style, finish, legend_label, new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_POINTS = 60
"""Points of a curve; more are averaged."""


def draw_learning_curve(axes: "Axes", curves: Mapping[str, LearningCurve], title: str = "") -> None:
    """
    Draw learning curves of one unit into axes: mean, and 10th to 90th percentile where there are several returns at one time.

    :param axes: Matplotlib's axes
    :param curves: By name in the legend
    :param title: Title of the picture
    """
    from matplotlib.ticker import EngFormatter

    for index, (name, curve) in enumerate(curves.items()):
        color, linestyle, marker = agent_style(index)
        steps, mean, low, high = _binned(curve)
        axes.fill_between(steps, low, high, color=color, alpha=0.15, linewidth=0)
        axes.plot(
            steps,
            mean,
            color=color,
            linestyle=linestyle,
            marker=marker,
            markevery=max(1, len(steps) // 10),
            linewidth=1.8,
            markersize=4,
            label=legend_label(name),
        )
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    unit = next(iter(curves.values())).unit
    if unit == SUCCESS:
        axes.set_ylim(0.0, 1.03)
    finish(axes, "steps of training", unit, title)


def _binned(curve: LearningCurve) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """:return: Steps, mean, 10th and 90th percentile of at most ``MAX_POINTS`` bins."""
    n_bins = min(MAX_POINTS, len(np.unique(curve.timesteps)))
    edges = np.linspace(curve.timesteps.min(), curve.timesteps.max(), n_bins + 1)
    which = np.clip(np.searchsorted(edges, curve.timesteps, side="right") - 1, 0, n_bins - 1)
    rows = []
    for index in np.unique(which):
        chosen = which == index
        returns = curve.returns[chosen].ravel()
        rows.append((curve.timesteps[chosen].mean(), returns.mean(), *np.percentile(returns, [10, 90])))
    steps, mean, low, high = np.array(rows).T
    return steps, mean, low, high


def learning_curve_figure(curves: Mapping[str, LearningCurve], title: str = "") -> "Figure":
    """
    Learning curves side by side: one panel for the returns of trials, one for those of episodes.

    :param curves: By name in the legend
    :param title: Title of the picture
    :return: The figure
    """
    units = sorted({curve.unit for curve in curves.values()})
    figure = new_figure(6.4 * len(units), 4.0)
    for axes, unit in zip(figure.subplots(1, len(units), squeeze=False)[0], units, strict=True):
        draw_learning_curve(axes, {name: curve for name, curve in curves.items() if curve.unit == unit}, title)
    return figure


def plot_learning_curve(curves: Mapping[str, LearningCurve], path: str | Path, title: str = "") -> None:
    """
    Draw learning curves.

    :param curves: By name in the legend, see :func:`~sb3_trmrl.common.logs.read_learning_curves`
    :param path: Where to write the picture (the ending chooses the format: png, svg, pdf)
    :param title: Title of the picture
    :raises ValueError: for another ending
    """
    save_figure(learning_curve_figure(curves, title), path)

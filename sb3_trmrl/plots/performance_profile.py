"""Which share of runs and tasks is how good."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sb3_trmrl.common.statistics import bootstrap_interval, performance_profile
from sb3_trmrl.plots.style import agent_style, finish, legend_label, new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_performance_profile(axes: "Axes", scores: Mapping[str, np.ndarray], title: str = "", xlabel: str = "return") -> None:
    """
    Draw performance profiles with their 95 % bootstrap bands into axes.

    :param axes: Matplotlib's axes
    :param scores: By name in the legend, (n_runs, n_tasks)
    :param title: Title of the picture
    :param xlabel: What the scores are
    """
    everything = np.concatenate([np.ravel(matrix) for matrix in scores.values()])
    margin = 0.02 * max(np.ptp(everything), 1e-9)
    thresholds = np.linspace(everything.min() - margin, everything.max() + margin, 200)
    for index, (name, matrix) in enumerate(scores.items()):
        color, linestyle, _ = agent_style(index)
        lower, upper = bootstrap_interval(
            matrix, lambda samples: performance_profile(samples, thresholds), n_resamples=1_000, resample_tasks=True
        )
        axes.fill_between(thresholds, lower, upper, color=color, alpha=0.15, linewidth=0)
        profile = performance_profile(matrix, thresholds)
        axes.plot(thresholds, profile, color=color, linestyle=linestyle, linewidth=2, label=legend_label(name))
    axes.set_ylim(-0.02, 1.02)
    finish(axes, f"{xlabel} r", "share of tasks above r", title)


def plot_performance_profile(
    scores: Mapping[str, np.ndarray], path: str | Path, title: str = "", xlabel: str = "return"
) -> None:
    """
    Draw performance profiles (Agarwal et al. 2021).

    :param scores: By name in the legend, (n_runs, n_tasks)
    :param path: Where to write the picture (the ending chooses the format: png, svg, pdf)
    :param title: Title of the picture
    :param xlabel: What the scores are
    :raises ValueError: for another ending
    """
    figure = new_figure()
    draw_performance_profile(figure.subplots(), scores, title, xlabel)
    save_figure(figure, path)

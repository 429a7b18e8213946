"""Everything about a run in one HTML file: no scripts, nothing to load, pictures inside."""

import base64
import datetime
import io
import math
import warnings
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sb3_trmrl.common.evaluation import AdaptationResult, evaluate_adaptation, make_trials
from sb3_trmrl.common.logs import NoLogsError
from sb3_trmrl.common.policies import MemoryActorCriticPolicy
from sb3_trmrl.common.references import References, load_references
from sb3_trmrl.common.versions import versions
from sb3_trmrl.inspection import inspect_trials
from sb3_trmrl.plots.adaptation_curve import draw_adaptation_curve
from sb3_trmrl.plots.attention import attention_figure, embeddings_figure
from sb3_trmrl.plots.learning_curve import learning_curve_figure
from sb3_trmrl.plots.ood import draw_task_returns, has_parameters, reference_lines, task_parameter, training_range
from sb3_trmrl.plots.performance_profile import draw_performance_profile
from sb3_trmrl.plots.style import new_figure
from sb3_trmrl.runs import Run, learning_curves

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1a1a1a; }
h1 { font-size: 1.6rem; margin-bottom: 0.2rem; }
h2 { font-size: 1.2rem; margin-top: 2.2rem; border-bottom: 1px solid #ccc; }
img { max-width: 100%; height: auto; }
figure { margin: 1rem 0; }
figcaption, .quiet { color: #444; font-size: 0.92rem; }
table { border-collapse: collapse; margin: 0.8rem 0; font-size: 0.92rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.2rem 0.7rem; border-bottom: 1px solid #ddd; text-align: right; }
th:first-child, td:first-child { text-align: left; }
th { border-bottom: 2px solid #888; }
code { background: #f3f3f3; padding: 0 0.2rem; }
.wide { overflow-x: auto; }
.facts td { text-align: left; }
"""


def write_report(
    run: Run,
    path: str | Path,
    splits: Sequence[str] | None = None,
    n_tasks: int = 20,
    n_episodes: int = 6,
    seed: int = 0,
    env_kwargs: dict[str, Any] | None = None,
    command: str = "",
    progress_bar: bool = False,
) -> None:
    """
    Evaluate a run and write what there is to see: adaptation curves with references, return against the task, performance
    profile, learning curves, attention, memory embeddings.

    :param run: The run, see :func:`~sb3_trmrl.runs.load_run`
    :param path: Where the file goes, ending in ``.html``
    :param splits: Which splits; all that the family has if None
    :param n_tasks: Tasks of each split
    :param n_episodes: Episodes per trial
    :param seed: Seed of tasks and episodes
    :param env_kwargs: Keywords of the environment, beside those of the run
    :param command: How the report was made, for its foot
    :param progress_bar: Show progress bars
    :raises ValueError: for another ending, no split, a run whose environment is unknown, and as ``evaluate_adaptation``
    """
    path = Path(path)
    if path.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"a report's path must end in .html, got {str(path)!r}.")
    if splits is not None and not splits:
        raise ValueError(f"splits must name at least one, got {splits!r}; None takes all that the family has.")
    if run.env_id is None:
        raise ValueError("the run does not tell its environment: give the id (--env).")
    kwargs = {**run.playing_kwargs, **(env_kwargs or {})}
    family = make_trials(run.env_id, kwargs)
    splits = list(family.meta_env.splits) if splits is None else list(splits)
    family.close()
    results = {
        split: evaluate_adaptation(
            run.player, run.env_id, n_tasks, n_episodes, split, seed=seed, env_kwargs=kwargs, progress_bar=progress_bar
        )
        for split in splits
    }
    references = {split: load_references(result) for split, result in results.items()}

    parts = [_heading(run, results, kwargs, seed), "<h2>Adaptation</h2>"]
    for split, result in results.items():
        parts += _adaptation(split, result, references[split])
    parts += ["<h2>Tasks</h2>", *_tasks(results, references)]
    if run.folder is not None:
        try:
            curves = learning_curves(run.folder)
        except NoLogsError:
            curves = {}
        except ValueError as error:  # broken: the rest of the report is worth having
            warnings.warn(f"The report has no learning curves: {error}", stacklevel=2)
            curves = {}
        if curves:
            caption = "Returns in the course of training. Bands: 10th to 90th percentile."
            parts += ["<h2>Training</h2>", _picture(learning_curve_figure(curves), "Learning curves", caption)]
    if isinstance(run.model.policy, MemoryActorCriticPolicy) and run.vec_normalize is None:
        parts += ["<h2>Memory</h2>", *_memory(run, splits, n_tasks, seed, kwargs)]
    parts.append(_foot(command))
    title = escape(f"{run.name}: {run.env_id}")
    document = (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{title}</title>\n'
        f"<style>{STYLE}</style>\n</head>\n<body>\n" + "\n".join(parts) + "\n</body>\n</html>\n"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(document, encoding="utf-8")


def _heading(run: Run, results: dict[str, AdaptationResult], kwargs: dict[str, Any], seed: int) -> str:
    first = next(iter(results.values()))
    parameters = sum(parameter.numel() for parameter in run.model.policy.parameters())
    rows = {
        "environment": " ".join([str(run.env_id), *(f"{name}={value}" for name, value in kwargs.items())]),
        "algorithm": f"{type(run.model).__name__}, {parameters:,} parameters",
        "trained for": f"{run.model.num_timesteps:,} steps"
        + (f", trials of {run.episodes_per_trial} episodes" if run.episodes_per_trial else ""),
        "evaluated on": f"{first.n_tasks} tasks x {first.n_episodes} episodes of each split ({', '.join(results)}), "
        f"seed {seed}",
    }
    body = "".join(f"<tr><td>{escape(name)}</td><td>{escape(value)}</td></tr>" for name, value in rows.items())
    return f'<h1>{escape(run.name)}</h1>\n<table class="facts">{body}</table>'


def _adaptation(split: str, result: AdaptationResult, references: References | None) -> list[str]:
    figure = new_figure()
    known = {} if references is None else references.curves()
    drawn = {} if references is None else references.drawn_curves()
    draw_adaptation_curve(figure.subplots(), {"agent": result}, drawn, f"{split} tasks")
    parts = [
        _picture(
            figure,
            f"Adaptation curve on {split} tasks",
            f"Return against the episode of the trial on {split} tasks, weights frozen. Band: 95 % bootstrap interval.",
        )
    ]
    lower, upper = result.interval()
    header = ["episode", "return", "95 % interval"]
    columns = [
        [str(episode + 1) for episode in range(result.n_episodes)],
        [f"{value:.2f}" for value in result.curve],
        [f"[{low:.2f}, {high:.2f}]" for low, high in zip(lower, upper, strict=True)],
    ]
    if result.success is not None:
        header.append("success")
        columns.append([f"{rate:.0%}" for rate in result.success.mean(axis=0)])
    for name, curve in known.items():
        header.append(name)
        columns.append([f"{value:.2f}" for value in curve])
    scores = {} if references is None else references.scores(result.returns[None])
    if scores:
        bounds = zip(scores["score"], *scores["score_interval"], strict=True)
        header.append("score")
        # No number where the oracle is not better than the blind agent
        columns.append(
            [f"{score:.2f} [{low:.2f}, {high:.2f}]" if math.isfinite(score) else "-" for score, low, high in bounds]
        )
    if "reactive_score" in scores:
        header.append("reactive's score")
        columns.append([f"{score:.2f}" if math.isfinite(score) else "-" for score in scores["reactive_score"]])
    parts.append(_table(header, [list(row) for row in zip(*columns, strict=True)]))
    if references is None:
        parts.append(
            '<p class="quiet">No references for this family and these keywords: <code>sb3-trmrl references</code></p>'
        )
    else:
        made = "; ".join(f"<b>{escape(name)}</b>: {escape(how)}" for name, how in references.how.items())
        same = "They played the same tasks." if references.paired else "They played other tasks of the same split."
        parts.append(f'<p class="quiet">References: {made}. {same} Score: (return - blind) / (oracle - blind).</p>')
    return parts


def _tasks(results: dict[str, AdaptationResult], references: dict[str, References | None]) -> list[str]:
    first = next(iter(results.values()))
    parts = []
    try:
        name, _ = task_parameter(first)
    except ValueError:
        name = ""
    if name:
        lines = reference_lines([(result, references[split]) for split, result in results.items()])
        figure = new_figure()
        draw_task_returns(figure.subplots(), results, lines, name, training_range(first, name))
        caption = "Return of the last episode against the task; shaded: where training tasks lie. Grey lines: references."
        parts.append(_picture(figure, "Return against the task parameter", caption))
    figure = new_figure()
    draw_performance_profile(figure.subplots(), {split: result.returns[:, -1][None] for split, result in results.items()})
    caption = "Performance profile (Agarwal et al. 2021) of the last episode. Bands: 95 % bootstrap intervals over tasks."
    return [*parts, _picture(figure, "Performance profile", caption)]


def _memory(run: Run, splits: Sequence[str], n_tasks: int, seed: int, kwargs: dict[str, Any]) -> list[str]:
    assert run.env_id is not None
    split = "test" if "test" in splits else splits[0]
    inspection = inspect_trials(run.model, run.env_id, n_tasks, 2, split, seed=seed, env_kwargs=kwargs)
    parts = []
    if len(inspection.attention):
        caption = (
            f"Attention while acting, first {split} task. Row: the step of acting, column: the step that is looked at; "
            "dashed: a new episode. 1 would be looking at all steps so far alike."
        )
        parts.append(_picture(attention_figure(inspection), "Attention weights per layer and head", caption))
    if has_parameters(inspection.result.tasks[0]):
        caption = "Memory embeddings at every step in their two principal components, coloured by the task."
        parts.append(_picture(embeddings_figure(inspection), "Memory embeddings", caption))
    return parts


def _picture(figure: "Figure", alt: str, caption: str) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return (
        f'<figure><img alt="{escape(alt)}" src="data:image/png;base64,{data}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def _table(header: list[str], rows: list[list[str]]) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _foot(command: str) -> str:
    known = ", ".join(f"{name} {version}" for name, version in versions().items())
    made = f" by <code>{escape(command)}</code>" if command else ""
    return f'<p class="quiet">Made on {datetime.date.today().isoformat()}{made}. {escape(known)}.</p>'

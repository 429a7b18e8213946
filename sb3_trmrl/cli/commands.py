"""``sb3-trmrl evaluate``, ``compare``, ``inspect``, ``report`` and ``references``."""

import argparse
import json
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sb3_trmrl.cli.sources import parse_sources
from sb3_trmrl.cli.text import (
    comparison_text,
    digits_of,
    evaluation_data,
    evaluation_text,
    no_references,
    number,
    table,
    to_json,
)
from sb3_trmrl.common.evaluation import AdaptationResult, evaluate_adaptation, stack_runs
from sb3_trmrl.common.references import load_references, make_references
from sb3_trmrl.common.statistics import (
    bootstrap_interval,
    curve_interval,
    interquartile_mean,
    probability_of_improvement,
    probability_of_improvement_interval,
)
from sb3_trmrl.inspection import attention_summary, inspect_trials
from sb3_trmrl.plots import plot_adaptation_curve, plot_attention, plot_embeddings
from sb3_trmrl.plots.adaptation_curve import draw_adaptation_curve
from sb3_trmrl.plots.ood import has_parameters
from sb3_trmrl.plots.performance_profile import draw_performance_profile
from sb3_trmrl.plots.style import FORMATS, new_figure, save_figure
from sb3_trmrl.report import write_report
from sb3_trmrl.runs import Run, load_run

RESULT_ENDINGS = (".npz", ".json")


def check_outputs(paths: Sequence[Path], endings: Sequence[str]) -> None:
    """
    :param paths: Where output is to go.
    :param endings: Which endings there are.
    :raises ValueError: On another ending and where no file can be, before minutes of work.
    """
    for path in paths:
        if path.suffix.lower() not in endings:
            raise ValueError(f"--output must end in one of {', '.join(endings)}, got {str(path)!r}.")
        if path.is_dir():
            raise ValueError(f"--output must name a file, and {str(path)!r} is a folder.")
        above = next(parent for parent in path.absolute().parents if parent.exists())
        if not (above.is_dir() and os.access(above, os.W_OK)):
            raise ValueError(f"--output can't be written to {str(path)!r}: {str(above)!r} is no folder that you may write to.")


def environment_of(run: Run, arguments: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """
    :param run: A run.
    :param arguments: The command line.
    :return: Id and keywords of the environment to play: those of training, changed by the command line.
    :raises ValueError: If nobody tells the id.
    """
    if run.env_id is None:
        raise ValueError(f"{run.name} does not tell which environment it was trained on: give --env.")
    return run.env_id, {**run.playing_kwargs, **arguments.env_kwargs}


def evaluate_run(run: Run, split: str, arguments: argparse.Namespace) -> AdaptationResult:
    """
    :param run: A run.
    :param split: Which tasks.
    :param arguments: The command line.
    :return: Its evaluation.
    """
    env_id, env_kwargs = environment_of(run, arguments)
    return evaluate_adaptation(
        run.player,
        env_id,
        n_tasks=arguments.n_tasks,
        n_episodes=arguments.n_episodes,
        split=split,
        deterministic=not arguments.stochastic,
        seed=arguments.seed,
        env_kwargs=env_kwargs,
        n_envs=arguments.n_envs,
        progress_bar=not arguments.json,
    )


def evaluate(arguments: argparse.Namespace) -> None:
    """
    ``sb3-trmrl evaluate``.

    :param arguments: The command line.
    """
    check_outputs(arguments.output, RESULT_ENDINGS + FORMATS)
    run = load_run(arguments.model, arguments.algo, arguments.env, arguments.device)
    data: dict[str, Any] = {}
    for split in arguments.split:
        result = evaluate_run(run, split, arguments)
        references = None if arguments.no_references else load_references(result)
        data[split] = evaluation_data(result, references)
        if not arguments.json:
            print(
                f"\n{run.name}: {result.n_tasks} {split} tasks of {result.settings['env_id']}, {result.n_episodes} episodes, "
                f"seed {arguments.seed}, {result.wall_time:.1f} s\n"
            )
            print(evaluation_text(result, references))
            if references is None and not arguments.no_references:
                module = (arguments.env or "").rpartition(":")[0]
                print(no_references(result, [*arguments.gym_packages, *([module] if module else [])]))
        for path in arguments.output:
            target = path if len(arguments.split) == 1 else path.with_stem(f"{path.stem}_{split}")
            if path.suffix.lower() in RESULT_ENDINGS:
                result.save(target)
            else:
                known = {} if references is None else references.drawn_curves()
                title = f"{result.settings['env_id']}, {result.n_tasks} {split} tasks"
                plot_adaptation_curve({run.name: result}, target, known, title)
            if not arguments.json:
                print(f"Written: {target}")
    if arguments.json:
        print(json.dumps(to_json(data)))


def load_agents(sources: Sequence[str], arguments: argparse.Namespace) -> dict[str, list[AdaptationResult]]:
    """
    :param sources: ``[NAME=]PATH[,PATH...]`` of each agent: saved results, or models, which are evaluated. Several paths are
        several training seeds.
    :param arguments: The command line.
    :return: Results by the agent's name.
    :raises ValueError: If a name comes twice.
    """
    agents: dict[str, list[AdaptationResult]] = {}
    for name, paths in parse_sources(sources).items():
        agents[name] = []
        for path in paths:
            if Path(path).suffix.lower() in RESULT_ENDINGS:
                agents[name].append(AdaptationResult.load(path))
            else:
                run = load_run(path, arguments.algo, arguments.env, arguments.device)
                agents[name].append(evaluate_run(run, arguments.split, arguments))
    return agents


def compare(arguments: argparse.Namespace) -> None:
    """
    ``sb3-trmrl compare``.

    :param arguments: The command line.
    """
    check_outputs(arguments.output, FORMATS)
    agents = load_agents(arguments.agents, arguments)
    # All of them have to have played the same tasks
    stack_runs([result for runs in agents.values() for result in runs])
    first = next(iter(agents.values()))[0]
    references = None if arguments.no_references else load_references(first)
    data: dict[str, Any] = {}
    names = list(agents)
    last = {name: stack_runs(runs)[:, :, -1] for name, runs in agents.items()}  # (n_runs, n_tasks)
    for name, runs in agents.items():
        returns = stack_runs(runs)
        data[name] = {
            "n_runs": len(runs),
            "curve": returns.mean(axis=(0, 1)),
            "interval": curve_interval(returns),
            "iqm_last_episode": interquartile_mean(last[name]),
            "iqm_interval": bootstrap_interval(last[name], resample_tasks=True),
            "gain": returns[:, :, -1].mean() - returns[:, :, 0].mean(),
            **({} if references is None else references.scores(returns)),
        }
        if name != names[0]:
            data[name]["probability_better_than_first"] = probability_of_improvement(last[name], last[names[0]])
            data[name]["probability_interval"] = probability_of_improvement_interval(last[name], last[names[0]])
    if arguments.json:
        known = {} if references is None else references.curves()
        print(json.dumps(to_json({"agents": data, "references": known, "settings": first.settings})))
    else:
        print(comparison_text(data, first, references))
        if references is None and not arguments.no_references:
            print(no_references(first, arguments.gym_packages))
    for path in arguments.output:
        known = {} if references is None else references.drawn_curves()
        figure = new_figure(11.0, 4.0)
        left, right = figure.subplots(1, 2)
        draw_adaptation_curve(left, agents, known)
        draw_performance_profile(right, last, xlabel="return of the last episode")
        figure.suptitle(f"{first.settings.get('env_id')}, {first.n_tasks} {first.settings.get('split')} tasks")
        save_figure(figure, path)
        if not arguments.json:
            print(f"Written: {path}")


def inspect(arguments: argparse.Namespace) -> None:
    """
    ``sb3-trmrl inspect``.

    :param arguments: The command line.
    """
    run = load_run(arguments.model, arguments.algo, arguments.env, arguments.device)
    if run.vec_normalize is not None:
        raise ValueError(
            f"{run.name} was trained behind VecNormalize(norm_obs=True), which inspect plays without: let the "
            "policy normalise (normalize_observations=True, the default)."
        )
    env_id, env_kwargs = environment_of(run, arguments)
    inspection = inspect_trials(
        run.model,
        env_id,
        n_tasks=arguments.n_tasks,
        n_episodes=arguments.n_episodes,
        split=arguments.split,
        seed=arguments.seed,
        env_kwargs=env_kwargs,
        n_attention=arguments.n_attention,
    )
    summary = attention_summary(inspection)
    if arguments.json:
        print(json.dumps(to_json({"returns": inspection.result.returns, "attention": summary})))
    else:
        print(f"{run.name}: memory of {inspection.embeddings.shape[2]} numbers, {inspection.result.n_tasks} trials")
        if summary:
            header = ["layer", "head", "on this step", "on this episode", "on earlier episodes", "effective steps"]
            rows = [
                [str(row["layer"]), str(row["head"])]
                + [f"{row[name]:.1%}" for name in ("current_step", "current_episode", "earlier_episodes")]
                + [f"{row['effective_steps']:.1f}"]
                for row in summary
            ]
            print("Attention, mean over the steps of the last episode:\n" + table(header, rows))
        elif arguments.n_attention > 0:
            print("This memory has no attention.")
    if arguments.output is not None:
        inspection.save(arguments.output / "inspection.npz")
        written = ["inspection.npz"]
        if inspection.attention.size > 0:
            plot_attention(inspection, arguments.output / "attention.png", title=f"{env_id}: attention while acting")
            written.append("attention.png")
        if has_parameters(inspection.result.tasks[0]):
            plot_embeddings(inspection, arguments.output / "embeddings.png", title=f"{env_id}: memory embeddings")
            written.append("embeddings.png")
        if not arguments.json:
            print(f"Written to {arguments.output}: {', '.join(written)}")


def report(arguments: argparse.Namespace) -> None:
    """
    ``sb3-trmrl report``.

    :param arguments: The command line.
    """
    check_outputs([arguments.output], [".html"])
    run = load_run(arguments.model, arguments.algo, arguments.env, arguments.device)
    write_report(
        run,
        arguments.output,
        arguments.split or None,
        arguments.n_tasks,
        arguments.n_episodes,
        arguments.seed,
        arguments.env_kwargs,
        command="sb3-trmrl " + shlex.join(arguments.command_line),
        progress_bar=True,
    )
    print(f"Written: {arguments.output}")


def references(arguments: argparse.Namespace) -> None:
    """
    ``sb3-trmrl references``.

    :param arguments: The command line.
    """
    path = make_references(
        arguments.family,
        arguments.agents,
        arguments.timesteps,
        arguments.seeds,
        arguments.n_tasks,
        arguments.n_episodes,
        arguments.eval_seed,
        arguments.env_kwargs,
        arguments.output,
        command="sb3-trmrl " + shlex.join(arguments.command_line),
        progress_bar=not arguments.json,
        conf_file=arguments.conf_file,
    )
    content = json.loads(path.read_text(encoding="utf-8"))
    if arguments.json:
        print(json.dumps(content))
        return
    for split in content["tasks"]:
        digits = digits_of(np.array([np.mean(entry["returns"][split]) for entry in content["agents"].values()]))
        rows = [
            [name, *(number(value, digits) for value in np.mean(entry["returns"][split], axis=(0, 1))), entry["how"]]
            for name, entry in content["agents"].items()
        ]
        episodes = [f"episode {index + 1}" for index in range(content["n_episodes"])]
        print(f"\n{arguments.family}, {content['n_tasks']} {split} tasks, mean return\n")
        print(table(["agent", *episodes, "how"], rows))
    print(f"\nWritten: {path}")

"""The command ``sb3-trmrl``: evaluate, compare, plot, inspect, report, references, hub (docs/guide/evaluation.md)."""

import argparse
import importlib
import json
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import yaml

from sb3_trmrl.common.evaluation import AdaptationResult, evaluate_adaptation, stack_runs
from sb3_trmrl.common.references import AGENTS, References, load_references, make_references
from sb3_trmrl.common.statistics import (
    adaptation_score,
    bootstrap_interval,
    curve_interval,
    interquartile_mean,
    probability_of_improvement,
    probability_of_improvement_interval,
    score_interval,
)
from sb3_trmrl.hub.commands import add_parser as add_hub_parser
from sb3_trmrl.runs import ALGORITHMS, Run, load_run

RESULT_ENDINGS = (".npz", ".json")
PICTURE_ENDINGS = (".png", ".svg", ".pdf")


# ---- text ------------------------------------------------------------------------------------------------------------


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
    :return: It as text, ``-`` if it is not finite.
    """
    return f"{value:.{digits}f}" if np.isfinite(value) else "-"


def with_interval(value: float, lower: float, upper: float, digits: int = 2) -> str:
    """
    :param value: A number.
    :param lower: Lower bound.
    :param upper: Upper bound.
    :param digits: Digits behind the point.
    :return: ``1.00 [0.50, 1.50]``
    """
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
    :return: The same for ``json.dumps``; what is not finite is None.
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


# ---- what several commands do ----------------------------------------------------------------------------------------


def scores_of(returns: np.ndarray, references: References | None) -> dict[str, Any]:
    """
    :param returns: Returns of an agent, (n_runs, n_tasks, n_episodes).
    :param references: References for them.
    :return: ``score``, ``score_interval`` and, if it is known, ``reactive_score``, each by episode; empty without oracle and
        blind.
    """
    if references is None or not {"oracle", "blind"} <= set(references.returns):
        return {}
    blind, oracle = references.returns["blind"], references.returns["oracle"]
    scores: dict[str, Any] = {
        "score": adaptation_score(returns.mean(axis=0), blind, oracle),
        "score_interval": score_interval(returns, blind, oracle, references.paired),
    }
    if "reactive" in references.returns:
        scores["reactive_score"] = adaptation_score(references.returns["reactive"], blind, oracle)
    return scores


def describe_references(references: References | None) -> list[str]:
    """
    :param references: References.
    :return: Lines that tell how they were made.
    """
    if references is None:
        return ["No references for this family, split and keywords: `sb3-trmrl references FAMILY` makes them."]
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
    scores = scores_of(result.returns[None], references)
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
        **scores_of(result.returns[None], references),
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


def check_outputs(paths: Sequence[Path], endings: Sequence[str]) -> None:
    """
    :param paths: Where output is to go.
    :param endings: Which endings there are.
    :raises ValueError: On another ending, before minutes of work.
    """
    for path in paths:
        if path.suffix.lower() not in endings:
            raise ValueError(f"--output must end in one of {', '.join(endings)}, got {str(path)!r}.")


def environment_of(run: Run, arguments: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """
    :param run: A run.
    :param arguments: The command line.
    :return: Id and keywords of the environment to play: those of training, changed by the command line.
    :raises ValueError: If nobody tells the id.
    """
    if run.env_id is None:
        raise ValueError(f"{run.name} does not tell which environment it was trained on: give --env.")
    kept = {name: value for name, value in run.env_kwargs.items() if name not in ("episodes_per_trial", "split", "tasks")}
    return run.env_id, {**(kept if arguments.env in (None, run.env_id) else {}), **arguments.env_kwargs}


def evaluate_run(run: Run, split: str, arguments: argparse.Namespace) -> AdaptationResult:
    """
    :param run: A run.
    :param split: Which tasks.
    :param arguments: The command line.
    :return: Its evaluation.
    """
    env_id, env_kwargs = environment_of(run, arguments)
    return evaluate_adaptation(
        run.model,
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


# ---- the commands ----------------------------------------------------------------------------------------------------


def evaluate(arguments: argparse.Namespace) -> None:
    """
    ``sb3-trmrl evaluate``.

    :param arguments: The command line.
    """
    check_outputs(arguments.output, RESULT_ENDINGS + PICTURE_ENDINGS)
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
        for path in arguments.output:
            target = path if len(arguments.split) == 1 else path.with_stem(f"{path.stem}_{split}")
            if path.suffix in RESULT_ENDINGS:
                result.save(target)
            else:
                from sb3_trmrl.plots import plot_adaptation_curve

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
    for source in sources:
        name, equals, paths = source.partition("=")
        if not equals:
            name, paths = Path(source.split(",")[0]).stem, source
        if name in agents:
            raise ValueError(f"two agents are called {name!r}: give names, for example first={source}.")
        agents[name] = []
        for path in paths.split(","):
            if Path(path).suffix in RESULT_ENDINGS:
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
    check_outputs(arguments.output, PICTURE_ENDINGS)
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
            **scores_of(returns, references),
        }
        if name != names[0]:
            data[name]["probability_better_than_first"] = probability_of_improvement(last[name], last[names[0]])
            data[name]["probability_interval"] = probability_of_improvement_interval(last[name], last[names[0]])
    if arguments.json:
        known = {} if references is None else references.curves()
        print(json.dumps(to_json({"agents": data, "references": known, "settings": first.settings})))
    else:
        print(comparison_text(data, first, references))
    for path in arguments.output:
        from sb3_trmrl.plots.adaptation_curve import draw_adaptation_curve
        from sb3_trmrl.plots.performance_profile import draw_performance_profile
        from sb3_trmrl.plots.style import new_figure, save_figure

        known = {} if references is None else references.drawn_curves()
        figure = new_figure(11.0, 4.0)
        left, right = figure.subplots(1, 2)
        draw_adaptation_curve(left, agents, known)
        draw_performance_profile(right, last, xlabel="return of the last episode")
        figure.suptitle(f"{first.settings.get('env_id')}, {first.n_tasks} {first.settings.get('split')} tasks")
        save_figure(figure, path)
        if not arguments.json:
            print(f"Written: {path}")


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


def plot(arguments: argparse.Namespace) -> None:
    """
    ``sb3-trmrl plot``.

    :param arguments: The command line.
    """
    check_outputs([arguments.output], PICTURE_ENDINGS)
    draw: Callable[[argparse.Namespace], None] = {
        "adaptation": _plot_adaptation,
        "tasks": _plot_tasks,
        "profile": _plot_profile,
        "learning": _plot_learning,
        "attention": _plot_attention,
        "embeddings": _plot_attention,
    }[arguments.kind]
    draw(arguments)
    print(f"Written: {arguments.output}")


def _named(sources: Sequence[str]) -> dict[str, str]:
    """:return: ``NAME=PATH`` or ``PATH`` by name."""
    named = {}
    for source in sources:
        name, equals, path = source.partition("=")
        name, path = (name, path) if equals else (Path(source).stem, source)
        if name in named:
            raise ValueError(f"two inputs are called {name!r}: give names, for example first={path}.")
        named[name] = path
    return named


def _plot_adaptation(arguments: argparse.Namespace) -> None:
    from sb3_trmrl.plots import plot_adaptation_curve

    results = {name: AdaptationResult.load(path) for name, path in _named(arguments.input).items()}
    first = next(iter(results.values()))
    same = all(result.tasks == first.tasks for result in results.values())
    references = load_references(first) if same else None
    known = {} if references is None else references.drawn_curves()
    plot_adaptation_curve(results, arguments.output, known, arguments.title or first.settings.get("env_id") or "")


def _plot_tasks(arguments: argparse.Namespace) -> None:
    from sb3_trmrl.plots import plot_task_returns
    from sb3_trmrl.plots.ood import task_parameter, training_range

    results = {name: AdaptationResult.load(path) for name, path in _named(arguments.input).items()}
    first = next(iter(results.values()))
    lines: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    found = [(result, load_references(result)) for result in results.values()]
    for agent in ("oracle", "blind"):
        points = [
            (task_parameter(result, arguments.parameter)[1], references.returns[agent][:, -1])
            for result, references in found
            if references is not None and references.paired and agent in references.returns
        ]
        if points:
            values, returns = (np.concatenate(part) for part in zip(*points, strict=True))
            lines[agent] = values, returns
    plot_task_returns(
        results,
        arguments.output,
        lines,
        arguments.parameter,
        training_range(first, arguments.parameter),
        arguments.title or first.settings.get("env_id") or "",
    )


def _plot_profile(arguments: argparse.Namespace) -> None:
    from sb3_trmrl.plots import plot_performance_profile

    results = {name: AdaptationResult.load(path) for name, path in _named(arguments.input).items()}
    scores = {name: result.returns[None, :, -1] for name, result in results.items()}
    plot_performance_profile(scores, arguments.output, arguments.title, "return of the last episode")


def _plot_learning(arguments: argparse.Namespace) -> None:
    from sb3_trmrl.common.logs import read_learning_curves
    from sb3_trmrl.plots import plot_learning_curve
    from sb3_trmrl.runs import log_folder

    curves = {}
    named = _named(arguments.input)
    for name, path in named.items():
        folder, episodes_per_trial = log_folder(path)
        for kind, curve in read_learning_curves(folder, episodes_per_trial).items():
            curves[kind if len(named) == 1 else f"{name}: {kind}"] = curve
    plot_learning_curve(curves, arguments.output, arguments.title)


def _plot_attention(arguments: argparse.Namespace) -> None:
    from sb3_trmrl.inspection import Inspection
    from sb3_trmrl.plots import plot_attention, plot_embeddings

    if len(arguments.input) != 1:
        raise ValueError(f"plot {arguments.kind} draws one file of `sb3-trmrl inspect`, got {len(arguments.input)}.")
    inspection = Inspection.load(arguments.input[0])
    if arguments.kind == "attention":
        plot_attention(inspection, arguments.output, arguments.task, arguments.title)
    else:
        plot_embeddings(inspection, arguments.output, arguments.parameter, arguments.title)


def inspect(arguments: argparse.Namespace) -> None:
    """
    ``sb3-trmrl inspect``.

    :param arguments: The command line.
    """
    from sb3_trmrl.inspection import attention_summary, inspect_trials
    from sb3_trmrl.plots import plot_attention, plot_embeddings

    run = load_run(arguments.model, arguments.algo, arguments.env, arguments.device)
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
        else:
            print("This memory has no attention.")
    if arguments.output is not None:
        inspection.save(arguments.output / "inspection.npz")
        written = ["inspection.npz"]
        if len(inspection.attention):
            plot_attention(inspection, arguments.output / "attention.png", title=f"{env_id}: attention while acting")
            written.append("attention.png")
        if inspection.result.tasks[0]:
            plot_embeddings(inspection, arguments.output / "embeddings.png", title=f"{env_id}: memory embeddings")
            written.append("embeddings.png")
        if not arguments.json:
            print(f"Written to {arguments.output}: {', '.join(written)}")


def report(arguments: argparse.Namespace) -> None:
    """
    ``sb3-trmrl report``.

    :param arguments: The command line.
    """
    from sb3_trmrl.report import write_report

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


# ---- the command line ------------------------------------------------------------------------------------------------


class KeyValues(argparse.Action):
    """Reads ``name:value``, as RL Zoo's ``--env-kwargs``; the value is YAML: ``horizon:100``, ``split:ood``."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option_string: str | None = None
    ) -> None:
        """See :class:`argparse.Action`."""
        pairs: dict[str, Any] = {}
        for value in values:
            name, colon, text = value.partition(":")
            if not colon:
                parser.error(f"argument {option_string}: expected name:value, got {value!r}")
            try:
                pairs[name] = yaml.safe_load(text)
            except yaml.YAMLError:
                parser.error(f"argument {option_string}: {text!r} is no value")
        setattr(namespace, self.dest, pairs)


def _add_model_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("model and environment")
    group.add_argument("--algo", choices=ALGORITHMS, help="algorithm of a zip file that lies in no log folder of RL Zoo")
    group.add_argument("--env", metavar="ID", help="environment, if the run does not tell it or for another one")
    group.add_argument("--env-kwargs", nargs="+", action=KeyValues, default={}, metavar="NAME:VALUE", help="its keywords")
    group.add_argument("--device", default="cpu", help="where the model runs (default: %(default)s)")


def _add_evaluation_arguments(parser: argparse.ArgumentParser, n_episodes: int = 6) -> None:
    group = parser.add_argument_group("evaluation")
    group.add_argument("--n-tasks", type=int, default=20, metavar="N", help="number of tasks (default: %(default)s)")
    group.add_argument(
        "--n-episodes", type=int, default=n_episodes, metavar="N", help="episodes per trial (default: %(default)s)"
    )
    group.add_argument("--seed", type=int, default=0, help="seed of tasks and episodes (default: %(default)s)")


MODEL_HELP = "log folder of RL Zoo, zip file, folder of save_pretrained, or user/repository on the Hugging Face Hub"


def make_parser() -> argparse.ArgumentParser:
    """:return: The parser of the command line."""
    # The parsers' prog is fixed: `python -m sb3_trmrl` shows the same help
    parser = argparse.ArgumentParser(prog="sb3-trmrl", description="How fast does it adapt, and how sure are we?")
    parser.add_argument(
        "--gym-packages", nargs="+", default=[], metavar="MODULE", help="modules that register environments or encoders"
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    sub = commands.add_parser("evaluate", help="adaptation curve on unseen tasks, with intervals and references")
    sub.add_argument("model", help=MODEL_HELP)
    _add_model_arguments(sub)
    _add_evaluation_arguments(sub)
    sub.add_argument("--split", nargs="+", default=["test"], metavar="SPLIT", help="train, test, ood (default: test)")
    sub.add_argument("--stochastic", action="store_true", help="sample actions instead of taking the most probable ones")
    sub.add_argument("--n-envs", type=int, metavar="N", help="tasks played side by side (default: all)")
    sub.add_argument("--no-references", action="store_true", help="without oracle, reactive, blind and random")
    sub.add_argument("--json", action="store_true", help="print JSON")
    sub.add_argument(
        "-o", "--output", nargs="+", type=Path, default=[], metavar="FILE",
        help="result.npz or result.json (for compare, plot), curve.png, curve.svg; several splits: a file for each",
    )  # fmt: skip
    sub.set_defaults(run=evaluate)

    sub = commands.add_parser("compare", help="several agents on the same tasks: table and picture")
    sub.add_argument(
        "agents", nargs="+", metavar="[NAME=]PATH[,PATH...]", help="saved results or models; several paths: seeds"
    )
    _add_model_arguments(sub)
    _add_evaluation_arguments(sub)
    sub.add_argument("--split", default="test", help="for models (default: %(default)s)")
    sub.add_argument("--stochastic", action="store_true", help="sample actions instead of taking the most probable ones")
    sub.add_argument("--n-envs", type=int, metavar="N", help="tasks played side by side (default: all)")
    sub.add_argument("--no-references", action="store_true", help="without oracle, reactive, blind and random")
    sub.add_argument("--json", action="store_true", help="print JSON")
    sub.add_argument("-o", "--output", nargs="+", type=Path, default=[], metavar="FILE", help="picture: png, svg, pdf")
    sub.set_defaults(run=compare)

    sub = commands.add_parser(
        "plot",
        help="one picture from files",
        description="adaptation, tasks, profile: from results of `evaluate -o`. learning: from log folders of SB3 and RL Zoo. "
        "attention, embeddings: from inspection.npz of `inspect`.",
    )
    sub.add_argument("kind", choices=["adaptation", "tasks", "profile", "learning", "attention", "embeddings"])
    sub.add_argument("input", nargs="+", metavar="[NAME=]PATH")
    sub.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="png, svg, pdf")
    sub.add_argument("--title", default="")
    sub.add_argument("--parameter", help="tasks, embeddings: which task parameter, for example velocity or goal[0]")
    sub.add_argument("--task", type=int, default=0, help="attention: of which inspected task (default: %(default)s)")
    sub.set_defaults(run=plot)

    sub = commands.add_parser("inspect", help="attention weights and memory embeddings while acting")
    sub.add_argument("model", help=MODEL_HELP)
    _add_model_arguments(sub)
    _add_evaluation_arguments(sub, n_episodes=2)
    sub.add_argument("--split", default="test", help="train, test, ood (default: %(default)s)")
    sub.add_argument(
        "--n-attention", type=int, default=1, metavar="N", help="attention of so many tasks (default: %(default)s)"
    )
    sub.add_argument("--json", action="store_true", help="print JSON")
    sub.add_argument("-o", "--output", type=Path, metavar="FOLDER", help="for inspection.npz, attention.png, embeddings.png")
    sub.set_defaults(run=inspect)

    sub = commands.add_parser("report", help="everything about a run in one HTML file")
    sub.add_argument("model", help=MODEL_HELP)
    _add_model_arguments(sub)
    _add_evaluation_arguments(sub)
    sub.add_argument("--split", nargs="+", metavar="SPLIT", help="default: all that the family has")
    sub.add_argument("-o", "--output", type=Path, default=Path("report.html"), metavar="FILE", help="default: %(default)s")
    sub.set_defaults(run=report)

    sub = commands.add_parser("references", help="make oracle, reactive, blind and random of a family")
    sub.add_argument("family", metavar="ID", help="registered id, for example HalfCheetahVel-v0")
    sub.add_argument("--agents", nargs="+", choices=AGENTS, default=list(AGENTS), metavar="AGENT", help=", ".join(AGENTS))
    sub.add_argument("--timesteps", type=int, metavar="N", help="steps of training of each (default: hyperparams/trmrl.yml)")
    sub.add_argument("--seeds", type=int, nargs="+", default=[0], metavar="SEED", help="seeds of training (default: 0)")
    sub.add_argument("--n-tasks", type=int, default=40, metavar="N", help="tasks of each split (default: %(default)s)")
    sub.add_argument("--n-episodes", type=int, default=6, metavar="N", help="episodes per task (default: %(default)s)")
    sub.add_argument("--eval-seed", type=int, default=0, metavar="SEED", help="seed of tasks and episodes (default: 0)")
    sub.add_argument("--env-kwargs", nargs="+", action=KeyValues, default={}, metavar="NAME:VALUE")
    sub.add_argument("--json", action="store_true", help="print the file")
    sub.add_argument(
        "-o", "--output", type=Path, metavar="PATH", help="file or folder (default: ~/.cache/sb3_trmrl/references)"
    )
    sub.set_defaults(run=references)

    add_hub_parser(commands)
    return parser


def main(command_line: Sequence[str] | None = None) -> int:
    """
    The entry point.

    :param command_line: Arguments; those of the process if None.
    :return: Exit code: 0, or 1 after an error that the user can mend. (argparse ends with 2 after wrong usage.)
    """
    command_line = sys.argv[1:] if command_line is None else list(command_line)
    arguments = make_parser().parse_args(command_line)
    arguments.command_line = command_line
    try:
        for module in arguments.gym_packages:
            importlib.import_module(module)
        arguments.run(arguments)
    except (ValueError, OSError, ImportError, gym.error.Error) as error:
        print(f"sb3-trmrl: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("sb3-trmrl: interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The model card: what the Hub shows, and the metadata that its leaderboards read."""

import json
import keyword
import re
from typing import Any

import gymnasium as gym
from huggingface_hub import EvalResult, ModelCardData

from sb3_trmrl.common.evaluation import AdaptationResult
from sb3_trmrl.envs.registration import TASK_FAMILIES, evaluation_kwargs
from sb3_trmrl.hub.description import CLASSES, ROLLOUT_BUFFERS, decode_policy_kwargs, has_tasks, wrappers_that_play

PICTURE, VIDEO = "adaptation_curve.png", "replay.mp4"
TAGS = ("reinforcement-learning", "stable-baselines3", "sb3_trmrl")
ALGORITHM_PAPERS = {
    "TrMRLPPO": "[TrMRL](https://arxiv.org/abs/2206.06614) (PPO with a transformer memory over the trial)",
    "RL2PPO": "[RL2](https://arxiv.org/abs/1611.02779) (PPO with a recurrent memory over the trial)",
}


def metadata(config: dict[str, Any], adaptation: AdaptationResult | None) -> ModelCardData:
    """
    :param config: ``config.json`` of the model
    :param adaptation: How it adapts
    :return: Metadata; ``mean_reward`` is the return of whole trials, "mean +/- deviation" over tasks, as leaderboards read it
    """
    env_id = config["environment"]["id"]
    results = None
    if adaptation is not None and env_id is not None:
        trials = adaptation.returns.sum(axis=1)
        numbers = {"mean_reward": f"{trials.mean():.2f} +/- {trials.std():.2f}"}
        for index, column in enumerate(adaptation.returns.T, start=1):
            numbers[f"return_episode_{index}"] = f"{column.mean():.2f} +/- {column.std():.2f}"
        results = [
            EvalResult(
                task_type="reinforcement-learning",
                task_name="reinforcement-learning",
                dataset_type=env_id,
                dataset_name=env_id,
                metric_type=name,
                metric_name=name,
                metric_value=value,
            )
            for name, value in numbers.items()
        ]
    tags = [*TAGS, *(["meta-reinforcement-learning"] if has_tasks(config) else []), *([env_id] if env_id is not None else [])]
    return ModelCardData(library_name="stable-baselines3", tags=tags, model_name=config["algorithm"], eval_results=results)


def adaptation_markdown(adaptation: AdaptationResult) -> str:
    """
    :param adaptation: How a model adapts
    :return: Return, and perhaps success, of each episode as a table
    """
    lower, upper = adaptation.interval()
    head = ["episode", "return, mean [95 % bootstrap interval over tasks]"]
    columns = [[f"{mean:.2f} [{low:.2f}, {up:.2f}]" for mean, low, up in zip(adaptation.curve, lower, upper, strict=True)]]
    if adaptation.success is not None:
        head.append("success")
        columns.append([f"{rate:.0%}" for rate in adaptation.success.mean(axis=0)])
    rows = [
        " | ".join(("", str(index), *cells, "")).strip() for index, cells in enumerate(zip(*columns, strict=True), start=1)
    ]
    return "\n".join(["| " + " | ".join(head) + " |", "|---" * len(head) + "|", *rows])


def training_script(config: dict[str, Any]) -> str:
    """
    :param config: ``config.json`` of a model
    :return: The Python script that trains such a model
    """
    algorithm, environment, settings = config["algorithm"], config["environment"], config["hyperparameters"]
    arguments = [f"    {json.dumps(config['policy'])},", "    env,"]
    classes: list[type] = []
    for name, value in settings.items():
        if name == "policy_kwargs":
            value = {**value, **decode_policy_kwargs({key: item for key, item in value.items() if key in CLASSES})}
            classes += [item for item in value.values() if isinstance(item, type)]
        elif name == "rollout_buffer_class" and value is not None:
            value = ROLLOUT_BUFFERS[value]
            classes.append(value)
        arguments.append(f"    {name}={_as_python(value)},")
    env_kwargs = "" if not environment["kwargs"] else f", env_kwargs={_as_python(environment['kwargs'])}"
    seed = settings.get("seed")
    imports = "from sb3_trmrl.common.env_util import make_meta_vec_env"
    for name, module in (("SimpleLinearSchedule", "rl_zoo3.utils"), ("LinearSchedule", "stable_baselines3.common.utils")):
        if f"={name}(" in "".join(arguments):
            imports = f"from {module} import {name}\n\n{imports}"
    imports = "\n".join([*sorted(f"from {cls.__module__} import {cls.__name__}" for cls in classes), imports])
    make = f"env = make_meta_vec_env({environment['id']!r}, n_envs={environment['n_envs']}, seed={seed}{env_kwargs})"
    if environment["id"] is None or environment["kwargs"] is None:
        make = f"env = ...  # {environment['n_envs']} slots; how they were made can't be told"
    if environment.get("wrappers"):
        make += f"\nenv = ...  # the same in {', '.join(environment['wrappers'])}; with which arguments can't be told"
    return "\n".join(
        [
            *_imports_of(environment["id"]),
            f"from sb3_trmrl import {algorithm}",
            imports,
            "",
            make,
            f"model = {algorithm}(",
            *arguments,
            ")",
            f"model.learn({config['training']['total_timesteps']})",
        ]
    )


def usage_script(config: dict[str, Any], repo_id: str) -> str:
    """
    :param config: ``config.json`` of a model
    :param repo_id: Where it is published
    :return: The Python script that loads it and plays it in its environment, in trials as long as those of training
    """
    imports = ["import sb3_trmrl"]
    lines = [f"model = sb3_trmrl.load({repo_id!r})  # JSON and safetensors: no code from the file is run"]
    env_id, kwargs = config["environment"]["id"], config["environment"]["kwargs"]
    if env_id is None or kwargs is None or wrappers_that_play(config["environment"]):
        pass
    elif has_tasks(config):
        others = evaluation_kwargs(kwargs)
        env_kwargs = f", env_kwargs={_as_python(others)}" if others else ""
        n_episodes = config["environment"].get("episodes_per_trial") or kwargs.get("episodes_per_trial", 2)
        arguments = f"model, {env_id!r}, n_episodes={n_episodes}{env_kwargs}"
        lines += [f"result = sb3_trmrl.evaluate_adaptation({arguments})", "print(result.curve)"]
    else:
        imports = ["import gymnasium as gym", "from stable_baselines3.common.evaluation import evaluate_policy", "", *imports]
        keywords = "".join(f", {name}={_as_python(value)}" for name, value in kwargs.items())
        lines += [f"print(evaluate_policy(model, gym.make({env_id!r}{keywords})))  # mean and deviation of the return"]
    return "\n".join([*_imports_of(env_id), *imports, "", *lines])


def _imports_of(env_id: str | None) -> list[str]:
    """:return: What has to be done before an id can be made; nothing for those that come with the package and gymnasium."""
    spec = gym.registry.get(env_id) if env_id is not None else None
    entry_point = None if spec is None else spec.entry_point
    package = (entry_point if isinstance(entry_point, str) else getattr(entry_point, "__module__", "")).partition(".")[0]
    if env_id is None or env_id in TASK_FAMILIES or package == "gymnasium":
        return []
    return [
        f"# First import the module that registers {env_id!r}" + (f", perhaps {package}" if package.isidentifier() else "")
    ]


def _as_python(value: Any) -> str:
    """:return: A value of ``config.json``, or a class, as a Python expression."""
    if isinstance(value, type):
        return value.__name__
    if isinstance(value, dict):
        if "$float" in value:
            return f"float({value['$float']!r})"
        if "$tuple" in value:
            return f"({', '.join(_as_python(item) for item in value['$tuple'])},)"
        if value.get("schedule") == "linear_to_zero":
            return f"SimpleLinearSchedule({value['start']!r})"
        if "schedule" in value:
            return f"LinearSchedule({value['start']!r}, {value['end']!r}, {value['end_fraction']!r})"
        if all(key.isidentifier() and not keyword.iskeyword(key) for key in value):
            return f"dict({', '.join(f'{key}={_as_python(item)}' for key, item in value.items())})"
        # Keys may be anybody's, and must not become code
        return f"{{{', '.join(f'{key!r}: {_as_python(item)}' for key, item in value.items())}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(_as_python, value))}]"
    return repr(value)


def model_card(
    config: dict[str, Any],
    repo_id: str,
    adaptation: AdaptationResult | None = None,
    zip_name: str | None = None,
    resumes_with: str | None = None,
) -> str:
    """
    :param config: ``config.json`` of the model
    :param repo_id: Where it is published
    :param adaptation: How it adapts; the picture of its curve lies beside the card
    :param zip_name: Name of SB3's zip beside it, if there is one
    :param resumes_with: Where training goes on from, see :func:`~sb3_trmrl.hub.pretrained.resumes_with`
    :return: ``README.md``
    """
    algorithm, env_id = config["algorithm"], config["environment"]["id"]
    steps = config["training"]["num_timesteps"]
    command = config["training"]["command"]
    on_env = f" on **{env_id}**" if env_id else ""
    environment = config["environment"]
    kind = "meta-reinforcement-learning agent" if has_tasks(config) else "reinforcement-learning agent with a memory"
    adapts = "Not told its task, it finds out within a few episodes what to do: its weights stay frozen, its memory adapts."
    sections = [
        f"---\n{metadata(config, adaptation).to_yaml()}\n---",
        f"# {algorithm}{on_env}",
        f"A {kind}{on_env}, trained for {steps:,} steps with {ALGORITHM_PAPERS.get(algorithm, algorithm)} of `sb3_trmrl`, for "
        f"[Stable-Baselines3](https://github.com/DLR-RM/stable-baselines3).{' ' + adapts if has_tasks(config) else ''}",
    ]
    if adaptation is not None:
        n_tasks, n_distinct = len(adaptation.tasks), len({str(task) for task in adaptation.tasks})
        # Tasks repeat where the family has no more, which training has met then
        what = f"One trial on each of {n_tasks} unseen tasks"
        if n_distinct < n_tasks:
            what = f"{n_tasks} trials of all {n_distinct} tasks, those of training"
        sections += [
            "## Adaptation",
            f"{what}, frozen weights, deterministic actions. `mean_reward` in the metadata is "
            "the return of the whole trial.",
            adaptation_markdown(adaptation),
            f"![Return against the episode of the trial]({PICTURE})",
        ]
    sections += ["## Usage", f"```python\n{usage_script(config, repo_id)}\n```"]
    if resumes_with is not None:
        how = {
            "running trials": "exactly where it stopped (running trials and random generators included)",
            "fresh trials": "with its optimizer and counters, in fresh trials",
        }[resumes_with]
        made_by_learn = env_id in TASK_FAMILIES and environment["kwargs"] is not None and not environment.get("wrappers")
        code = "model.learn(100_000, reset_num_timesteps=False)"
        code = code if made_by_learn else f"model.set_env(env)  # made as below\n{code}"
        sections.append(f"To go on training, {how}:\n\n```python\n{code}\n```")
    if zip_name is not None:
        sections.append(
            f"`{zip_name}` is the same model for `huggingface_sb3.load_from_hub` and `{algorithm}.load`. It is a pickle, "
            "which can run code when it is loaded; the files above can't."
        )
    sections += ["## Training"]
    if command:
        fence = "`" * max(3, 1 + max(map(len, re.findall("`+", command)), default=0))
        sections.append(f"{fence}bash\n{command}\n{fence}\n\nWhich comes to:")
    sections.append("```python\n" + training_script(config) + "\n```")
    sections.append("Versions: " + ", ".join(f"{name} {version}" for name, version in config["versions"].items()) + ".")
    return "\n\n".join(sections) + "\n"

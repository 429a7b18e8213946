"""Pictures show what they should: looked up in the figures, pixels where it counts, and in grey."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sb3_trmrl import AdaptationResult
from sb3_trmrl.common.logs import LearningCurve, read_learning_curves
from sb3_trmrl.common.references import load_references
from sb3_trmrl.inspection import Inspection
from sb3_trmrl.plots import (
    plot_adaptation_curve,
    plot_attention,
    plot_embeddings,
    plot_learning_curve,
    plot_performance_profile,
    plot_task_returns,
)
from sb3_trmrl.plots.adaptation_curve import draw_adaptation_curve
from sb3_trmrl.plots.attention import attention_figure
from sb3_trmrl.plots.learning_curve import learning_curve_figure
from sb3_trmrl.plots.ood import draw_task_returns, task_parameter, training_range
from sb3_trmrl.plots.performance_profile import draw_performance_profile
from sb3_trmrl.plots.style import AGENT_STYLES, REFERENCE_STYLES, new_figure


def result_of(returns: Any, tasks: list[dict[str, Any]] | None = None, **settings: Any) -> AdaptationResult:
    returns = np.asarray(returns, dtype=np.float64)
    tasks = [{"velocity": float(index)} for index in range(len(returns))] if tasks is None else tasks
    return AdaptationResult(tasks, returns, np.full(returns.shape, 2), None, settings=settings)


def inspection_of(n_layers: int = 2) -> Inspection:
    rng = np.random.default_rng(0)
    attention = np.tril(rng.uniform(0.1, 1.0, size=(n_layers, 1, 2, 4, 4)))
    attention /= attention.sum(axis=-1, keepdims=True)
    return Inspection(result_of(np.zeros((3, 2))), rng.normal(size=(3, 4, 5)), attention)


def lines_of(axes: Any) -> dict[str, Any]:
    return {line.get_label(): line for line in axes.get_lines()}


def test_adaptation_curve_has_the_means_the_bands_and_the_references():
    axes: Any = new_figure().subplots()
    result = result_of([[0.0, 2.0], [2.0, 6.0]])
    draw_adaptation_curve(axes, {"agent": result}, {"oracle": np.array([8.0, 9.0]), "blind": 1.0})
    lines = lines_of(axes)
    np.testing.assert_array_equal(lines["agent"].get_ydata(), [1.0, 4.0])
    np.testing.assert_array_equal(lines["agent"].get_xdata(), [1, 2])
    np.testing.assert_array_equal(lines["oracle (8.5)"].get_ydata(), [8.0, 9.0])
    np.testing.assert_array_equal(lines["blind (1)"].get_ydata(), [1.0, 1.0])
    band = axes.collections[0].get_paths()[0].vertices
    assert band[:, 1].min() == 0.0 and band[:, 1].max() == 6.0


def test_a_single_episode_is_a_point_with_its_interval():
    axes: Any = new_figure().subplots()
    draw_adaptation_curve(axes, {"first": result_of([[0.0], [2.0]]), "second": result_of([[3.0], [5.0]])}, {"oracle": 9.0})
    lines = lines_of(axes)
    assert [lines[name].get_xdata()[0] for name in ("first", "second")] == pytest.approx([0.96, 1.04])
    first, second = (collection.get_segments()[0][:, 1].tolist() for collection in axes.collections)
    assert first == [0.0, 2.0] and second == [3.0, 5.0] and axes.get_xlim() == (0.5, 1.5)


def test_several_runs_are_one_line():
    axes: Any = new_figure().subplots()
    draw_adaptation_curve(axes, {"agent": [result_of([[0.0, 2.0]]), result_of([[2.0, 6.0]])]})
    np.testing.assert_array_equal(lines_of(axes)["agent"].get_ydata(), [1.0, 4.0])


def test_lines_differ_in_grey_too():
    for styles in (AGENT_STYLES, tuple(REFERENCE_STYLES.values())):
        for first, second in itertools.combinations(styles, 2):
            assert first.linestyle != second.linestyle
    for first, second in itertools.combinations(AGENT_STYLES, 2):
        assert first.marker != second.marker
    # What is drawn has them
    axes: Any = new_figure().subplots()
    draw_adaptation_curve(axes, {str(index): result_of([[0.0, index]]) for index in range(4)})
    lines = list(lines_of(axes).values())
    assert len({(line.get_linestyle(), line.get_marker()) for line in lines}) == 4
    assert len({line.get_linestyle() + str(line._dash_pattern) for line in lines}) == 4


def test_returns_against_tasks():
    axes: Any = new_figure().subplots()
    inside, outside = result_of([[0.0, 5.0], [0.0, 7.0]]), result_of([[0.0, -1.0]], [{"velocity": 3.5}])
    lines = {"oracle": (np.array([3.0, 1.0]), np.array([30.0, 10.0]))}
    draw_task_returns(axes, {"test": inside, "ood": outside}, lines, shaded=(0.0, 3.0))
    points = {c.get_label(): c.get_offsets().tolist() for c in axes.collections}
    assert points["test"] == [[0.0, 5.0], [1.0, 7.0]] and points["ood"] == [[3.5, -1.0]]
    np.testing.assert_array_equal(lines_of(axes)["oracle"].get_xdata(), [1.0, 3.0])  # in order
    assert axes.get_xlabel() == "task: velocity"
    shading = next(patch for patch in axes.patches if patch.get_label() == "training range")
    assert (shading.get_x(), shading.get_width()) == (0.0, 3.0)


def test_returns_against_tasks_of_two_environments():
    results = {name: result_of([[0.0, 5.0]], env_id=name) for name in ("HalfCheetahVel-v0", "MetaBandit-v0")}
    with pytest.raises(ValueError, match=r"one environment.*got \['HalfCheetahVel-v0', 'MetaBandit-v0'\]"):
        draw_task_returns(new_figure().subplots(), results)
    one = {name: result_of([[0.0, 5.0]], env_id=name) for name in ("PointRobot-v0", "module:PointRobot-v0")}
    draw_task_returns(new_figure().subplots(), {**one, "made": result_of([[0.0, 5.0]], env_id=None)})


def test_parameters_of_tasks():
    goals = result_of(np.zeros((2, 1)), [{"goal": [0.0, 1.0]}, {"goal": [-1.0, 0.0]}])
    name, values = task_parameter(goals)
    assert name == "goal angle"
    np.testing.assert_allclose(values, [np.pi / 2, np.pi])
    np.testing.assert_array_equal(task_parameter(goals, "goal[1]")[1], [1.0, 0.0])
    many = result_of(np.zeros((1, 1)), [{"probabilities": [0.1, 0.2, 0.3]}])
    assert task_parameter(many)[0] == "probabilities[0]"
    with pytest.raises(ValueError, match=r"parameter must be one of \['goal\[0\]', 'goal\[1\]', 'goal angle'\], got 'speed'"):
        task_parameter(goals, "speed")
    with pytest.raises(ValueError, match="no parameters"):
        task_parameter(result_of(np.zeros((1, 1)), [{}]))


def test_training_range_is_that_of_the_family():
    low, high = training_range(result_of(np.zeros((1, 1)), env_id="HalfCheetahVel-v0", env_kwargs={})) or (0.0, 0.0)
    assert 0.0 <= low < 0.02 and 2.98 < high <= 3.0
    assert training_range(result_of(np.zeros((1, 1)), env_id=None)) is None


def test_a_result_imports_nothing(tmp_path, monkeypatch):
    (tmp_path / "module_of_a_file.py").write_text("raise AssertionError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    result = result_of(np.zeros((1, 1)), env_id="module_of_a_file:PointRobot-v0", env_kwargs={})
    assert training_range(result) is None
    assert load_references(result) is None


def test_attention_that_was_not_recorded():
    inspection = inspection_of()
    none = Inspection(inspection.result, inspection.embeddings, inspection.attention[:, :0])
    with pytest.raises(ValueError, match="no attention was recorded: inspect with n_attention of at least 1"):
        attention_figure(none)


def test_attention_is_drawn_where_it_is():
    inspection = inspection_of()
    figure = attention_figure(inspection)
    panels: list[Any] = [axes for axes in figure.axes if axes.get_title()]
    assert [axes.get_title() for axes in panels] == [f"layer {i}, head {j}" for i in (1, 2) for j in (1, 2)]
    image = panels[1].get_images()[0].get_array()
    # Multiples of the even weight 1 / t; the future is blank
    np.testing.assert_allclose(image[3, :4], inspection.attention[0, 0, 1, 3] * 4)
    assert np.ma.getmaskarray(image)[np.triu_indices(4, k=1)].all() and not np.ma.getmaskarray(image)[np.tril_indices(4)].any()
    # The second episode starts at step 3: between the second and the third column
    (vertical,) = [line for line in panels[0].get_lines() if line.get_xdata()[0] == line.get_xdata()[1]]
    assert vertical.get_xdata()[0] == 2.5


def test_learning_curves_with_their_units():
    curves = {
        "training": LearningCurve(np.arange(1, 1001), np.ones((1000, 1)), "return of a trial"),
        "held-out": LearningCurve(np.array([10, 20]), np.array([[1.0, 3.0], [5.0, 7.0]]), "return per episode"),
    }
    panels: list[Any] = learning_curve_figure(curves).axes
    left, right = panels
    assert (left.get_ylabel(), right.get_ylabel()) == ("return of a trial", "return per episode")
    np.testing.assert_array_equal(lines_of(right)["held-out"].get_ydata(), [2.0, 6.0])
    assert len(lines_of(left)["training"].get_xdata()) <= 60


def test_performance_profile_steps_down():
    axes: Any = new_figure().subplots()
    draw_performance_profile(axes, {"agent": np.array([[0.0, 1.0, 2.0, 3.0]])})
    line = lines_of(axes)["agent"]
    x, y = line.get_xdata(), line.get_ydata()
    assert y[0] == 1.0 and y[-1] == 0.0 and (np.diff(y) <= 0).all()
    assert y[np.searchsorted(x, 1.5)] == 0.5


PICTURES = {
    "adaptation": lambda path: plot_adaptation_curve({"agent": result_of([[0.0, 1.0], [2.0, 4.0]])}, path, {"blind": 0.5}),
    "tasks": lambda path: plot_task_returns({"test": result_of([[0.0, 1.0], [2.0, 4.0]])}, path, shaded=(0.0, 1.0)),
    "attention": lambda path: plot_attention(inspection_of(), path),
    "embeddings": lambda path: plot_embeddings(inspection_of(), path),
    "learning": lambda path: plot_learning_curve({"a": LearningCurve(np.array([1, 2]), np.ones((2, 1)), "return")}, path),
    "profile": lambda path: plot_performance_profile({"a": np.array([[0.0, 1.0]])}, path),
}


@pytest.mark.parametrize("kind", PICTURES)
def test_pictures_are_written(tmp_path, kind):
    from matplotlib.image import imread

    path = tmp_path / "folder" / "picture.png"
    PICTURES[kind](path)
    image = imread(path)
    assert min(image.shape[:2]) > 300 and image[..., :3].std() > 0.05
    PICTURES[kind](path.with_suffix(".svg"))
    assert "<svg" in path.with_suffix(".svg").read_text()
    with pytest.raises(ValueError, match=r"must end in one of \.png, \.svg, \.pdf, got .*picture\.bmp"):
        PICTURES[kind](path.with_suffix(".bmp"))


def test_nothing_to_draw():
    with pytest.raises(ValueError, match="this memory has no attention"):
        attention_figure(inspection_of(n_layers=0))
    with pytest.raises(ValueError, match=r"task must be in \[0, 0\].*got 3"):
        attention_figure(inspection_of(), task=3)


# ---- logs --------------------------------------------------------------------------------------------------------------


def write_monitor(path: Path, start: float, rows: list[tuple[float, int, float]]) -> None:
    lines = [f'#{{"t_start": {start}, "env_id": "X"}}', "r,l,t", *(f"{r},{length},{t}" for r, length, t in rows)]
    path.write_text("\n".join(lines) + "\n")


def test_logs_of_sb3_and_the_zoo(tmp_path):
    # Two environments; the second one's first trial ends before the first one's second
    write_monitor(tmp_path / "0.monitor.csv", 100.0, [(1.0, 10, 1.0), (3.0, 10, 3.0)])
    write_monitor(tmp_path / "1.monitor.csv", 100.0, [(2.0, 20, 2.0)])
    (tmp_path / "progress.csv").write_text("rollout/ep_rew_mean,time/total_timesteps\n,5\n1.5,10\n2.5,20\n")
    np.savez(tmp_path / "evaluations.npz", timesteps=[10, 20], results=[[1.0, 3.0], [5.0, 7.0]], ep_lengths=np.ones((2, 2)))
    np.savez(tmp_path / "meta_evaluations.npz", timesteps=[10], returns=np.arange(6.0).reshape(1, 3, 2))
    curves = read_learning_curves(tmp_path)
    assert list(curves) == ["training", "training (mean of 100 trials)", "evaluation", "held-out tasks"]
    np.testing.assert_array_equal(curves["training"].timesteps, [10, 30, 40])
    np.testing.assert_array_equal(curves["training"].returns, [[1.0], [2.0], [3.0]])
    np.testing.assert_array_equal(curves["training (mean of 100 trials)"].timesteps, [10, 20])
    np.testing.assert_array_equal(curves["evaluation"].returns, [[1.0, 3.0], [5.0, 7.0]])
    np.testing.assert_array_equal(curves["held-out tasks"].returns, [np.arange(6.0)])
    assert {curve.unit for curve in curves.values()} == {"return of a trial", "return per episode"}
    per_episode = read_learning_curves(tmp_path, episodes_per_trial=2)
    assert {curve.unit for curve in per_episode.values()} == {"return per episode"}
    np.testing.assert_array_equal(per_episode["training"].returns, [[0.5], [1.0], [1.5]])
    np.testing.assert_array_equal(per_episode["evaluation"].returns, [[0.5, 1.5], [2.5, 3.5]])
    np.testing.assert_array_equal(per_episode["held-out tasks"].returns, [np.arange(6.0)])
    longer = read_learning_curves(tmp_path, episodes_per_trial=2, evaluation_episodes_per_trial=4)
    np.testing.assert_array_equal(longer["evaluation"].returns, [[0.25, 0.75], [1.25, 1.75]])
    np.testing.assert_array_equal(longer["training"].returns, per_episode["training"].returns)


def test_success_on_held_out_tasks(tmp_path):
    success = np.array([[[True, False], [False, False]], [[True, True], [True, False]]])
    np.savez(tmp_path / "meta_evaluations.npz", timesteps=[10, 20], returns=np.zeros((2, 2, 2)), success=success)
    curve = read_learning_curves(tmp_path)["success on held-out tasks"]
    np.testing.assert_array_equal(curve.returns, [[0.25], [0.75]])
    assert curve.unit == "success rate"
    figure = learning_curve_figure(read_learning_curves(tmp_path))
    assert [axes.get_ylabel() for axes in figure.axes] == ["return per episode", "success rate"]


def test_names_that_matplotlib_would_hide_or_read(tmp_path):
    result = AdaptationResult([{}, {}], np.zeros((2, 2)), np.ones((2, 2), dtype=np.int64), None)
    figure = new_figure()
    axes = figure.add_subplot()
    draw_adaptation_curve(axes, {"_a": result, r"x$y$\frac$": result})
    legend = axes.get_legend()
    assert legend is not None and [text.get_text() for text in legend.get_texts()] == [" _a", r"x\$y\$\frac\$"]
    figure.savefig(tmp_path / "p.png")


def test_broken_logs(tmp_path):
    with pytest.raises(ValueError, match=r"no monitor\.csv, progress\.csv"):
        read_learning_curves(tmp_path)
    (tmp_path / "0.monitor.csv").write_text("r,l,t\n1,2,3\n")
    with pytest.raises(ValueError, match=r"0\.monitor\.csv is no monitor file, or it is broken"):
        read_learning_curves(tmp_path)
    (tmp_path / "0.monitor.csv").unlink()
    for value in ("x", "inf", "1" * 200_000):
        (tmp_path / "progress.csv").write_text(f"time/total_timesteps,rollout/ep_rew_mean\n{value},1\n")
        with pytest.raises(ValueError, match=r"progress\.csv is no log of SB3, or it is broken"):
            read_learning_curves(tmp_path)
    (tmp_path / "progress.csv").unlink()
    (tmp_path / "evaluations.npz").write_bytes(b"PK nothing")
    with pytest.raises(ValueError, match=r"evaluations\.npz is broken"):
        read_learning_curves(tmp_path)


def test_logs_that_were_cut_off_or_continued(tmp_path):
    path = tmp_path / "0.monitor.csv"
    # A continued one begins anew with its times, without a start of its own; the last line was cut
    path.write_text('#{"t_start": 100.0}\nr,l,t\n1,5,1.0\n2,5,3.0\n3,5,2.0\n4,5,2.5\n9,5')
    (tmp_path / "1.monitor.csv").write_text("")
    (tmp_path / "progress.csv").write_text("rollout/ep_rew_mean,time/total_timesteps\n1,10\n2,2")
    curves = read_learning_curves(tmp_path)
    assert curves["training"].returns[:, 0].tolist() == [1, 2, 3, 4]
    assert curves["training (mean of 100 trials)"].timesteps.tolist() == [10]


@pytest.mark.parametrize(
    ("timesteps", "returns"),
    [(["a", "b"], np.ones((2, 3))), (np.ones((2, 2)), np.ones((2, 3))), (np.arange(6), np.ones((2, 3)))],
)
def test_evaluations_of_other_shapes(tmp_path, timesteps, returns):
    np.savez(tmp_path / "evaluations.npz", timesteps=timesteps, results=returns)
    with pytest.raises(ValueError, match="is broken, or no file of evaluations: timesteps and results must be numbers"):
        read_learning_curves(tmp_path)


def test_tasks_with_other_parameters():
    with pytest.raises(ValueError, match="do not all have numbers of one shape for 'goal'"):
        task_parameter(result_of(np.ones((2, 1)), [{"goal": 1.0}, {"velocity": 1.0}]))

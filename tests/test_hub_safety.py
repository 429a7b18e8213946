"""
Files that nobody vouches for: each is a typed error, before anything is executed, written or made large.

Every hostile folder is loaded in one other process, which reports the error, what was imported, executed or written meanwhile,
and how much memory it took.
"""

import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from huggingface_hub.errors import LocalEntryNotFoundError
from stable_baselines3.common.utils import ConstantSchedule
from stable_baselines3.common.vec_env import VecNormalize

import sb3_trmrl
from sb3_trmrl.cli import main
from sb3_trmrl.common.env_util import make_meta_vec_env
from sb3_trmrl.hub import MalformedFileError, MissingFileError, PretrainedError
from sb3_trmrl.hub.files import MAX_DEPTH, parse_json
from sb3_trmrl.hub.pretrained import sha256_of
from sb3_trmrl.runs import load_run

KEPT = Path(__file__).parent / "data" / "pretrained_v1"
Break = Callable[[Path], None]


def rehash(folder: Path) -> None:
    """A forger writes fitting hashes, too."""
    config = json.loads((folder / "config.json").read_text())
    for name in config["files"]:
        if (folder / name).is_file():
            config["files"][name]["sha256"] = sha256_of(folder / name)
    (folder / "config.json").write_text(json.dumps(config))


def config(*path: str, value: Any) -> Break:
    """:return: Sets one value of ``config.json``."""

    def break_it(folder: Path) -> None:
        data = json.loads((folder / "config.json").read_text())
        inner = data
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = value
        (folder / "config.json").write_text(json.dumps(data))

    return break_it


def encoder(**kwargs: Any) -> Break:
    known = dict(embed_dim=8, n_heads=2, n_layers=1, ff_dim=8)
    return config("hyperparameters", "policy_kwargs", "memory_encoder_kwargs", value={**known, **kwargs})


def content(name: str, data: bytes | str, keep_hash: bool = False) -> Break:
    """:return: Replaces a file."""

    def break_it(folder: Path) -> None:
        (folder / name).write_bytes(data if isinstance(data, bytes) else data.encode())
        if name != "config.json" and not keep_hash:
            rehash(folder)

    return break_it


def truncated(name: str, keep_hash: bool = False) -> Break:
    def break_it(folder: Path) -> None:
        content(name, (folder / name).read_bytes()[:-100], keep_hash)(folder)

    return break_it


def tensors(name: str, change: Callable[[dict[str, np.ndarray]], Any]) -> Break:
    """:return: Writes a safetensors file again, with other tensors."""

    def break_it(folder: Path) -> None:
        arrays = {key: array.copy() for key, array in safetensors.numpy.load_file(folder / name).items()}
        change(arrays)
        safetensors.numpy.save_file(arrays, folder / name)
        rehash(folder)

    return break_it


def header(text: str, claim: int | None = None, name: str = "model.safetensors") -> Break:
    """:return: A safetensors file with this header, perhaps claiming that it is of another length."""
    return content(name, struct.pack("<Q", len(text) if claim is None else claim) + text.encode() + bytes(64))


def state(change: Callable[[dict[str, Any]], Any]) -> Break:
    def break_it(folder: Path) -> None:
        data = json.loads((folder / "training.json").read_text())
        change(data)
        content("training.json", json.dumps(data))(folder)

    return break_it


def link(name: str, target: str | None) -> Break:
    """:return: Puts a link there, or a named pipe."""

    def break_it(folder: Path) -> None:
        (folder / name).unlink()
        if target is None:
            os.mkfifo(folder / name)
        else:
            (folder / name).symlink_to(target)

    return break_it


class Exploit:
    """Its pickle makes a file when it is loaded."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("pwned",)


DEEP = '{"a":' * 10_000 + "1" + "}" * 10_000
TEN_GB = json.dumps({"log_std": {"dtype": "F32", "shape": [2_500_000_000], "data_offsets": [0, 10_000_000_000]}})
SPACE: dict[str, Any] = {"type": "Box", "dtype": "float32", "shape": [6], "low": -1.0, "high": 1.0}

LARGE: dict[str, Any] = {**SPACE, "shape": [10**5]}
NESTED: dict[str, Any] = {"type": "Dict", "spaces": {"a": {**SPACE, "shape": [1 << 24]}, "b": {"type": "Dict", "spaces": {}}}}
NESTED["spaces"]["b"]["spaces"]["c"] = SPACE

HOSTILE: dict[str, tuple[str, Break]] = {
    # -- JSON
    "config-empty": ("MalformedFileError", content("config.json", "")),
    "config-truncated": ("MalformedFileError", truncated("config.json")),
    "config-no-json": ("MalformedFileError", content("config.json", "import os")),
    "config-list": ("MalformedFileError", content("config.json", "[]")),
    "config-binary": ("MalformedFileError", content("config.json", bytes(range(256)))),
    "config-pickle": ("MalformedFileError", content("config.json", pickle.dumps(Exploit()))),
    "config-objects-10000-deep": ("MalformedFileError", content("config.json", DEEP)),
    "config-lists-10000-deep": ("MalformedFileError", content("config.json", "[" * 10_000 + "]" * 10_000)),
    "config-unclosed": ("MalformedFileError", content("config.json", '{"a":' * 10_000)),
    "config-deep-value": (
        "MalformedFileError",
        config("hyperparameters", "policy_kwargs", value=json.loads("[" * 40 + "]" * 40)),
    ),
    "config-nan": ("MalformedFileError", content("config.json", '{"a": NaN}')),
    "config-key-twice": ("MalformedFileError", content("config.json", '{"format": "sb3_trmrl", "format": "sb3_trmrl"}')),
    "config-long-number": ("MalformedFileError", content("config.json", '{"a": ' + "1" * 5000 + "}")),
    "config-unclosed-string": ("MalformedFileError", content("config.json", '"' + '\\"' * 500_000)),
    "config-17-MB": ("MalformedFileError", content("config.json", '{"a": "' + "x" * 17_000_000 + '"}')),
    "training-10000-deep": ("MalformedFileError", content("training.json", DEEP)),
    "training-3-million-values": ("MalformedFileError", content("training.json", '{"a": [' + "0," * 3_000_000 + "0]}")),
    "training-40-MB": ("MalformedFileError", content("training.json", '{"a": "' + "x" * 40_000_000 + '"}')),
    # -- What config.json says
    "other-format": ("MalformedFileError", config("format", value="transformers")),
    "later-version": ("UnsupportedVersionError", config("format_version", value=2)),
    "no-version": ("MalformedFileError", config("format_version", value="1")),
    "unknown-algorithm": ("UnknownNameError", config("algorithm", value="subprocess.Popen")),
    "algorithm-list": ("MalformedFileError", config("algorithm", value=["TrMRLPPO"])),
    "unknown-policy": ("UnknownNameError", config("policy", value="MlpPolicy")),
    "unknown-encoder": ("UnknownNameError", config("hyperparameters", "policy_kwargs", "memory_encoder", value="os.system")),
    "unknown-activation": (
        "UnknownNameError",
        config("hyperparameters", "policy_kwargs", "activation_fn", value="torch.load"),
    ),
    "unknown-hyperparameter": ("UnknownNameError", config("hyperparameters", "callback", value="evil")),
    "private-hyperparameter": ("UnknownNameError", config("hyperparameters", "_init_setup_model", value=True)),
    "unknown-policy-keyword": ("MalformedFileError", config("hyperparameters", "policy_kwargs", "evil", value=1)),
    "policy-kwargs-list": ("MalformedFileError", config("hyperparameters", "policy_kwargs", value=[1])),
    "gamma-text": ("MalformedFileError", config("hyperparameters", "gamma", value="0.9")),
    "steps-true": ("MalformedFileError", config("hyperparameters", "n_steps", value=True)),
    "steps-negative": ("MalformedFileError", config("hyperparameters", "n_steps", value=-1)),
    "schedule-code": ("MalformedFileError", config("hyperparameters", "learning_rate", value="lambda p: p")),
    "schedule-unknown": (
        "MalformedFileError",
        config("hyperparameters", "learning_rate", value={"schedule": "eval", "code": "1"}),
    ),
    "form-unknown": ("MalformedFileError", config("hyperparameters", "rollout_buffer_kwargs", value={"$call": "os.system"})),
    "sections-missing": ("MalformedFileError", config("environment", value=None)),
    "kwargs-code": ("MalformedFileError", config("environment", "kwargs", value={"a=__import__('os').system('x'), b": 1})),
    "wrappers-number": ("MalformedFileError", config("environment", "wrappers", value=1)),
    "wrappers-code": ("MalformedFileError", config("environment", "wrappers", value=["x\nimport os"])),
    "kwargs-number": ("MalformedFileError", config("environment", "kwargs", value={"$float": "nan"})),
    "kwargs-tuple": ("MalformedFileError", config("environment", "kwargs", value={"$tuple": [1]})),
    "kwargs-window": ("MalformedFileError", config("environment", "kwargs", value={"render_mode": "human"})),
    "no-algorithm": ("MalformedFileError", config("algorithm", value=None)),
    "no-policy": ("MalformedFileError", config("policy", value=None)),
    "no-hyperparameters": ("MalformedFileError", config("hyperparameters", value=None)),
    # -- Paths
    "path-outside": ("UnknownNameError", config("files", "../../model.safetensors", value={"sha256": ""})),
    "path-absolute": ("UnknownNameError", config("files", "/etc/passwd", value={"sha256": ""})),
    "no-weights-listed": ("MalformedFileError", config("files", value={})),
    "link-outside": ("MalformedFileError", link("model.safetensors", "/etc/hostname")),
    "link-to-device": ("MalformedFileError", link("config.json", "/dev/zero")),
    "link-to-itself": ("MissingFileError", link("config.json", "config.json")),
    "pipe": ("MalformedFileError", link("config.json", None)),
    "no-config": ("MissingFileError", lambda folder: (folder / "config.json").unlink()),
    "no-weights": ("MissingFileError", lambda folder: (folder / "model.safetensors").unlink()),
    # -- Sizes
    "embed-dim-10^9": ("MalformedFileError", encoder(embed_dim=10**9)),
    "embed-dim-10^6": ("WrongTensorsError", encoder(embed_dim=10**6)),
    "layers-10^6": ("WrongTensorsError", encoder(n_layers=10**6)),
    "memory-length-10^12": ("MalformedFileError", encoder(memory_length=10**12)),
    "table-of-positions": ("MalformedFileError", encoder(memory_length=10**9, positions="sinusoidal", attention="window")),
    "heads-0": ("MalformedFileError", encoder(n_heads=0)),
    "net-arch-10^9": ("WrongTensorsError", config("hyperparameters", "policy_kwargs", "net_arch", value=[10**9])),
    "net-arch-deep": ("WrongTensorsError", config("hyperparameters", "policy_kwargs", "net_arch", value=[8] * 100_000)),
    "steps-10^12": ("MalformedFileError", config("hyperparameters", "n_steps", value=10**12)),
    "envs-10^9": ("MalformedFileError", config("environment", "n_envs", value=10**9)),
    "space-10^12": ("MalformedFileError", config("observation_space", value={**SPACE, "shape": [10**6, 10**6]})),
    "space-negative": ("MalformedFileError", config("observation_space", value={**SPACE, "shape": [-1]})),
    "space-dtype": ("MalformedFileError", config("observation_space", value={**SPACE, "dtype": "O"})),
    "space-bounds": ("MalformedFileError", config("observation_space", value={**SPACE, "low": [0.0, 1.0]})),
    "space-of-1000-parts": (
        "MalformedFileError",
        config("observation_space", value={"type": "Dict", "spaces": dict.fromkeys(map(str, range(1000)), LARGE)}),
    ),
    "space-in-spaces": ("MalformedFileError", config("observation_space", value=NESTED)),
    "space-unknown": ("UnknownNameError", config("observation_space", value={"type": "Text"})),
    "actions-10^12": ("MalformedFileError", config("action_space", value={"type": "Discrete", "n": 10**12, "start": 0})),
    "actions-other": ("WrongTensorsError", config("action_space", value={"type": "Discrete", "n": 3, "start": 0})),
    # -- safetensors
    "weights-empty": ("MalformedFileError", content("model.safetensors", b"")),
    "weights-truncated": ("MalformedFileError", truncated("model.safetensors")),
    "weights-truncated-hash-kept": ("MalformedFileError", truncated("model.safetensors", keep_hash=True)),
    "weights-other": ("MalformedFileError", content("model.safetensors", safetensors.numpy.save({}), keep_hash=True)),
    "weights-pickle": ("MalformedFileError", content("model.safetensors", pickle.dumps(Exploit()))),
    "weights-zip": ("MalformedFileError", content("model.safetensors", b"PK\x03\x04" + bytes(1000))),
    "header-of-10-GB": ("MalformedFileError", header("{}", claim=10**10)),
    "header-of-10-MB": ("MalformedFileError", header('{"__metadata__": {"a": "' + "x" * 10**7 + '"}}')),
    "header-10000-deep": ("MalformedFileError", header(DEEP)),
    "header-no-json": ("MalformedFileError", header("import os")),
    "tensor-of-10-GB": ("MalformedFileError", header(TEN_GB)),
    "wrong-shape": ("WrongTensorsError", tensors("model.safetensors", lambda t: t.update(log_std=np.zeros(3, np.float32)))),
    "wrong-dtype": ("WrongTensorsError", tensors("model.safetensors", lambda t: t.update(log_std=np.zeros(2, np.float64)))),
    "strange-dtype": ("WrongTensorsError", tensors("model.safetensors", lambda t: t.update(log_std=np.zeros(2, np.uint32)))),
    "weights-nan": ("WrongTensorsError", tensors("model.safetensors", lambda t: t["log_std"].fill(np.nan))),
    "tensor-missing": ("WrongTensorsError", tensors("model.safetensors", lambda t: t.pop("log_std"))),
    "tensor-too-many": ("WrongTensorsError", tensors("model.safetensors", lambda t: t.update(evil=np.zeros(1, np.float32)))),
    # -- Training state
    "optimizer-pickle": ("MalformedFileError", content("optimizer.safetensors", pickle.dumps(Exploit()))),
    "optimizer-truncated": ("MalformedFileError", truncated("optimizer.safetensors")),
    "optimizer-shape": (
        "WrongTensorsError",
        tensors("optimizer.safetensors", lambda t: t.update({"policy.optimizer/0/exp_avg": np.zeros(7, np.float32)})),
    ),
    "optimizer-scalar": (
        "WrongTensorsError",
        tensors("optimizer.safetensors", lambda t: t.update({"policy.optimizer/0/exp_avg": np.zeros((), np.float32)})),
    ),
    "optimizer-half": (
        "WrongTensorsError",
        tensors(
            "optimizer.safetensors",
            lambda t: t.update({"policy.optimizer/0/exp_avg": t["policy.optimizer/0/exp_avg"].astype(np.float16)}),
        ),
    ),
    "optimizer-nan": (
        "WrongTensorsError",
        tensors("optimizer.safetensors", lambda t: t["policy.optimizer/0/exp_avg"].fill(np.nan)),
    ),
    "optimizer-steps": (
        "WrongTensorsError",
        tensors("optimizer.safetensors", lambda t: t["policy.optimizer/0/step"].fill(-1)),
    ),
    "optimizer-part-missing": (
        "WrongTensorsError",
        tensors("optimizer.safetensors", lambda t: t.pop("policy.optimizer/0/exp_avg")),
    ),
    "optimizer-part-unknown": (
        "WrongTensorsError",
        tensors("optimizer.safetensors", lambda t: t.update({"policy.optimizer/0/evil": t["policy.optimizer/0/exp_avg"]})),
    ),
    "optimizer-other-settings": (
        "WrongTensorsError",
        config("hyperparameters", "policy_kwargs", "optimizer_kwargs", value={"amsgrad": True}),
    ),
    "betas-three": ("WrongTensorsError", state(lambda s: s["optimizers"]["policy.optimizer"][0].update(betas=[0.9] * 3))),
    "betas-one": ("WrongTensorsError", state(lambda s: s["optimizers"]["policy.optimizer"][0].update(betas=0.9))),
    "eps-without-end": ("WrongTensorsError", state(lambda s: s["optimizers"]["policy.optimizer"][0].update(eps=10**400))),
    "optimizer-stranger": (
        "WrongTensorsError",
        tensors("optimizer.safetensors", lambda t: t.update({"__class__/0/x": np.zeros(1, np.float32)})),
    ),
    "optimizer-parameter": (
        "WrongTensorsError",
        tensors("optimizer.safetensors", lambda t: t.update({"policy.optimizer/999/exp_avg": np.zeros(1, np.float32)})),
    ),
    "optimizer-large": (
        "WrongTensorsError",
        tensors("optimizer.safetensors", lambda t: t.update(x=np.zeros(10**6, np.float32))),
    ),
    "optimizer-numbers": ("WrongTensorsError", state(lambda s: s["optimizers"].update({"policy.optimizer": []}))),
    "learning-rate-text": ("WrongTensorsError", state(lambda s: s["optimizers"]["policy.optimizer"][0].update(lr="1"))),
    "arrays-truncated": ("MalformedFileError", truncated("training.safetensors")),
    "array-missing": ("MalformedFileError", state(lambda s: s.update(rng={"$array": "nowhere"}))),
    "counters-of-config-negative": ("MalformedFileError", config("training", "n_iterations", value=-5)),
    "counters-of-config-huge": ("MalformedFileError", config("training", "n_updates", value=10**400)),
    "counter-missing": ("MalformedFileError", state(lambda s: s["counters"].pop("num_timesteps"))),
    "counter-text": ("MalformedFileError", state(lambda s: s["counters"].update(num_timesteps="1"))),
    "counter-nan": ("MalformedFileError", state(lambda s: s["counters"].update(num_timesteps={"$float": "nan"}))),
    "counter-negative": ("MalformedFileError", state(lambda s: s["counters"].update(num_timesteps=-5))),
    "counter-without-end": ("MalformedFileError", state(lambda s: s["counters"].update(_n_updates=10**400))),
    "infos-text": ("MalformedFileError", state(lambda s: s["infos"].update(ep_info_buffer=[{"r": "x", "l": 3}]))),
    "infos-part": ("MalformedFileError", state(lambda s: s["infos"].update(ep_info_buffer=[{"l": 3}]))),
    "infos-success": ("MalformedFileError", state(lambda s: s["infos"].update(ep_success_buffer=["yes"]))),
    "infos-no-episode": ("MalformedFileError", state(lambda s: s["infos"].update(trial_info_buffer=[{"returns": []}]))),
    "infos-number": ("MalformedFileError", state(lambda s: s["infos"].update(ep_info_buffer=3))),
    "training-empty": ("MalformedFileError", content("training.json", "{}")),
}

SCRIPT = """
import json, resource, sys
import sb3_trmrl
from sb3_trmrl.hub import PretrainedError
from tests.audit import watch
kept, *folders = sys.argv[1:]
# What torch imports on first use is not the files' doing
sb3_trmrl.load(kept, device="cpu")
events = watch()
results = {}
def peak():
    if sys.platform == "darwin":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    # Elsewhere that of getrusage is at least the parent's
    return next(int(line.split()[1]) / 2**10 for line in open("/proc/self/status") if line.startswith("VmHWM"))
for folder in folders:
    before = peak()
    events.clear()
    try:
        sb3_trmrl.load(folder, device="cpu")
        kind, text = "loaded", ""
    except PretrainedError as error:
        kind, text = type(error).__name__, str(error)
    loading = list(events)
    results[folder.rpartition("/")[2]] = [kind, text, loading, peak() - before]
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    parent = tmp_path_factory.mktemp("hostile")
    for name, (_, break_it) in HOSTILE.items():
        shutil.copytree(KEPT, parent / name)
        break_it(parent / name)
    shutil.copytree(KEPT, parent / "whole")
    rehash(parent / "whole")
    before = {path: path.stat().st_mtime_ns for path in parent.rglob("*") if path.is_file()}
    process = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(KEPT), *(str(parent / name) for name in [*HOSTILE, "whole"])],
        cwd=parent,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert process.returncode == 0, process.stderr
    # Nothing was made or changed
    assert {path: path.stat().st_mtime_ns for path in parent.rglob("*") if path.is_file()} == before
    assert not (parent / "pwned").exists()
    result: dict[str, Any] = json.loads(process.stdout.splitlines()[-1])
    return result


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_folder_is_a_typed_error_and_nothing_happens(name: str, results: dict[str, Any]) -> None:
    kind, text, events, grown = results[name]
    assert kind == HOSTILE[name][0], text
    assert events == []
    # MB; the largest is that of 32 MB of JSON, read and taken apart
    assert grown < 200
    # A message, not a dump of the file
    assert 20 < len(text) < 1000


def test_the_same_folder_unbroken_loads(results: dict[str, Any]) -> None:
    # A test of the test: rewriting config.json and its hashes breaks nothing
    assert results["whole"][0] == "loaded"


def test_strings_do_not_hide_structure() -> None:
    assert parse_json(rb'{"a": "[[[[{{{{\"[[", "b\\": ["]"]}', "x") == {"a": '[[[[{{{{"[[', "b\\": ["]"]}
    deepest = b"[" * MAX_DEPTH + b"]" * MAX_DEPTH
    parse_json(deepest, "x")
    parse_json(b'{"a": "\\"' + b"[" * 100 + b'"}', "x")
    for bad in (b"[" + deepest + b"]", b'"' + deepest + b"[", b'{"a": "\\\\"' + b"[" * 100 + b'"}'):
        with pytest.raises(MalformedFileError):
            parse_json(bad, "x")


def test_no_folder_and_no_repository(tmp_path: Path) -> None:
    for nothing in (tmp_path / "nothing", str(tmp_path / "nothing"), "nothing", "../a/b/c", "./nothing", "../nothing"):
        with pytest.raises(MissingFileError, match="There is no folder"):
            sb3_trmrl.load(nothing)
    with pytest.raises(MissingFileError, match=r"holds no config.json"):
        sb3_trmrl.load(tmp_path)
    with pytest.raises(LocalEntryNotFoundError, match=r"There is no folder checkpoints/best here, and the Hub can't be asked"):
        sb3_trmrl.load("checkpoints/best", local_files_only=True, cache_dir=tmp_path)


def test_links_of_the_hubs_cache_are_followed(tmp_path: Path) -> None:
    # <repository>/snapshots/<commit>/<name> -> <repository>/blobs/<hash> -> <cache>/blobs/<xx>/<hash>
    repository, shared = tmp_path / "models--a--b", tmp_path / "blobs"
    snapshot, blobs = repository / "snapshots" / "0123", repository / "blobs"
    for folder in (snapshot, blobs, shared / "ab"):
        folder.mkdir(parents=True)
    for path in KEPT.iterdir():
        shutil.copy(path, shared / "ab" / path.name)
        (blobs / path.name).symlink_to(f"../../blobs/ab/{path.name}")
        (snapshot / path.name).symlink_to(f"../../blobs/{path.name}")
    assert sb3_trmrl.load(snapshot, device="cpu").num_timesteps == 300
    # but only from there
    shutil.copytree(snapshot, repository / "other" / "0123", symlinks=True)
    with pytest.raises(MalformedFileError, match="leads out of the folder"):
        sb3_trmrl.load(repository / "other" / "0123")


@pytest.mark.parametrize("kwargs", [{"n_arms": 10**9}, {"n_arms": -1}, {"horizon": 10**9}, {"n_arms": "3"}])
def test_an_environment_that_takes_much_memory_is_not_made(
    kwargs: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(KEPT, tmp_path / "model")
    config("environment", value={"id": "MetaBandit-v0", "kwargs": kwargs, "n_envs": 2})(tmp_path / "model")

    def make(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("made before it is checked")

    monkeypatch.setattr("gymnasium.make", make)
    with pytest.raises(MalformedFileError, match=next(iter(kwargs))):
        sb3_trmrl.load(tmp_path / "model", device="cpu").learn(10)
    with pytest.raises(MalformedFileError, match=next(iter(kwargs))):
        load_run(tmp_path / "model")


def test_a_wrong_argument_is_not_the_files_fault() -> None:
    with pytest.raises(RuntimeError, match="device"):
        sb3_trmrl.load(KEPT, device="gpu")
    with pytest.raises(PretrainedError, match="env does not fit"):
        sb3_trmrl.load(KEPT, env="CartPole-v1")
    with pytest.raises(ValueError, match="would normalise the previous action") as caught:
        sb3_trmrl.load(KEPT, env=VecNormalize(make_meta_vec_env("PointRobot-v0", 2)))
    assert not isinstance(caught.value, PretrainedError)


def test_info_of_a_file_does_not_command_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(KEPT, tmp_path / "model")
    config("training", "command", value="python \x1b]0;owned\x07\x1b[2J train.py")(tmp_path / "model")
    assert main(["hub", "info", str(tmp_path / "model")]) == 0
    shown = capsys.readouterr().out
    config("training", value="\x1b]0;owned\x07\x1b[2J")(tmp_path / "model")
    assert main(["hub", "info", str(tmp_path / "model")]) == 1
    errors = capsys.readouterr().err
    assert "\x1b" not in errors and "\x07" not in errors and "owned" in errors
    assert "\x1b" not in shown and "\x07" not in shown and r"python \x1b]0;owned\x07\x1b[2J train.py" in shown


def test_schedules_are_no_back_door() -> None:
    # SB3's schedules take anything: a schedule that holds a function is one
    from sb3_trmrl.hub import NotDescribableError
    from sb3_trmrl.hub.description import encode_schedule

    with pytest.raises(NotDescribableError):
        encode_schedule(ConstantSchedule(lambda: 1), "clip_range")  # type: ignore[arg-type]

"""What pip gives a user: one version everywhere, the yaml files, the type marker, nothing of the repository around them."""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import sb3_trmrl

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = Path(sb3_trmrl.__file__).resolve().parent
VERSION = (ROOT / "sb3_trmrl" / "version.txt").read_text(encoding="utf-8").strip()


IMPORTS_EACH_ALONE = """
import os, sys
import gymnasium, huggingface_hub, matplotlib, rl_zoo3, sb3_contrib, torch  # what takes long, once
import sb3_trmrl  # which every import of a module begins with
for module in sys.argv[1:]:
    child = os.fork()
    if child == 0:
        __import__(module)
        os._exit(0)  # a failed import ends with 1
    assert os.waitpid(child, 0)[1] == 0, module
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="imports in forks")
def test_every_module_can_be_imported_first() -> None:
    modules = [path.relative_to(PACKAGE.parent).with_suffix("") for path in sorted(PACKAGE.rglob("*.py"))]
    names = [".".join(path.parts).removesuffix(".__init__") for path in modules if path.name != "__main__"]
    names = [name for name in names if "metaworld" not in name]  # needs an extra
    assert "sb3_trmrl.hub.commands" in names
    run(sys.executable, "-c", IMPORTS_EACH_ALONE, *names, cwd=ROOT, SB3_TRMRL_NO_ZOO_HOOK="1")


def metadata_requirements() -> list[Requirement]:
    return [Requirement(line) for line in importlib.metadata.requires("sb3_trmrl") or []]


def pins() -> list[Requirement]:
    """The pins of constraints.txt that apply to this interpreter."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    requirements = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return [requirement for requirement in requirements if requirement.marker is None or requirement.marker.evaluate()]


def run(*command: str, cwd: Path, **env: str) -> str:
    result = subprocess.run(
        command, cwd=cwd, env={**os.environ, **env}, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, f"{' '.join(command)}\n{result.stdout}\n{result.stderr}"
    return result.stdout


def test_version_is_the_same_everywhere() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+((a|b|rc)\d+)?", VERSION)
    assert sb3_trmrl.__version__ == VERSION
    assert importlib.metadata.version("sb3_trmrl") == VERSION, "reinstall after a change of version.txt: make install"
    assert f"\nversion: {VERSION}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")


def test_py_typed_is_shipped() -> None:
    assert (PACKAGE / "py.typed").is_file()


def test_hyperparams_are_found_and_readable() -> None:
    folder = sb3_trmrl.hyperparams_dir()
    names = sorted(path.name for path in folder.glob("*.yml"))
    assert names == sorted(path.name for path in (ROOT / "hyperparams").glob("*.yml"))
    assert "trmrl_paper.yml" in names
    for name in names:
        blocks = yaml.safe_load((folder / name).read_text(encoding="utf-8"))
        assert isinstance(blocks, dict) and blocks, f"{name} holds no environment"


def test_dependencies_keep_clear_of_known_traps() -> None:
    names = {canonicalize_name(requirement.name) for requirement in metadata_requirements()}
    # huggingface-sb3 overwrites the folder of sb3-team-hf-integration; rliable is archived and breaks with pandas 3
    assert not names & {"huggingface-sb3", "rliable"}
    # rl_zoo3 imports requests, gymnasium's MuJoCo environments import imageio and packaging, and none of them declares it
    assert names >= {"requests", "imageio", "packaging"}


def test_constraints_pin_every_direct_dependency_once_and_within_its_bounds() -> None:
    pinned = {}
    for pin in pins():
        (specifier,) = pin.specifier
        assert specifier.operator == "==", f"not a pin: {pin}"
        name = canonicalize_name(pin.name)
        assert name not in pinned, f"{name} is pinned twice"
        pinned[name] = specifier.version
    for requirement in metadata_requirements():
        marker = requirement.marker
        # The extras are those that `make docs` and `make test` install
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in ("docs", "tests")):
            version = pinned.get(canonicalize_name(requirement.name))
            assert version is not None, f"constraints.txt has no pin for {requirement.name}"
            assert requirement.specifier.contains(version), f"constraints.txt pins {version}, setup.py wants {requirement}"


@pytest.mark.slow
def test_wheel_from_sdist_holds_the_package_and_nothing_else(tmp_path: Path) -> None:
    # A copy, since a build leaves folders behind, and a stale build folder would find its way into the wheel
    source, dist, site = tmp_path / "source", tmp_path / "dist", tmp_path / "site"
    leftovers = shutil.ignore_patterns(".*", "__pycache__", "build", "dist", "*.egg-info", "logs", "runs", "venv")
    shutil.copytree(ROOT, source, ignore=leftovers)
    dist.mkdir()

    build_sdist = f"from setuptools import build_meta; build_meta.build_sdist({str(dist)!r})"
    run(sys.executable, "-c", build_sdist, cwd=source)
    (sdist,) = dist.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        shipped = {"/".join(name.split("/")[1:]) for name in archive.getnames()}
    assert {"setup.py", "LICENSE", "README.md", "constraints.txt"} <= shipped
    assert not [name for name in shipped if name.startswith(("tests", "examples", "benchmarks", "docs"))]

    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    run(*pip, "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", str(dist), str(sdist), cwd=tmp_path)
    (wheel,) = dist.glob("*.whl")
    assert wheel.name == f"sb3_trmrl-{VERSION}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    start_up = ROOT / "sb3_trmrl" / "zoo" / "start_up"
    paths = [path for path in (ROOT / "sb3_trmrl").rglob("*.py") if not path.is_relative_to(start_up)]
    modules = {path.relative_to(ROOT).as_posix() for path in paths}
    # Where Python executes them when it starts
    modules |= {"sb3_trmrl_zoo_hook.pth", "sb3_trmrl_zoo_hook.py"}
    settings = {f"sb3_trmrl/hyperparams/{path.name}" for path in (ROOT / "hyperparams").glob("*.yml")}
    settings |= {f"sb3_trmrl/references/{path.name}" for path in (ROOT / "sb3_trmrl" / "references").glob("*.json")}
    package = modules | settings | {"sb3_trmrl/py.typed", "sb3_trmrl/version.txt"}
    assert {name for name in names if ".dist-info/" not in name} == package

    # Away from the repository, the installed wheel stands alone
    run(*pip, "install", "--no-deps", "--no-index", "--target", str(site), str(wheel), cwd=tmp_path)
    script = "import sb3_trmrl; print(sb3_trmrl.__file__); print(sb3_trmrl.hyperparams_dir()); print(sb3_trmrl.__version__)"
    where, folder, version = run(sys.executable, "-c", script, cwd=tmp_path, PYTHONPATH=str(site)).splitlines()[-3:]
    assert Path(where).is_relative_to(site)
    assert Path(folder) == site.resolve() / "sb3_trmrl" / "hyperparams"
    assert version == VERSION

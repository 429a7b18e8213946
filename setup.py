"""Metadata of the distribution ``sb3-trmrl``. ``pyproject.toml`` holds the configuration of the tools and nothing else."""

from pathlib import Path
from typing import ClassVar

from setuptools import Command, Distribution, find_packages, setup

ROOT = Path(__file__).resolve().parent
README = ROOT / "README.md"
START_UP = Path("sb3_trmrl", "zoo", "start_up")


class DistributionWithData(Distribution):
    """Editable installs leave data files out, since setuptools asks for ``has_data`` and has ``has_data_files``."""

    def has_data(self) -> bool:
        return self.has_data_files()


class InstallBesidePackage(Command):
    """Puts the data files beside the package, in wheels and in editable installs: there Python looks for ``.pth`` files."""

    user_options: ClassVar[list[tuple[str, str, str]]] = []

    def initialize_options(self) -> None:
        self.install_dir = ""
        self.outfiles: list[str] = []

    def finalize_options(self) -> None:
        self.install_dir = self.get_finalized_command("install").install_lib or self.install_dir

    def run(self) -> None:
        for _, files in self.distribution.data_files or []:
            for file in files:
                self.outfiles.append(self.copy_file(file, self.install_dir)[0])

    def get_outputs(self) -> list[str]:
        return self.outfiles


setup(
    name="sb3_trmrl",
    version=(ROOT / "sb3_trmrl" / "version.txt").read_text(encoding="utf-8").strip(),
    description="Meta-reinforcement learning with memory (TrMRL and its baselines) for Stable-Baselines3",
    long_description=README.read_text(encoding="utf-8") if README.is_file() else "",
    long_description_content_type="text/markdown",
    author="sb3_trmrl contributors",
    license="MIT",
    license_files=["LICENSE"],
    keywords=[
        "meta-reinforcement-learning",
        "reinforcement-learning",
        "transformers",
        "stable-baselines3",
        "gymnasium",
        "mujoco",
        "pytorch",
    ],
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Operating System :: MacOS",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    python_requires=">=3.10",
    # The yaml files stand at the top of the repository, where a user of RL Zoo looks for them, and are part of the package:
    # `sb3_trmrl.hyperparams_dir()` finds them in the wheel as well as in an editable install.
    packages=[*find_packages(include=["sb3_trmrl", "sb3_trmrl.*"]), "sb3_trmrl.hyperparams"],
    package_dir={"sb3_trmrl.hyperparams": "hyperparams"},
    package_data={"sb3_trmrl": ["py.typed", "version.txt", "references/*.json"], "sb3_trmrl.hyperparams": ["*.yml"]},
    include_package_data=False,
    # The start-up files for RL Zoo: why, and why outside the package, see sb3_trmrl_zoo_hook.py
    data_files=[("", [str(START_UP / f"sb3_trmrl_zoo_hook.{suffix}") for suffix in ("pth", "py")])],
    distclass=DistributionWithData,
    cmdclass={"install_data": InstallBesidePackage},
    entry_points={"console_scripts": ["sb3-trmrl=sb3_trmrl.cli:main"]},
    zip_safe=False,
    # constraints.txt holds the versions that the tests ran with.
    install_requires=[
        "stable_baselines3>=2.9.2,<3",
        "sb3_contrib>=2.9.2,<3",
        # Brings `sb3-team-hf-integration` (import name `huggingface_sb3`). Never add `huggingface-sb3`: same folder, stale.
        "rl_zoo3>=2.9.2,<3",
        "gymnasium>=1.1,<2",
        "mujoco>=3.3,<5",  # Meta-World pins 3.3.0
        "numpy>=1.26,<3",
        "cloudpickle>=2.2,<4",  # as SB3: functions that make environments, on their way to other processes
        "torch>=2.8,<3",
        "safetensors>=0.5,<1",
        "huggingface_hub>=2.0,<3",
        "requests>=2.31,<3",  # imported by rl_zoo3, which got it from huggingface_hub 1.x
        # rl_zoo3 imports them for `-optimize`, `--tensorboard-log` and its plots and depends on none of them (its extra plots
        # brings the archived rliable); its plots fail with pandas 3
        "matplotlib>=3.8,<4",
        "pandas>=2.2,<3",
        "scipy>=1.11,<2",
        "seaborn>=0.13,<1",
        "tensorboard>=2.19,<3",
        "imageio>=2.34,<3",  # imported by gymnasium's MuJoCo environments, as is packaging
        "packaging>=23.0",
        "pyyaml>=6.0,<7",
        "tqdm>=4.66,<5",  # SB3's progress bar, with rich
        "rich>=13.0,<16",
    ],
    extras_require={
        "metaworld": ["metaworld==3.1.1"],
        "tests": [
            "black",
            "mypy",
            "pytest>=9.0",
            "pytest-xdist>=3.6",
            "ruff",
            "setuptools>=77.0.3",  # tests/test_packaging.py builds a wheel
            "types-PyYAML",
            "types-requests",
            "types-setuptools",
            "types-tqdm",
        ],
        "docs": ["furo", "myst-parser>=4.0", "sphinx>=8.1,<10"],
    },
)

"""The examples run as the README says, on few steps."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.slow
@pytest.mark.parametrize(("example", "timesteps"), [("quickstart.py", 1920), ("half_cheetah_dir.py", 8000)])
def test_example(tmp_path, example, timesteps):
    picture = tmp_path / "picture.png"
    command = [sys.executable, str(ROOT / "examples" / example), "--timesteps", str(timesteps), "--output", str(picture)]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    rows = [line.split() for line in result.stdout.splitlines()]
    assert ["episode", "blind", "TrMRL", "oracle"] in rows
    assert [row[0] for row in rows if row and row[0] in "123456"] == list("123456"), "a row for each of 6 episodes"
    assert picture.stat().st_size > 10_000

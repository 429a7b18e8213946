"""Files that a kill can't break, and locks."""

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sb3_trmrl import AdaptationResult
from sb3_trmrl.common import safe_write
from sb3_trmrl.common.safe_write import replace_file

KILLED = """
import os, signal, sys
from pathlib import Path
from sb3_trmrl.common.safe_write import replace_file

def half(path):
    path.write_text("ha")
    os.kill(os.getpid(), signal.SIGKILL)

replace_file(Path(sys.argv[1]), half)
"""


def test_killed_in_the_middle_the_old_file_is_there(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.txt"
    replace_file(path, lambda partial: partial.write_text("whole"))
    assert subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False).returncode == -signal.SIGKILL
    assert path.read_text() == "whole"


def test_threads_and_links(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    path, link = tmp_path / "real" / "file.txt", tmp_path / "link.txt"
    path.write_text("old")
    path.chmod(0o600)
    link.symlink_to(path)
    with ThreadPoolExecutor(4) as pool:
        texts = [f"text {number}" for number in range(200)]
        list(pool.map(lambda text: replace_file(link, lambda partial: partial.write_text(text)), texts))
    assert link.is_symlink() and path.read_text() in texts and path.stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path / "real") == ["file.txt"]


HOLDS_THE_LOCK = """
import sys, time
from pathlib import Path
from sb3_trmrl.common.safe_write import alone_in

with alone_in(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(1)
    (Path(sys.argv[1]) / "done").touch()
"""


@pytest.mark.skipif(safe_write.fcntl is None, reason="no locks here")
def test_one_process_waits_for_the_other(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDS_THE_LOCK, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "locked\n"
        with safe_write.alone_in(tmp_path):
            assert (tmp_path / "done").exists()
    assert other.returncode == 0


def test_a_failed_write_leaves_nothing_behind(tmp_path: Path) -> None:
    def fails(partial: Path) -> None:
        assert partial.suffix == ".txt"
        partial.write_text("ha")
        raise OSError("no space left")

    (tmp_path / "file.txt").write_text("whole")
    with pytest.raises(OSError, match="no space left"):
        replace_file(tmp_path / "file.txt", fails)
    assert os.listdir(tmp_path) == ["file.txt"] and (tmp_path / "file.txt").read_text() == "whole"


@pytest.mark.parametrize("ending", [".npz", ".json"])
def test_a_result_is_whole_at_any_time(ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / f"result{ending}"
    lengths = np.ones((1, 2), dtype=np.int64)
    first, second = (AdaptationResult([{}], np.full((1, 2), value), lengths, None) for value in (1.0, 2.0))
    first.save(path)

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(safe_write.os, "replace", killed)  # all is written but for the rename
    with pytest.raises(KeyboardInterrupt):
        second.save(path)
    assert AdaptationResult.load(path).returns.tolist() == [[1.0, 1.0]]

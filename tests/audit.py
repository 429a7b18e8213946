"""What a process does beside computing, by Python's audit events: for tests that loading a file runs and writes nothing."""

import sys
from typing import Any

CODE = ("import", "exec", "compile", "pickle.find_class", "os.system", "subprocess.Popen", "os.exec", "os.posix_spawn")
CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.symlink", "os.link")


def watch() -> list[str]:
    """:return: A list that grows with every module imported, code run, object unpickled and file written from now on."""
    events: list[str] = []

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        writes = event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
        # SB3's logger makes a folder when training begins
        if writes or event in CODE or (event in CHANGES and "SB3-" not in str(arguments[0])):
            events.append(f"{event} {arguments[0]!r}"[:100])

    sys.addaudithook(hook)
    return events

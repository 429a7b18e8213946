"""
What is there to be gained? References of a family between which an agent's adaptation curve is read (docs/guide/concepts.md):

- *oracle*: sees the task. In closed form or scripted where that is exact, else PPO with the task in its observation, which is
  trained on OOD tasks too,
- *reactive*: PPO on the current token, without memory,
- *blind*: PPO on the observation alone: no previous action, reward or done, no memory,
- *random*: uniform actions.

``sb3-trmrl references FAMILY`` makes them; the returns of some families come with the package, in ``references/*.json``.
"""

from sb3_trmrl.common.references.exact import CLOSED_FORMS, SCRIPTS, GoTo, RandomAgent
from sb3_trmrl.common.references.files import (
    AGENTS,
    SHIPPED,
    References,
    cache_dir,
    file_name,
    load_references,
    make_references,
)
from sb3_trmrl.common.references.trained import (
    Columns,
    NoMemory,
    SeesTasks,
    TaskInObservation,
    task_vector,
    train_reference,
    training_settings,
)

__all__ = [
    "AGENTS",
    "CLOSED_FORMS",
    "SCRIPTS",
    "SHIPPED",
    "Columns",
    "GoTo",
    "NoMemory",
    "RandomAgent",
    "References",
    "SeesTasks",
    "TaskInObservation",
    "cache_dir",
    "file_name",
    "load_references",
    "make_references",
    "task_vector",
    "train_reference",
    "training_settings",
]

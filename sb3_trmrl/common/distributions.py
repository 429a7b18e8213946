"""Action distributions without torch's checks of their arguments."""

import contextlib
import threading
from collections.abc import Iterator

import numpy as np
from torch.distributions import Distribution

_lock = threading.Lock()
_inside = 0
_outside_checks: bool = Distribution._validate_args


@contextlib.contextmanager
def unchecked_distributions() -> Iterator[None]:
    """
    A context, or the decorator of a function, in which torch's distributions do not look whether their arguments make sense:
    a twentieth of the time of acting, and on a GPU each look waits for the device. Contexts may be nested and overlap in
    threads.
    """
    global _inside, _outside_checks
    with _lock:
        if _inside == 0:
            _outside_checks = Distribution._validate_args
            Distribution.set_default_validate_args(False)
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                Distribution.set_default_validate_args(_outside_checks)


def refuse_non_finite_actions(actions: np.ndarray) -> None:
    """
    What torch's checks would have found, at the end where it costs least.

    :param actions: Actions of a policy, (n_envs, ...)
    :raises FloatingPointError: if one is not finite
    """
    if not np.isfinite(actions).all():
        row = int(np.flatnonzero(~np.isfinite(actions).reshape(len(actions), -1).all(axis=1))[0])
        raise FloatingPointError(
            f"The policy's action for the environment in slot {row} is not finite ({actions[row]}): its weights are "
            "not, or are huge. Load an earlier checkpoint, or train again with a lower learning_rate."
        )

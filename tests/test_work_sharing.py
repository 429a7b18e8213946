"""Jobs on several threads: errors reach the caller, and all threads end at about the same time."""

import time
from functools import partial

import pytest

from sb3_trmrl.common.vec_env.work_sharing import WorkSharing, share_out


def test_an_error_in_a_thread_reaches_the_caller() -> None:
    done: list[int] = []

    def job(thread: int, number: int) -> None:
        time.sleep(0.01)
        if number == 3:
            raise RuntimeError("job 3")
        done.append(number)

    sharing = WorkSharing([partial(job, number=number) for number in range(6)], n_threads=2)
    with pytest.raises(RuntimeError, match="job 3"):
        sharing()
    done.clear()
    with pytest.raises(RuntimeError, match="job 3"):  # and goes on working
        sharing()
    assert set(done) <= {0, 1, 2, 4, 5} and 0 in done
    sharing.stop()


def test_a_call_does_not_take_the_ends_of_a_failed_one_for_its_own() -> None:
    done: list[int] = []
    call = 1

    def job(thread: int) -> None:
        number = call
        if number == 1 and thread == 0:
            time.sleep(0.02)
            raise RuntimeError("while the other thread works")
        time.sleep(0.05 * number)
        done.append(number)

    sharing = WorkSharing([job, job], n_threads=2)
    with pytest.raises(RuntimeError, match="while the other"):
        sharing()
    call = 2
    sharing()
    assert done.count(2) == 2
    sharing.stop()


@pytest.mark.parametrize("n_slots", [1, 2, 3, 7, 20, 64, 101])
@pytest.mark.parametrize("n_threads", [1, 2, 5])
def test_jobs_hold_every_slot_once_and_grow_smaller(n_slots: int, n_threads: int) -> None:
    cuts = share_out(n_slots, n_threads)
    assert [slot for cut in cuts for slot in range(n_slots)[cut]] == list(range(n_slots))
    sizes = [cut.stop - cut.start for cut in cuts]
    assert sizes == sorted(sizes, reverse=True)
    if n_threads == 1:
        assert sizes == [n_slots]
    # Whoever is free takes the next job: at equal speed nobody waits longer than for a single slot
    ends = [0] * n_threads
    for size in sizes:
        ends[ends.index(min(ends))] += size
    assert max(ends) - min(ends) <= max(1, sizes[-1])

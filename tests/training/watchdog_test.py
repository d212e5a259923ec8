"""What the watchdog allows and says; that it ends a process is in tests/processes_test.py."""

import pytest
from jax._src import distributed

from ffn_alloc.training import watchdog


def test_an_update_may_take_twenty_times_the_median_one(monkeypatch):
    now = 0.0
    monkeypatch.setattr(watchdog.time, "monotonic", lambda: now)
    dog = watchdog.Watchdog()
    bounds = []
    for step, seconds in enumerate([1, 100, 100, 1, 100]):
        dog.update(step)
        bounds.append(dog._at[3])
        now += seconds
    assert bounds == [600, 600, 1010, 2000, 1010]
    dog.other("saving step 5")
    assert dog._at[1:] == ("saving step 5", now, 4 * 3600)
    now += 10_000  # is no update, and counts for none
    dog.update(6)
    assert dog._at[3] == 1010 and dog._at[0] == 7


@pytest.mark.parametrize(
    "places, words",
    [
        (
            {0: (9, "update 8"), 1: (8, "update 7"), 2: (9, "update 8"), 3: (5, "update 4")},
            "Behind are process 1 in update 7, process 3 in update 4.",
        ),
        ({0: (9, "update 8"), 2: (9, "update 8")}, "Nothing was heard of process 1, process 3."),
        ({i: (9 + (i > 0), "update 9") for i in range(4)}, "The others are ahead"),
        ({i: (9, "update 8") for i in range(4)}, "No process is behind."),
    ],
)
def test_who_is_behind(monkeypatch, places, words):
    monkeypatch.setattr(distributed.global_state, "process_id", 0)
    monkeypatch.setattr(distributed.global_state, "num_processes", 4)
    assert watchdog._behind(9, places).startswith(words)


def test_one_process_alone_is_not_watched(monkeypatch):
    monkeypatch.setattr(watchdog.threading, "Thread", lambda **_: pytest.fail("a thread"))
    with watchdog.Watchdog().watching() as dog:
        dog.update(1)

import os
import time

import pytest

from ffn_alloc.data import workers
from ffn_alloc.errors import BadInput


def _square(number: int, report: workers.Report) -> tuple[int, int]:
    report(number)
    return number**2, os.getpid()


def _fail_or_go_on(number: int, report: workers.Report) -> None:
    if number == 0:
        raise BadInput("field", number, "is wrong", "Correct it")
    for _ in range(3000):
        time.sleep(0.01)
        report(workers._REPORT_EVERY)


@pytest.mark.parametrize("count", [1, 2])
def test_every_task_is_done_and_reported(count: int):
    reports: list[int] = []
    results = list(workers.run(_square, range(5), count, reports.append))
    assert sorted(square for square, _ in results) == [0, 1, 4, 9, 16]
    assert ({pid for _, pid in results} == {os.getpid()}) == (count == 1)
    assert sum(reports) == 10


def test_an_error_arrives_whole_and_stops_the_others():
    started = time.monotonic()
    with pytest.raises(BadInput, match="field = 0: is wrong. Correct it"):
        list(workers.run(_fail_or_go_on, [1, 0], 2, lambda _: None))
    assert time.monotonic() - started < 20  # the other one would take 30

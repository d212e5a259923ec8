"""When a process joins others, and with what; several real ones are in tests/processes_test.py."""

import socket

import jax
import pytest

from ffn_alloc.errors import BadInput
from ffn_alloc.training import processes

LAUNCHERS = (
    "SLURM_STEP_NUM_TASKS SLURM_STEP_TASKS_PER_NODE SLURM_GPUS_ON_NODE OMPI_COMM_WORLD_SIZE"
).split()


@pytest.fixture
def joined(monkeypatch) -> list:
    """The arguments of every jax.distributed.initialize."""
    calls: list = []
    monkeypatch.setattr(
        jax.distributed, "initialize", lambda *args, **kwargs: calls.append((args, kwargs))
    )
    for name in LAUNCHERS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(processes, "_on_cloud_tpu", lambda: False)
    return calls


def test_one_process_joins_nobody(joined):
    processes.join(None, None, None)
    assert joined == []


@pytest.mark.parametrize(
    "environment, joins, devices",
    [
        ({"SLURM_STEP_NUM_TASKS": "1"}, False, None),
        ({"SLURM_NTASKS": "8"}, False, None),  # a shell in an allocation, not a task of srun
        ({"SLURM_STEP_NUM_TASKS": "2"}, True, None),
        (
            {
                "SLURM_STEP_NUM_TASKS": "2",
                "SLURM_STEP_TASKS_PER_NODE": "1(x2)",
                "SLURM_GPUS_ON_NODE": "4",
            },
            True,
            [0, 1, 2, 3],
        ),
        (
            {
                "SLURM_STEP_NUM_TASKS": "8",
                "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
                "SLURM_GPUS_ON_NODE": "4",
            },
            True,
            None,  # jax gives each task the GPU of its rank on the node
        ),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, True, None),
    ],
)
def test_launchers(joined, monkeypatch, environment, joins, devices):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    processes.join(None, None, None)
    assert len(joined) == joins
    if joins:
        assert joined[0][0] == (None, None, None)
        assert joined[0][1]["local_device_ids"] == devices


def test_explicit_flags(joined):
    processes.join("host:1234", 2, 1)
    assert joined[0][0] == ("host:1234", 2, 1)


@pytest.mark.parametrize(
    "flags, field",
    [
        (("host:1", None, None), "--num_processes"),
        ((None, 2, 0), "--coordinator"),
        (("host:1", 2, 2), "--process_id"),
        (("host:1", 2, -1), "--process_id"),
        (("host:1", 0, 0), "--process_id"),
        (("host", 2, 0), "--coordinator"),
        (("host:port", 2, 0), "--coordinator"),
        (("host:0", 2, 1), "--coordinator"),
        (("host:65536", 2, 1), "--coordinator"),
        (("host:123456", 2, 1), "--coordinator"),
    ],
)
def test_flags_that_do_not_fit(joined, flags, field):
    with pytest.raises(BadInput, match=field):
        processes.join(*flags)
    assert joined == []


def test_an_address_that_another_run_has_is_not_joined(joined):
    with socket.socket() as listening:
        listening.bind(("", 0))
        listening.listen()
        address = f"127.0.0.1:{listening.getsockname()[1]}"
        with pytest.raises(BadInput, match="another run may have it"):
            processes.join(address, 2, 0)
        assert joined == []
    processes.join(address, 2, 0)
    assert len(joined) == 1


def test_alone_everything_is_agreed():
    assert processes.is_first() and processes.agreed(True) and not processes.agreed(False)
    assert processes.from_first(lambda: [1]) == [1]
    processes.wait_for_all("nobody")
    processes.check_same("field", "value", "remedy")

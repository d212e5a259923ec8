"""Several processes of one run: joining them, agreeing, and waiting for one another.

Process 0 alone writes files. Every wait has a deadline, and its error names who is missing.
"""

import contextlib
import importlib.util
import json
import os
import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax._src import distributed  # its state has no public name
from jax.experimental import multihost_utils
from orbax.checkpoint import multihost

from ffn_alloc.errors import BadInput
from ffn_alloc.paths import AnyPath
from ffn_alloc.training import lease, workdir

# Seconds. A process that died is noticed after the heartbeat's; one that is alive but does not
# come (stuck in a file system, say) after the barrier's.
_JOIN_TIMEOUT = 600
_HEARTBEAT_TIMEOUT = 60
_BARRIER_TIMEOUT = 900
_SHUTDOWN_TIMEOUT = 60


def join(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    """Joins the other processes of this run; one process alone needs nothing.

    Without arguments they are found under SLURM, Open MPI, and on Cloud TPUs. To be called
    before jax starts its devices.
    """
    given = {
        "--coordinator": coordinator,
        "--num_processes": num_processes,
        "--process_id": process_id,
    }
    missing = [flag for flag, value in given.items() if value is None]
    if len(missing) == len(given):
        if not _under_launcher():
            return
    elif missing:
        raise BadInput(missing[0], None, "missing", f"Give {', '.join(given)}, or none of them")
    elif not 0 <= process_id < num_processes:  # type: ignore[operator]
        raise BadInput("--process_id", process_id, "out of range", f"0 to {num_processes} - 1")
    else:
        _check_address(str(coordinator), listens=process_id == 0)
    jax.distributed.initialize(
        coordinator,
        num_processes,
        process_id,
        local_device_ids=_all_of_a_node(),
        initialization_timeout=_JOIN_TIMEOUT,
        heartbeat_timeout_seconds=_HEARTBEAT_TIMEOUT,
        shutdown_timeout_seconds=_SHUTDOWN_TIMEOUT,
    )


def _check_address(coordinator: str, listens: bool) -> None:
    """jax would try for minutes to reach an impossible port, and crash where one is taken."""
    remedy = "Give the address of process 0, and a port that is free there"
    port = re.fullmatch(r".+:(\d{1,5})", coordinator)
    if not port or not 0 < int(port[1]) < 1 << 16:
        raise BadInput("--coordinator", coordinator, "is not HOST:PORT", remedy)
    if listens:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("", int(port[1])))
            except OSError as error:
                problem = f"cannot be listened at ({error.strerror}): another run may have it"
                raise BadInput("--coordinator", coordinator, problem, remedy) from error


def joined() -> bool:
    """Whether jax's runtime runs for several processes, or for one as if it were several."""
    return distributed.global_state.client is not None


def is_first() -> bool:
    """Whether this process is the one that writes."""
    return jax.process_index() == 0


def wait_for_all(name: str) -> None:
    """Until every process has come here; after the deadline an error that names those missing."""
    wait = multihost.get_barrier_sync_fn()  # sync_global_processes heeds no deadline
    wait(key=name, timeout_ms=_BARRIER_TIMEOUT * 1000)


def from_first(function: Callable[[], Any]) -> Any:
    """In every process what `function` returns (JSON), or the BadInput it raises, in process 0."""
    if jax.process_count() == 1:
        return function()
    outcome: dict[str, Any] = {}
    if is_first():
        try:
            outcome = {"result": function()}
        except BadInput as error:
            outcome = {"error": [error.field, str(error.value), error.problem, error.remedy]}
    outcome = _broadcast(outcome)
    if "error" in outcome:
        raise BadInput(*outcome["error"])
    return outcome["result"]


def in_every(function: Callable[[], Any]) -> Any:
    """What `function` returns here; BadInput in every process if it raises that in any.

    So all end with the code for bad input: one alone would leave the others to end by a fault.
    """
    result, error = None, None
    try:
        result = function()
    except BadInput as problem:
        error = problem
    if not agreed(error is None):
        raise error or BadInput(
            "process", jax.process_index(), "another one cannot use its input", "See its own error"
        )
    return result


def check_same(field: str, value: str, remedy: str) -> None:
    """BadInput in every process unless all of them have the value of process 0."""
    first = from_first(lambda: value)
    if not agreed(first == value):
        raise BadInput(field, value, f"differs between processes (process 0: {first!r})", remedy)


def agreed(here: bool) -> bool:
    """Whether it is so in every process."""
    if jax.process_count() == 1:
        return here
    wait_for_all("agreed")
    with jax.transfer_guard("allow"):
        return bool(np.all(multihost_utils.process_allgather(np.array(here))))


@contextlib.contextmanager
def lock(directory: AnyPath) -> Iterator[Callable[[], None]]:
    """`workdir.lock` by process 0; BadInput in every process if it is in use, or not shared.

    Yields a check for all to call together: BadInput in every process once it is lost.
    """
    leases: list[lease.Lease] = []
    with contextlib.ExitStack() as stack:
        from_first(lambda: leases.append(stack.enter_context(workdir.lock(directory))))
        check_same(
            "--workdir",
            f"{directory}, held by {lease.owner_of(directory / workdir.LOCK)}",
            "Give one that all machines of the run share",
        )
        yield lambda: from_first(lambda: leases[0].check())


def _broadcast(value: Any) -> Any:
    wait_for_all("broadcast")
    content = np.frombuffer(json.dumps(value).encode(), np.uint8)
    with jax.transfer_guard("allow"):
        size = int(multihost_utils.broadcast_one_to_all(np.int32(content.size)))
        padded = np.zeros(size, np.uint8)
        padded[: min(size, content.size)] = content[:size]
        content = np.asarray(multihost_utils.broadcast_one_to_all(padded), np.uint8)
    return json.loads(content.tobytes())


def _under_launcher() -> bool:
    """Whether a launcher that jax.distributed knows has started this process and others."""
    tasks = os.environ.get("SLURM_STEP_NUM_TASKS") or os.environ.get("OMPI_COMM_WORLD_SIZE") or "1"
    return int(tasks) > 1 or _on_cloud_tpu()


def _all_of_a_node() -> list[int] | None:
    """Under SLURM with one task a node, all GPUs of the node; jax alone would take the first."""
    tasks = os.environ.get("SLURM_STEP_TASKS_PER_NODE", "").split("(")[0]
    gpus = int(os.environ.get("SLURM_GPUS_ON_NODE") or 0)
    return list(range(gpus)) if tasks == "1" and gpus else None


def _on_cloud_tpu() -> bool:
    if os.environ.get("JAX_PLATFORMS", "tpu") == "cpu" or not importlib.util.find_spec("libtpu"):
        return False
    return any(Path("/dev").glob("accel*")) or any(Path("/dev/vfio").glob("[0-9]*"))

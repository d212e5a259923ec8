"""The speed of a config on the devices here: `python -m ffn_alloc.bench --config=…`.

Runs the real training step on real data with logging on, and prints the median step time and
its spread, tokens/s, MFU, peak memory, waiting for data and compile time; for a chip that we
know the roofline's prediction beside it. --json prints one line; --against=RESULT.json, such a
line in a file, adds ratios; --profile=DIR writes a trace for XProf or TensorBoard.
--calibrate=RATES.json first times single kernels of the config's shapes and writes what the
device attains, for this prediction and those of `plan --calibrate`.
"""

import functools
import json
import sys
from typing import Any

import jax
from absl import flags

from ffn_alloc import cli
from ffn_alloc.config import Config
from ffn_alloc.data import pipeline
from ffn_alloc.data.preparation import ensure_prepared
from ffn_alloc.data.storage import cache_root
from ffn_alloc.paths import expanded
from ffn_alloc.planning import speed
from ffn_alloc.training import calibration, host, processes
from ffn_alloc.training.measuring import measure
from ffn_alloc.training.sharding import check_mesh, make_mesh

_JSON = flags.DEFINE_bool("json", False, "Print one line of JSON.")
_STEPS = flags.DEFINE_integer("steps", 20, "Measured steps.", lower_bound=2)
_AGAINST = flags.DEFINE_string("against", None, "An earlier --json result: adds ratios.")
_PROFILE = flags.DEFINE_string("profile", None, "Directory for a trace of the measured steps.")
_CALIBRATE = flags.DEFINE_string("calibrate", None, "File for the rates measured here.")


def bench(config: Config) -> None:
    earlier = speed.read(expanded("--against", _AGAINST.value)) if _AGAINST.value else None
    processes.join(None, None, None)
    host.set_up_devices(config, cache_root() / "compiled")
    mesh = make_mesh(config.mesh)
    check_mesh(config, mesh)
    device_kind = mesh.devices.flat[0].device_kind
    rates = speed.file_for_rates(_CALIBRATE.value, device_kind)
    batches = functools.partial(
        pipeline.train_batches,
        ensure_prepared(config),
        seed=config.seed,
        global_batch_size=config.train.global_batch_size,
        mask_documents=config.data.mask_documents,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    trace = expanded("--profile", _PROFILE.value) if _PROFILE.value else None
    if rates:
        timings = calibration.calibrate(config, mesh)
        if processes.is_first():
            print(*timings, sep="\n", file=sys.stderr)
            calibration.write(timings, speed.chip_of(device_kind), rates)
        processes.wait_for_all("calibrated")
    found = measure(config, mesh, batches, _STEPS.value, trace)
    if not processes.is_first():
        return
    values: dict[str, Any] = speed.summary(config, device_kind, mesh.size, found, rates)
    if earlier:
        values["ratios"] = speed.ratios(values, earlier)
    print(json.dumps(values) if _JSON.value else speed.text(values))


if __name__ == "__main__":
    cli.run(bench)

"""The ledger of a config, and what it would be on chips: `python -m ffn_alloc.plan --config=…`.

Prints which layer gets which FFN, parameters and FLOPs beside the uniform baseline's, and bytes;
with --json one line of JSON. No device is touched. With --topology=v5e:4x4 (or h100:8, …) the
training step is compiled for it on this CPU (extras `tpu`, `cuda`): does it fit, its
collectives, a predicted time, chip-hours and, with --price, cost. --tune tries meshes,
microbatches and remat policies, and names the fastest that fits.
"""

import json
import math
import sys

from absl import flags

from ffn_alloc import cli
from ffn_alloc.config import Config
from ffn_alloc.errors import BadInput
from ffn_alloc.paths import expanded
from ffn_alloc.planning import forecast, forecast_text, ledger, topology, tuning

_JSON = flags.DEFINE_bool("json", False, "Print one line of JSON instead of the picture.")
_TOPOLOGY = flags.DEFINE_string("topology", None, "Chips: v5e:4x4, v5p:2x2x4, h100:8, …")
_SLICES = flags.DEFINE_integer("slices", 1, "TPU slices of this topology.")
_TUNE = flags.DEFINE_bool("tune", False, "Try meshes, microbatches and remat policies.")
_PRICE = flags.DEFINE_float("price", 0.0, "Of a chip-hour, in any currency.")
_CALIBRATE = flags.DEFINE_string("calibrate", None, "JSON file of measured rates.")


def plan(config: Config) -> None:
    if not 0 <= _PRICE.value < math.inf:
        remedy = "Give what a chip-hour costs, or leave it out"
        raise BadInput("--price", _PRICE.value, "is no finite number from 0 on", remedy)
    if _TOPOLOGY.value is None:
        _check_nothing_is_about_chips()
        print(json.dumps(ledger.summary(config)) if _JSON.value else ledger.picture(config))
        return
    chips = topology.parse(_TOPOLOGY.value, _SLICES.value)
    calibration = expanded("--calibrate", _CALIBRATE.value) if _CALIBRATE.value else None

    def try_one(candidate: Config) -> forecast.Forecast:
        return forecast.forecast(candidate, chips, calibration, _PRICE.value)

    if _TUNE.value:
        tried = []
        for found in tuning.tune(config, chips, try_one):
            print(forecast_text.trial(found), file=sys.stderr, flush=True)
            tried.append(found)
        chosen, text = tuning.best(tried) or tried[-1], forecast_text.winner(tried)
    else:
        print(f"compiling for {chips} …", file=sys.stderr)
        chosen = try_one(config)
        text = f"{ledger.picture(config)}\n\n{forecast_text.picture(chosen)}"
    if _JSON.value:
        print(json.dumps(ledger.summary(chosen.config) | forecast.summary(chosen)))
    else:
        print(text)


def _check_nothing_is_about_chips() -> None:
    for flag in (_SLICES, _TUNE, _PRICE, _CALIBRATE):
        if flag.value != flag.default:
            remedy = "Give --topology=v5e:4x4, h100:8, …"
            raise BadInput(f"--{flag.name}", flag.value, "needs a topology to be about", remedy)


if __name__ == "__main__":
    cli.run(plan)

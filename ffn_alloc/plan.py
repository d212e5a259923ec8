"""What a configuration would train, before any of it is trained.

    python -m ffn_alloc.plan --config=configs/middle70_570m.py [--json]

Prints the layers as a picture, parameters and FLOPs beside the uniform baseline's, bytes, and the
length of the run. --json prints the same as one line of JSON. No device is touched.
"""

import json

from absl import flags

from ffn_alloc import cli
from ffn_alloc.config import Config
from ffn_alloc.planning import ledger

_JSON = flags.DEFINE_bool("json", False, "Print one line of JSON instead of the picture.")


def plan(config: Config) -> None:
    print(json.dumps(ledger.summary(config)) if _JSON.value else ledger.picture(config))


if __name__ == "__main__":
    cli.run(plan)

"""How long the loop waits for its batches at a demanded rate, on demand.

    python -m tests.feeding_speed [TOKENS_PER_SECOND]

Batches of 256 rows of 2048 from the Python documentation, put on the CPU device; the steps between
them are slept through, as a loop sleeps that waits for its accelerator.
"""

import statistics
import sys
import time

from ffn_alloc import cli
from ffn_alloc.data import pipeline
from ffn_alloc.data.preparation import ensure_prepared
from ffn_alloc.data.storage import cache_root
from ffn_alloc.training import host
from ffn_alloc.training.feeding import on_devices
from ffn_alloc.training.sharding import make_mesh

_CONFIG = (
    "--config=configs/quickstart.py",
    "--config.data.sequence_length=2048",
    "--config.train.global_batch_size=256",
)
_WARM_UP = 20  # steps, in which memory is taken for the first time
_STEPS = 400


def main() -> None:
    rate = float(sys.argv[1]) if sys.argv[1:] else 20e6
    config = cli.load(list(_CONFIG))
    host.set_up_devices(config, cache_root() / "compiled")
    batches = pipeline.train_batches(
        ensure_prepared(config),
        seed=0,
        global_batch_size=config.train.global_batch_size,
        start_step=0,
        mask_documents=False,
    )
    feed = on_devices(batches, make_mesh(config.mesh))
    step_seconds = config.tokens_per_step / rate
    for _ in range(_WARM_UP):
        next(feed)
        time.sleep(step_seconds)
    waits, start = [], time.perf_counter()
    for step in range(1, _STEPS + 1):
        time.sleep(max(0.0, start + step * step_seconds - time.perf_counter()))
        asked = time.perf_counter()
        batch = next(feed)
        waits.append(time.perf_counter() - asked)
        assert batch["inputs"].shape == (256, 2048)
        del batch  # as the loop does, after it has dispatched the step
    seconds = time.perf_counter() - start
    print(
        f"{_STEPS * config.tokens_per_step / seconds / 1e6:.1f}M tokens/s; waited "
        f"{sum(waits) / seconds:.2%} of the time, {statistics.median(waits) * 1e6:.0f} us a batch "
        f"(median; at most {max(waits) * 1e3:.2f} ms)"
    )
    feed.close()


if __name__ == "__main__":
    main()

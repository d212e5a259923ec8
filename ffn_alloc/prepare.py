"""python -m ffn_alloc.prepare --config=FILE: documents to rows of tokens, once."""

import time

from absl import flags

from ffn_alloc import cli
from ffn_alloc.config import Config
from ffn_alloc.data import manifest, preparation

_WORKERS = flags.DEFINE_integer("workers", 0, "Processes; 0: one for every core.", lower_bound=0)


def prepare(config: Config) -> None:
    """Prepares the config's data and prints where it lies and how much it is."""
    directory = preparation.prepared_dir(config)
    known = (directory / manifest.NAME).exists()
    started = time.monotonic()
    found = preparation.prepare(config, _WORKERS.value)
    seconds = time.monotonic() - started
    print(f"{directory}" + (" (was prepared already)" if known else ""))
    for name, split in (("train", found.train), ("validation", found.validation)):
        print(
            f"{name}: {split.rows:,} rows of {found.sequence_length} + 1, "
            f"{split.total('tokens'):,} tokens, {split.total('text_bytes'):,} bytes, "
            f"{split.total('documents'):,} documents"
        )
    print(f"fingerprint: {found.fingerprint}")
    if not known:
        tokens = found.train.total("tokens") + found.validation.total("tokens")
        print(f"{seconds:.1f} s, {tokens / seconds:,.0f} tokens/s")


if __name__ == "__main__":
    cli.run(prepare)

"""Which candidates are tried, with forecasts that need no compiler."""

import dataclasses
from types import SimpleNamespace

import pytest

from ffn_alloc.errors import BadInput
from ffn_alloc.planning import tuning
from ffn_alloc.planning.topology import parse
from tests.helpers import tiny_config

CONFIG = tiny_config(**{"train.global_batch_size": 64})


def fake(fits):
    def try_one(config):
        model, each = config.model, config.train.microbatch_size
        speed = each * {"none": 3, "save": 2, "full": 1}[model.remat] + (config.mesh.fsdp == 1)
        return SimpleNamespace(config=config, fits=fits(config), tokens_per_second=speed)

    return try_one


def largest_fitting(tried):
    """By mesh and policy."""
    found = {}
    for t in tried:
        key, size = (t.config.mesh.fsdp, t.config.model.remat), t.config.train.microbatch_size
        if t.fits:
            found[key] = max(size, found.get(key, 0))
    return found


def test_the_largest_microbatch_that_fits_of_each_policy_and_mesh():
    small = {"none": 8, "save": 16, "full": 32}
    tried = list(
        tuning.tune(
            CONFIG, parse("h100:8"), fake(lambda c: c.train.microbatch_size <= small[c.model.remat])
        )
    )
    assert largest_fitting(tried) == {
        (fsdp, remat): small[remat] for fsdp in (-1, 1) for remat in ("none", "save", "full")
    }
    sizes = [t.config.train.microbatch_size for t in tried if t.config.model.remat == "none"]
    assert sizes == [64, 16, 8] * 2
    chosen = tuning.best(tried)
    assert (chosen.config.model.remat, chosen.config.mesh.fsdp) == ("save", 1)
    assert "--config.train.microbatch_size=16 --config.model.remat=save" in tuning.flags(chosen)


@pytest.mark.parametrize(
    "batch, length, most, found, compiles",
    [
        (192, 2048, 32, 24, 1),
        (192, 2048, 23, 12, 4),  # 24 = 8 * 3, of which 16 is no divisor
        (192, 2048, 7, 6, 4),
        (80, 2048, 9, 5, 3),
        (56, 2048, 1, 1, 2),
        (8192, 128, 600, 512, 1),  # 65536 tokens
        (8192, 128, 100, 64, 4),
        (8192, 4096, 600, 16, 1),
        (8, 131072, 600, 1, 1),
    ],
)
def test_every_divisor_up_to_so_many_tokens(batch, length, most, found, compiles):
    changes = {"train.global_batch_size": batch, "data.sequence_length": length}
    config = tiny_config(**changes)
    fits = fake(lambda c: c.train.microbatch_size <= 8 * most)
    tried = list(tuning.tune(config, parse("h100:8"), fits))
    assert set(largest_fitting(tried).values()) == {8 * found}
    assert len(tried) == compiles * 2 * 3


def test_nothing_fits():
    tried = list(tuning.tune(CONFIG, parse("h100:1"), fake(lambda _: False)))
    assert tried and tuning.best(tried) is None


def test_the_loss_in_chunks_is_the_last_resort():
    in_chunks = fake(lambda c: c.train.loss_chunks > 1)
    tried = list(tuning.tune(CONFIG, parse("h100:8"), in_chunks))
    last = [t.config for t in tried if t.config.train.loss_chunks > 1]
    assert last == [t.config for t in tried[-2:]] and {c.mesh.fsdp for c in last} == {-1, 1}
    for config in last:
        assert (config.model.remat, config.train.microbatch_size) == ("full", 8)
        assert config.data.sequence_length % config.train.loss_chunks == 0
    text = tuning.flags(tuning.best(tried))
    assert f" --config.train.loss_chunks={last[0].train.loss_chunks} " in text
    some = list(tuning.tune(CONFIG, parse("h100:8"), fake(lambda c: c.mesh.fsdp == 1)))
    assert all(t.config.train.loss_chunks == 1 for t in some)
    chosen = tiny_config(**{"train.global_batch_size": 64, "train.loss_chunks": 2})
    own = list(tuning.tune(chosen, parse("h100:8"), fake(lambda _: False)))
    assert all(t.config.train.loss_chunks == 2 for t in own)


def test_slices_are_data_parallel():
    tried = list(tuning.tune(CONFIG, parse("v5e:2x2", 2), fake(lambda _: True)))
    assert [dataclasses.astuple(t.config.mesh) for t in tried[:1]] == [(2, -1, 1)]


@pytest.mark.parametrize(
    "d_model, topology, slices, meshes",
    [
        (36, "h100:8", 1, [(2, -1, 1), (-1, 1, 1)]),  # 8 does not divide it, 4 does
        (36, "v5e:2x4", 2, [(4, -1, 1), (-1, 1, 1)]),
        (33, "h100:8", 1, [(-1, 1, 1)]),
        (48, "h100:16", 1, [(2, -1, 1), (1, -1, 1), (-1, 1, 1)]),  # in a node; over both
        (40, "h100:16", 1, [(2, -1, 1), (-1, 1, 1)]),  # 16 does not divide it
        (48, "v5e:4x4", 1, [(1, -1, 1), (2, -1, 1), (-1, 1, 1)]),  # over all; over half
        (48, "v5e:2x4", 2, [(2, -1, 1), (4, -1, 1), (-1, 1, 1)]),
    ],
)
def test_parameters_are_split_over_what_divides_them(d_model, topology, slices, meshes):
    config = tiny_config(**{"train.global_batch_size": 64, "model.d_model": d_model})
    tried = list(tuning.tune(config, parse(topology, slices), fake(lambda _: True)))
    found = [dataclasses.astuple(t.config.mesh) for t in tried]
    assert list(dict.fromkeys(found)) == meshes


def test_a_batch_that_does_not_divide():
    with pytest.raises(BadInput, match="train.global_batch_size"):
        list(tuning.tune(CONFIG, parse("v5e:16x16"), fake(lambda _: True)))

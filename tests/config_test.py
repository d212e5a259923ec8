"""Config files become a Config, or one clear message."""

import copy
import dataclasses
import json

import pytest

from configs import quickstart
from ffn_alloc.config import Config, from_dict, identity, to_dict
from ffn_alloc.errors import BadInput
from tests.helpers import tiny_config, tiny_config_dict

# override, the field that the message names (where it is another one), a part of the message
BAD_VALUES = [
    # wrong types
    ({"train.steps": 1.5}, None, "is float, not int"),
    ({"train.steps": "100"}, None, "is str, not int"),
    ({"train.steps": True}, None, "is bool, not int"),
    ({"train.steps": None}, None, "is NoneType, not int"),
    ({"seed": 0.0}, None, "is float, not int"),
    ({"name": 3}, None, "is int, not str"),
    ({"model.allocation": 0.7}, None, "is float, not str"),
    ({"model.unroll": 1}, None, "is int, not str"),
    ({"model.tie_embeddings": 1}, None, "is int, not bool"),
    ({"optimizer.learning_rate": "1e-3"}, None, "is str, not float"),
    ({"optimizer.learning_rate": True}, None, "is bool, not float"),
    ({"model": 3}, None, "is not a section"),
    # not finite
    ({"optimizer.learning_rate": float("nan")}, None, "is not finite"),
    ({"optimizer.learning_rate": float("inf")}, None, "is not finite"),
    ({"optimizer.weight_decay": float("-inf")}, None, "is not finite"),
    ({"train.z_loss": float("nan")}, None, "is not finite"),
    ({"model.rope_theta": 10**400}, None, "is not finite"),
    # choices
    ({"optimizer.name": "sgd"}, None, "'adamw', 'muon'"),
    ({"optimizer.schedule": "linear"}, None, "cosine"),
    ({"model.initializer": "zeros"}, None, "normal"),
    ({"model.attention": "flash"}, None, "cudnn"),
    ({"model.remat": "some"}, None, "full"),
    ({"model.compute_dtype": "float16"}, None, "bfloat16"),
    # sizes
    ({"train.steps": 0}, None, "is not positive"),
    ({"train.global_batch_size": -4}, None, "is not positive"),
    ({"train.loss_chunks": 0}, None, "is not positive"),
    ({"train.loss_chunks": -2}, None, "is not positive"),
    ({"train.loss_chunks": 2.0}, None, "is float, not int"),
    ({"train.log_every": 0}, None, "is not positive"),
    ({"data.sequence_length": 0}, None, "is not positive"),
    ({"checkpoint.every": 0}, None, "is not positive"),
    ({"checkpoint.keep": 0}, None, "is not positive"),
    ({"optimizer.learning_rate": 0.0}, None, "is not positive"),
    ({"optimizer.epsilon": 0.0}, None, "is not positive"),
    ({"model.num_layers": 0}, None, "is not positive"),
    ({"model.num_kv_heads": 0}, None, "is not positive"),
    ({"model.head_dim": 0}, None, "is not positive"),
    ({"model.vocab_size": -1}, None, "is not positive"),
    ({"model.norm_epsilon": 0.0}, None, "is not positive"),
    ({"seed": -1}, None, "is negative"),
    ({"seed": 1 << 32}, None, "has more than 32 bits"),
    ({"train.microbatch_size": -1}, None, "is negative"),
    ({"train.z_loss": -0.1}, None, "is negative"),
    ({"train.log_layers_every": -1}, None, "is negative"),
    ({"data.max_documents": -1}, None, "is negative"),
    ({"optimizer.weight_decay": -0.1}, None, "is negative"),
    ({"optimizer.clip_norm": -1.0}, None, "is negative"),
    ({"checkpoint.keep_every": -1}, None, "is negative"),
    ({"eval.every": -1}, None, "is negative"),
    ({"eval.rows": -1}, None, "is negative"),
    ({"optimizer.warmup_fraction": 1.5}, None, "is outside [0, 1]"),
    ({"optimizer.decay_fraction": -0.1}, None, "is outside [0, 1]"),
    ({"optimizer.final_fraction": 2}, None, "is outside [0, 1]"),
    ({"optimizer.beta1": -0.5}, None, "is outside [0, 1]"),
    ({"optimizer.beta1": 1.0}, None, "less than 1"),
    ({"optimizer.beta2": 1.0}, None, "less than 1"),
    # what does not fit together
    ({"model.num_heads": 3}, "model.num_kv_heads", "does not divide model.num_heads = 3"),
    ({"model.head_dim": 7}, None, "is odd"),
    ({"model.unroll": "0"}, None, "is no layer count"),
    ({"model.unroll": "-1"}, None, "is no layer count"),
    ({"model.unroll": "half"}, None, "is no layer count"),
    ({"model.d_ff": 65}, None, "multiple of model.ffn_tile"),
    ({"model.allocation": "middle:0"}, None, "outside (0, 1]"),
    ({"model.allocation": "middle:1.1"}, None, "outside (0, 1]"),
    ({"model.allocation": "mask:01"}, None, "6"),
    ({"model.allocation": "nonsense"}, None, "middle"),
    ({"model.allocation": ""}, None, "uniform"),
    ({"train.microbatch_size": 3}, None, "does not divide train.global_batch_size = 4"),
    ({"train.microbatch_size": 8}, None, "does not divide train.global_batch_size = 4"),
    ({"train.loss_chunks": 3}, None, "does not divide data.sequence_length = 16"),
    ({"train.loss_chunks": 32}, None, "does not divide data.sequence_length = 16"),
    (
        {
            "optimizer.schedule": "wsd",
            "optimizer.warmup_fraction": 0.6,
            "optimizer.decay_fraction": 0.5,
        },
        "optimizer.warmup_fraction",
        "leaves no room",
    ),
    ({"mesh.fsdp": 0}, None, "is no device count"),
    ({"mesh.tensor": -2}, None, "is no device count"),
    ({"mesh.data": -1, "mesh.fsdp": -1}, "mesh", "more than one -1"),
    # names that are no folder's
    ({"name": ""}, None, "no name for a folder"),
    ({"name": "a/b"}, None, "no name for a folder"),
    ({"name": ".."}, None, "no name for a folder"),
    ({"name": " a"}, None, "no name for a folder"),
]


def plain(**overrides):
    """A tiny run as nested plain values, overridden whatever the type."""
    values = tiny_config_dict().to_dict()
    for field, value in overrides.items():
        *sections, name = field.split(".")
        place = values
        for section in sections:
            place = place[section]
        place[name] = value
    return values


@pytest.mark.parametrize(
    "overrides, field, problem", BAD_VALUES, ids=[str(row[0])[:60] for row in BAD_VALUES]
)
def test_bad_values_are_named(overrides, field, problem):
    with pytest.raises(BadInput) as error:
        from_dict(plain(**overrides))
    assert error.value.field == (field or next(iter(overrides)))
    assert problem in str(error.value)
    assert str(error.value).startswith(f"{error.value.field} = ")
    assert "\n" not in str(error.value) and len(error.value.remedy) > 5


@pytest.mark.parametrize("field", ["nope", "model.nope", "optimizer.lr", "Model"])
def test_unknown_keys_are_named_with_the_known_ones(field):
    with pytest.raises(BadInput, match="unknown key") as error:
        from_dict(plain(**{field: 1}))
    assert error.value.field == field
    known = {"model": "allocation", "optimizer": "learning_rate"}.get(field.split(".")[0], "seed")
    assert known in error.value.remedy


@pytest.mark.parametrize("field", ["name", "model", "model.unroll", "mesh.tensor", "train.steps"])
def test_missing_keys_are_named(field):
    values = plain()
    *sections, name = field.split(".")
    del (values[sections[0]] if sections else values)[name]
    with pytest.raises(BadInput, match="missing") as error:
        from_dict(values)
    assert error.value.field == field


def test_a_config_that_is_no_mapping():
    with pytest.raises(BadInput, match="not a section"):
        from_dict([])


@pytest.mark.parametrize("allocation", ["uniform", "middle:0.5", "widths:0x1,128x2,64x2,0x1"])
def test_to_dict_is_the_inverse_also_through_json(allocation):
    config = tiny_config(allocation)
    assert from_dict(to_dict(config)) == config
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == config
    assert to_dict(config) == tiny_config_dict(allocation).to_dict()


def test_an_int_is_a_float_and_stays_equal():
    config = from_dict(plain(**{"optimizer.weight_decay": 0, "model.rope_theta": 10000}))
    assert type(config.optimizer.weight_decay) is type(config.model.rope_theta) is float
    assert config == from_dict(plain(**{"optimizer.weight_decay": 0.0}))


@pytest.mark.parametrize(
    "overrides",
    [
        {"seed": (1 << 32) - 1},
        {"model.unroll": "3"},
        {"optimizer.beta1": 0.0},
        {"optimizer.clip_norm": 0.0, "optimizer.weight_decay": 0.0},
        {"optimizer.warmup_fraction": 1.0},
        {"optimizer.schedule": "wsd", "optimizer.warmup_fraction": 0.8},
        {"train.steps": 1},
        {"mesh.data": -1, "mesh.fsdp": 1},
        {"name": "middle70_570m.v2-b"},
    ],
    ids=str,
)
def test_edges_are_valid(overrides):
    from_dict(plain(**overrides))


def test_configs_are_frozen():
    config = tiny_config()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.model.d_model = 3
    assert copy.deepcopy(config) == config and isinstance(hash(config), int)


def test_derived_sizes():
    config = tiny_config(**{"train.global_batch_size": 8, "data.sequence_length": 16})
    assert config.tokens_per_step == 128
    assert config.microbatch_size == 8
    assert tiny_config(**{"train.microbatch_size": 2}).microbatch_size == 2
    assert tiny_config("middle:0.3").model.ffn_dims == (0, 0, 192, 192, 0, 0)


def test_identity_is_flat_plain_and_complete():
    """Every field is either part of a run's identity or listed here as free to change."""
    config = tiny_config("middle:0.5")
    found = identity(config)
    assert json.loads(json.dumps(found)) == found  # as it comes back from a checkpoint
    assert found["model.ffn_dims"] == list(config.model.ffn_dims) and found["seed"] == 0
    free = {
        "name",
        # ffn_dims stands for these
        *(f"model.{name}" for name in ("allocation", "num_layers", "d_ff", "ffn_tile")),
        # how the work is cut
        *(f"model.{name}" for name in ("remat", "unroll", "attention")),
        "train.microbatch_size",
        "train.loss_chunks",
        "train.deterministic",
        *(f"mesh.{name}" for name in ("data", "fsdp", "tensor")),
        # the data's fingerprint stands for these
        *(f"data.{name}" for name in ("source", "validation_source", "data_dir", "prepared_dir")),
        *(f"data.{name}" for name in ("tokenizer", "max_documents")),
        # rhythms, and the length, which the schedule decides about
        *(f"train.{name}" for name in ("steps", "log_every", "log_layers_every")),
        *(f"checkpoint.{name}" for name in ("every", "keep", "keep_every")),
        *(f"eval.{name}" for name in ("every", "rows", "tasks", "task_data", "task_limit")),
    }
    fields = {"name", "seed"}
    for section in dataclasses.fields(Config):
        if dataclasses.is_dataclass(section.type):
            fields |= {f"{section.name}.{f.name}" for f in dataclasses.fields(section.type)}
    assert set(found) == (fields - free) | {"model.ffn_dims"}


def test_the_quickstart_is_what_its_docstring_says():
    config = from_dict(quickstart.get_config().to_dict())
    assert config.model.ffn_dims == (0, 0, *[480] * 8, 0, 0)
    uniform = plain_quickstart(**{"name": "quickstart_uniform", "model.allocation": "uniform"})
    assert from_dict(uniform).model.ffn_dims == (320,) * 12


def plain_quickstart(**overrides):
    values = quickstart.get_config()
    values.update_from_flattened_dict(overrides)
    return values.to_dict()

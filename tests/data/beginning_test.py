"""What stands before a text, by the files that imported models come with."""

import io
import json
from pathlib import Path

import pytest
import sentencepiece
import tokenizers
from tokenizers import models, pre_tokenizers, processors

from ffn_alloc.data import tokenizer
from ffn_alloc.data.beginning import Beginning, beginning
from ffn_alloc.errors import BadInput

_BOS = {"bos_token": "<s>", "eos_token": "</s>"}


def _huggingface(folder: Path, settings: dict, template: str | None) -> tokenizer.Tokenizer:
    pieces = {"</s>": 0, "<s>": 1, **{c: i + 2 for i, c in enumerate("abc")}, "<unk>": 5}
    made = tokenizers.Tokenizer(models.BPE(vocab=pieces, merges=[], unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.add_special_tokens(["</s>", "<s>"])
    if template:
        special = [("<s>", 1), ("</s>", 0)]
        made.post_processor = processors.TemplateProcessing(single=template, special_tokens=special)
    made.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return tokenizer.load(f"huggingface:{folder}/tokenizer.json")


@pytest.mark.parametrize(
    ("settings", "template", "expected"),
    [
        (_BOS, "<s> $A", Beginning((1,), 1)),  # Llama 3
        (_BOS, "<s> $A </s>", Beginning((1,), 1)),
        ({"eos_token": "</s>"}, "<s> $A", Beginning((1,), 1)),
        ({**_BOS, "bos_token": {"content": "<s>"}}, "<s> $A", Beginning((1,), 1)),
        ({**_BOS, "add_bos_token": False}, "<s> $A", Beginning((), 1)),
        (_BOS, None, Beginning((), 1)),  # a BOS that nothing puts there: of an empty text alone
        ({"bos_token": "</s>", "eos_token": "</s>"}, None, Beginning((), 0)),  # our own exports
        ({"bos_token": "</s>", "eos_token": "</s>"}, "</s> $A", Beginning((0,), 0)),
        ({"eos_token": "</s>"}, None, Beginning((), 0)),
    ],
)
def test_of_a_tokenizer_json(tmp_path: Path, settings, template, expected):
    made = _huggingface(tmp_path, settings, template)
    assert beginning(made, imported=True) == expected
    assert beginning(made, imported=False) == Beginning((), 0)  # training used none


def test_padding_that_a_tokenizer_json_was_saved_with_does_not_count(tmp_path: Path):
    """transformers writes it there when texts were padded to a length."""
    path = tmp_path / "tokenizer.json"
    made = _huggingface(tmp_path, _BOS, "<s> $A")
    padded = tokenizers.Tokenizer.from_file(str(path))
    padded.enable_padding(length=8, pad_id=0, pad_token="</s>")
    padded.enable_truncation(4)
    padded.save(str(path))
    assert '"padding":null' not in path.read_text().replace(" ", "")
    assert beginning(made, imported=True) == Beginning((1,), 1)


def test_of_a_sentencepiece_model(tmp_path: Path):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a b c", "b c a"]),
        model_writer=model,
        model_type="char",
        vocab_size=7,
        minloglevel=2,
    )
    (tmp_path / "tokenizer.model").write_bytes(model.getvalue())
    made = tokenizer.load(f"sentencepiece:{tmp_path}/tokenizer.model")
    settings = tmp_path / "tokenizer_config.json"
    assert beginning(made, imported=True) == Beginning((1,), 1)  # as LLaMA's class does
    for content, expected in (
        (_BOS, Beginning((1,), 1)),
        ({**_BOS, "add_bos_token": False}, Beginning((), 1)),
        ({"bos_token": "</s>", "eos_token": "</s>"}, Beginning((), made.eos_id)),
        ({"bos_token": "<bos>", "add_bos_token": False}, Beginning((), made.eos_id)),
    ):
        settings.write_text(json.dumps(content))
        assert beginning(made, imported=True) == expected
    # a token added later: its id is not in the model file
    settings.write_text(json.dumps({"bos_token": "<bos>"}))
    with pytest.raises(BadInput, match="no piece '<bos>', the bos_token.* tokenizer.json$"):
        beginning(made, imported=True)
    settings.write_text("[]")
    with pytest.raises(BadInput, match="tokenizer_config.json cannot be used"):
        beginning(made, imported=True)


def test_bytes_have_nothing_before_them():
    assert beginning(tokenizer.load("bytes"), imported=True) == Beginning((), 256)

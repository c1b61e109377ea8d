"""Token ids are checked against the embedding table when a model or a plan is opened."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPTokenizer

import calotype
from calotype.errors import SourceError
from calotype.export.sources.source import read_source
from calotype.files.digest import digest_of
from calotype.plan.integrity import stamps
from calotype.plan.plan import MANIFEST
from calotype.text.tokenizer import ClipTokenizer, check_token_ids

ROWS = 604  # of the demonstration model


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_added_tokens_without_a_resized_text_encoder_are_refused(model_copy):
    """The usual cause: `tokenizer.add_tokens` without `resize_token_embeddings`."""
    (model_copy / "tokenizer" / "added_tokens.json").write_text(json.dumps({"<thing>": ROWS}))
    with pytest.raises(SourceError, match="<thing>") as raised:
        calotype.load(model_copy, backend="fake")
    assert raised.value.path == model_copy / "tokenizer" / "added_tokens.json"
    assert f"resize_token_embeddings({ROWS + 1})" in str(raised.value)


@pytest.mark.parametrize("special", [False, True])
def test_added_tokens_of_a_newer_tokenizer_are_refused(model_copy, special):
    tokenizer = CLIPTokenizer.from_pretrained(model_copy / "tokenizer")
    tokenizer.add_tokens(["<thing>"], special_tokens=special)
    shutil.rmtree(model_copy / "tokenizer")
    tokenizer.save_pretrained(model_copy / "tokenizer")
    assert not (model_copy / "tokenizer" / "vocab.json").exists()
    with pytest.raises(SourceError, match=r"tokenizer\.json.*<thing>"):
        read_source(model_copy)


@pytest.mark.parametrize("number", [ROWS, 10**9, 10**30, -1])
def test_a_vocabulary_past_the_table_is_refused(model_copy, number):
    edit(model_copy / "tokenizer" / "vocab.json", **{"ring</w>": number})
    with pytest.raises(SourceError, match=rf"vocab\.json.*{number}"):
        read_source(model_copy)


@pytest.mark.parametrize("number", ["5", None, 3.5, [1], True])
def test_ids_that_are_not_integers_are_refused(model_copy, number):
    edit(model_copy / "tokenizer" / "vocab.json", **{"ring</w>": number})
    with pytest.raises(SourceError, match="tokenizer"):
        read_source(model_copy)


def test_a_config_with_more_rows_than_the_table_is_refused(model_copy):
    (model_copy / "tokenizer" / "added_tokens.json").write_text(json.dumps({"<thing>": ROWS}))
    edit(model_copy / "text_encoder" / "config.json", vocab_size=ROWS + 1)
    with pytest.raises(SourceError, match="vocab_size"):
        read_source(model_copy)


def test_a_resized_text_encoder_has_its_words(model_copy):
    (model_copy / "tokenizer" / "added_tokens.json").write_text(json.dumps({"<thing>": ROWS}))
    (file,) = (model_copy / "text_encoder").glob("*.safetensors")
    tensors = load_file(file)
    (name,) = (n for n in tensors if n.endswith("token_embedding.weight"))
    tensors[name] = torch.cat([tensors[name], tensors[name][:1]])
    save_file(tensors, file, metadata={"format": "pt"})
    edit(model_copy / "text_encoder" / "config.json", vocab_size=ROWS + 1)
    assert ROWS in ClipTokenizer(read_source(model_copy).tokenizers["text_encoder"], 77)(["a <thing>"]).ids


def test_a_padding_token_that_was_added_pads(model_copy):
    """As in transformers. Its id is checked as that of every added token."""
    tokenizer = model_copy / "tokenizer"
    (tokenizer / "added_tokens.json").write_text(json.dumps({"<pad>": 5}))
    edit(tokenizer / "tokenizer_config.json", pad_token="<pad>")
    assert ClipTokenizer(tokenizer, 77)(["red"]).ids[0, 0, -1] == 5


def test_a_plan_whose_tokenizer_was_exchanged_is_refused(saved_plan, tmp_path):
    folder = shutil.copytree(saved_plan, tmp_path / "plan")
    (folder / "tokenizer" / "added_tokens.json").write_text(json.dumps({"<thing>": ROWS}))
    manifest = json.loads((folder / MANIFEST).read_text()) | {"files": stamps(folder, exclude=[MANIFEST])}
    del manifest["digest"]
    manifest = json.loads(json.dumps(manifest))
    (folder / MANIFEST).write_text(json.dumps({**manifest, "digest": digest_of(manifest)}))
    with pytest.raises(SourceError, match="<thing>"):
        calotype.load(folder, backend="fake")


@pytest.mark.parametrize("text", ["[]", "{}", '{"added_tokens": 3}', '{"added_tokens": [], "model": []}'])
def test_a_broken_tokenizer_is_refused_as_such(tmp_path, text):
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(SourceError, match="tokenizer"):
        check_token_ids(tmp_path, ROWS, tmp_path)

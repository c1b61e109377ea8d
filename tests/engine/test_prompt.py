"""Token ids are those of transformers' CLIPTokenizer."""

import json

import pytest
from transformers import CLIPTokenizer

from calotype.errors import InputError, SourceError
from calotype.prompt import ClipTokenizer

PROMPTS = [
    "",
    "a large red circle on a blue background",
    "A LARGE  red\tCircle!!!",
    "it's 12 cafés — ünïcode 你好 🎉",
    "<|endoftext|> literally",
    "\n",
    "'ll we're don't",
    "zzyzx " * 90,
    "1234567890",
    "e\u0301 composed",
]


@pytest.fixture(scope="module")
def folder(demo_folder):
    return demo_folder / "tokenizer"


@pytest.mark.parametrize("prompt", PROMPTS)
def test_ids_equal_transformers(folder, prompt):
    elder = CLIPTokenizer.from_pretrained(folder)
    wanted = elder([prompt], padding="max_length", max_length=77, truncation=True)["input_ids"]
    assert ClipTokenizer(folder, 77)([prompt]).ids.tolist() == wanted


def test_what_does_not_fit_is_told(folder):
    tokens = ClipTokenizer(folder, 77)(["red " * 75 + "and then some", "short"])
    assert tokens.dropped == ("and then some", "")


def test_padding_is_what_the_config_says(folder, tmp_path):
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"pad_token": "!"}))  # Stable Diffusion 2's
    vocabulary = json.loads((folder / "vocab.json").read_text())
    assert ClipTokenizer(tmp_path, 77)(["red"]).ids[0, -1] == vocabulary["!"]


@pytest.mark.parametrize("prompt", PROMPTS)
def test_tokenizer_json_alone_gives_the_same_ids(folder, tmp_path, prompt):
    """What transformers 5 writes, and nothing beside it."""
    CLIPTokenizer.from_pretrained(folder).save_pretrained(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["tokenizer.json", "tokenizer_config.json"]
    assert (ClipTokenizer(tmp_path, 77)([prompt]).ids == ClipTokenizer(folder, 77)([prompt]).ids).all()


def test_wrong_prompts_and_broken_tokenizers(folder, tmp_path):
    with pytest.raises(InputError, match="prompt"):
        ClipTokenizer(folder, 77)([3])
    with pytest.raises(SourceError, match=r"vocab\.json"):
        ClipTokenizer(tmp_path, 77)
    for vocabulary, merges in (("{", ""), ("[]", ""), ("{}", "a b"), ('{"a": 1}', "a b c")):
        (tmp_path / "vocab.json").write_text(vocabulary)
        (tmp_path / "merges.txt").write_text(merges)
        with pytest.raises(SourceError, match="cannot be read"):
            ClipTokenizer(tmp_path, 77)


@pytest.mark.parametrize("config", ["{", "[]", '{"pad_token": {"x": 1}}'])
def test_a_broken_tokenizer_config_is_told(folder, tmp_path, config):
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    (tmp_path / "tokenizer_config.json").write_text(config)
    with pytest.raises(SourceError, match="cannot be read"):
        ClipTokenizer(tmp_path, 77)

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


def test_a_lone_surrogate_is_no_crash(folder):
    assert ClipTokenizer(folder, 77)(["red \udcff circle"]).ids.shape == (1, 77)


def test_wrong_prompts_and_broken_tokenizers(folder, tmp_path):
    with pytest.raises(InputError, match="prompt"):
        ClipTokenizer(folder, 77)([3])
    with pytest.raises(SourceError, match=r"vocab\.json"):
        ClipTokenizer(tmp_path, 77)
    (tmp_path / "vocab.json").write_text("{")
    (tmp_path / "merges.txt").write_text("")
    with pytest.raises(SourceError, match="cannot be read"):
        ClipTokenizer(tmp_path, 77)

"""Token ids are those of transformers' CLIPTokenizer."""

import json

import numpy as np
import pytest
from transformers import CLIPTokenizer

from calotype.errors import InputError, SourceError
from calotype.text.prompt_weights import parse_weighted_prompt
from calotype.text.tokenizer import ClipTokenizer

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
    reference = CLIPTokenizer.from_pretrained(folder)
    expected = reference([prompt], padding="max_length", max_length=77, truncation=True)["input_ids"]
    tokens = ClipTokenizer(folder, 77)([prompt])
    assert tokens.ids[:, 0].tolist() == expected
    assert (tokens.weights == 1).all()


def test_dropped_text_is_returned(folder):
    tokens = ClipTokenizer(folder, 77)(["red " * 75 + "and then some", "short"])
    assert tokens.dropped == ("and then some", "")
    weighed = ClipTokenizer(folder, 77)(["(red:1.5) " * 74 + "(red red:0.5) and (then:2) some"])
    assert weighed.dropped == ("red and then some",)


def test_long_prompts_are_chunks(folder):
    """Each chunk has its own start and end; shorter prompts get the chunks of the empty prompt."""
    tokenizer = ClipTokenizer(folder, 77)
    tokens = tokenizer(["red " * 160, "blue"], max_chunks=4)
    assert tokens.ids.shape == (2, 3, 77)
    assert tokens.dropped == ("", "")
    for i, count in enumerate((75, 75, 10)):
        np.testing.assert_array_equal(tokens.ids[0, i], tokenizer(["red " * count]).ids[0, 0])
    np.testing.assert_array_equal(tokens.ids[1], np.concatenate([tokenizer([t]).ids[0] for t in ("blue", "", "")]))
    assert tokenizer(["red " * 160], max_chunks=2).dropped == ("red " * 10,)
    more = tokens.with_chunks(4, tokenizer.empty)
    np.testing.assert_array_equal(more.ids[:, 3], [tokenizer.empty] * 2)
    np.testing.assert_array_equal(more.ids[:, :3], tokens.ids)


SPANS = {
    "": [("", 1)],
    "a red ring": [("a red ring", 1)],
    "a (red:1.3) ring": [("a ", 1), ("red", 1.3), (" ring", 1)],
    "(a (red:2) ring:0.5)": [("a ", 0.5), ("red", 1), (" ring", 0.5)],
    "(a:1.5)(b:1.5)": [("ab", 1.5)],
    "a (photo) of ((rings))": [("a (photo) of ((rings))", 1)],
    "a ) ( b :1.3) c": [("a ) ", 1), (" b ", 1.3), (" c", 1)],
    "(unclosed (red:1.2)": [("(unclosed ", 1), ("red", 1.2)],
    r"\(red:1.3\) \x": [(r"(red:1.3) \x", 1)],
    "(:1.3)": [("", 1.3)],
    "(red:0)": [("red", 0)],
    "(red:.5) (red: 2 )": [("red", 0.5), (" ", 1), ("red", 2)],
    "(x:-1) (x:1e3) (x)": [("(x:-1) (x:1e3) (x)", 1)],
}


@pytest.mark.parametrize("prompt", SPANS)
def test_weights_are_parsed(prompt):
    assert [(text, pytest.approx(weight)) for text, weight in parse_weighted_prompt(prompt)] == SPANS[prompt]


def test_an_invalid_weight_raises():
    with pytest.raises(InputError, match="30"):
        parse_weighted_prompt("(at 12:30)")


@pytest.mark.parametrize("prompt", ["(" * 1_000_000, "red " * 25_001, "(red:1.1)" * 20_000])
def test_a_prompt_of_more_than_100000_characters_raises(prompt, fake):
    for prompts in ({"prompt": prompt}, {"prompt": "x", "negative_prompt": prompt}):
        with pytest.raises(InputError, match="100,000"):
            fake(**prompts)


@pytest.mark.parametrize("prompt", ["(" * 100_000, ("(" * 20 + "a" + ":1.01)" * 20) * 690, "\\" * 100_000])
def test_the_longest_prompt_is_read(prompt, fake):
    assert fake(prompt, steps=1).images


@pytest.mark.parametrize("weight", ["9" * 5000, "1" * 400, "0.5:" + "9" * 100])
def test_the_error_for_a_weight_of_many_digits_is_short(weight):
    with pytest.raises(InputError, match="from 0 to 10") as refused:
        parse_weighted_prompt(f"(red:{weight})")
    assert len(str(refused.value)) < 300


def test_nested_weights_are_limited():
    assert [weight for text, weight in parse_weighted_prompt("(((red:10):10):10)") if text] == [1000]
    with pytest.raises(InputError, match="nested"):
        parse_weighted_prompt("(" * 40 + "red" + ":10)" * 40)
    assert [weight for text, weight in parse_weighted_prompt("(" * 40 + "red" + ":0.1)" * 40) if text] == [
        pytest.approx(1e-40)
    ]


def test_weights_belong_to_their_tokens(folder):
    tokens = ClipTokenizer(folder, 77)(["a (red:1.5) ring", "a red ring"])
    np.testing.assert_array_equal(tokens.ids[0], tokens.ids[1])
    assert tokens.weights[0, 0, :5].tolist() == [1, 1, 1.5, 1, 1]
    assert (tokens.weights[1] == 1).all()


def test_the_config_sets_the_padding_token(folder, tmp_path):
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"pad_token": "!"}))  # Stable Diffusion 2's
    vocabulary = json.loads((folder / "vocab.json").read_text())
    assert ClipTokenizer(tmp_path, 77)(["red"]).ids[0, 0, -1] == vocabulary["!"]


@pytest.mark.parametrize("prompt", PROMPTS)
def test_tokenizer_json_gives_the_same_ids(folder, tmp_path, prompt):
    """The only vocabulary file that transformers 5 writes."""
    CLIPTokenizer.from_pretrained(folder).save_pretrained(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["tokenizer.json", "tokenizer_config.json"]
    assert (ClipTokenizer(tmp_path, 77)([prompt]).ids == ClipTokenizer(folder, 77)([prompt]).ids).all()


def test_invalid_prompts_and_tokenizers_raise(folder, tmp_path):
    with pytest.raises(InputError, match="prompt"):
        ClipTokenizer(folder, 77)([3])
    with pytest.raises(SourceError, match=r"vocab\.json"):
        ClipTokenizer(tmp_path, 77)
    for vocabulary, merges in (("{", ""), ("[]", ""), ("{}", "a b"), ('{"a": 1}', "a b c")):
        (tmp_path / "vocab.json").write_text(vocabulary)
        (tmp_path / "merges.txt").write_text(merges)
        with pytest.raises(SourceError, match="tokenizer"):
            ClipTokenizer(tmp_path, 77)


@pytest.mark.parametrize("config", ["{", "[]", '{"pad_token": {"x": 1}}'])
def test_an_invalid_tokenizer_config_raises(folder, tmp_path, config):
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    (tmp_path / "tokenizer_config.json").write_text(config)
    with pytest.raises(SourceError, match="tokenizer"):
        ClipTokenizer(tmp_path, 77)

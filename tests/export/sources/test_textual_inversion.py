"""Textual inversion: the pictures of diffusers with the same files, on every backend, and in plans."""

import json
import os

import diffusers
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import calotype
from calotype.errors import InputError, SourceError
from calotype.export import BuildSpec, build, prepare
from calotype.export.builder.assembly import assemble
from calotype.export.quality.metrics import psnr
from calotype.export.sources.source import read_source
from calotype.export.sources.textual_inversion import add_embeddings, add_embeddings_into
from calotype.export.steps.subprocess_task import Outcome
from calotype.plan.plan import write_plan
from calotype.text.tokenizer import ClipTokenizer

# diffusers gives tensors of torch to functions of numpy, about which numpy 2 has its doubts.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

PROMPT = "a large <thing> on a (blue:1.2) background"
PLAIN = "a large <thing> left of a <Thing2>, <thing>"


@pytest.fixture(autouse=True)
def here(monkeypatch):
    """Words are added in this process, but for those of fixtures: a child of its own takes seconds to begin."""
    made = "calotype.export.sources.textual_inversion.run_in_subprocess"
    monkeypatch.setattr(made, lambda _, __, **said: Outcome(value=add_embeddings_into(**said), peak_bytes=0))


def vectors(count, width, seed):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed)) * 0.5


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """diffusers' layout with three vectors, AUTOMATIC1111's with one; each for the demonstration model (128 wide)."""
    folder = tmp_path_factory.mktemp("words")
    save_file({"<thing>": vectors(3, 128, 1)}, folder / "learned_embeds.safetensors")
    save_file({"emb_params": vectors(1, 128, 2)}, folder / "bad-hands.safetensors")
    return folder / "learned_embeds.safetensors", folder / "bad-hands.safetensors"


@pytest.fixture(scope="module")
def taught(words):
    """The demonstration model with both, one of them called otherwise, on each backend."""
    said = [words[0], f"{words[1]}:<Thing2>"]
    return {b: calotype.load("demo", backend=b, textual_inversion=said) for b in ("eager", "onnxruntime", "openvino")}


def elder_of(folder, cls, **more):
    pipe = cls.from_pretrained(folder, dtype=torch.float32, low_cpu_mem_usage=False, **more)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize(("backend", "least"), [("eager", 60), ("onnxruntime", 50), ("openvino", 50)])
def test_pictures_are_those_of_diffusers(demo_folder, words, taught, pipes, backend, least):
    elder = elder_of(demo_folder, diffusers.StableDiffusionPipeline, safety_checker=None)
    elder.load_textual_inversion(str(words[0]))
    elder.load_textual_inversion(str(words[1]), token="<Thing2>")
    generator = [torch.Generator().manual_seed(5)]
    said = {"guidance_scale": 5.0, "output_type": "np", "negative_prompt": "a <Thing2>"}
    wanted = elder(PLAIN, num_inference_steps=3, generator=generator, height=64, width=64, **said).images
    got = taught[backend](PLAIN, steps=3, seed=5, height=64, width=64, **said).images
    assert psnr(got, wanted) >= least
    without = pipes["eager"](PLAIN, steps=3, seed=5, height=64, width=64, **said).images
    assert psnr(got, without) < 35  # the words say something


def test_all_but_the_text_encoder_stays(words, taught):
    source = read_source("demo")
    learned = add_embeddings(source, [words[0]])
    changed = {name for name in source.digests if source.digests[name] != learned.digests[name]}
    assert changed == {"text_encoder"}
    plain, with_words = (calotype.load("demo", backend="onnxruntime").plan, taught["onnxruntime"].plan)
    for name in ("unet", "vae_decoder", "vae_encoder"):
        assert plain.components[name].artifacts[0].path == with_words.components[name].artifacts[0].path
    prints = {source.fingerprint, learned.fingerprint, add_embeddings(source, [f"{words[0]}:<x>"]).fingerprint}
    assert len(prints) == 3


def test_without_the_words_the_picture_is_the_same(taught, pipes):
    said = {"steps": 2, "seed": 1, "output_type": "np", "height": 64, "width": 64}
    for backend in ("eager", "onnxruntime"):
        got, wanted = (p("a red ring", **said).images for p in (taught[backend], pipes[backend]))
        np.testing.assert_array_equal(got, wanted)


def test_a_plan_has_the_words_inside(words, taught, tmp_path):
    said = [words[0], f"{words[1]}:<Thing2>"]
    plan = assemble(prepare("demo", words=said), add_embeddings(read_source("demo"), said), tmp_path)
    write_plan(plan, tmp_path, sealed=True)
    pipe = calotype.load(tmp_path, backend="onnxruntime")
    asked = {"steps": 2, "seed": 1, "output_type": "np", "height": 64, "width": 64}
    np.testing.assert_array_equal(pipe(PROMPT, **asked).images, taught["onnxruntime"](PROMPT, **asked).images)
    with pytest.raises(InputError, match="is a plan, which has its learned words inside"):
        calotype.load(tmp_path, textual_inversion=words[0])


def test_a_build_takes_them_with_an_autoencoder_and_no_network(words, demo_folder, monkeypatch, tmp_path):
    vae = str(demo_folder / "vae")
    spec = BuildSpec(model="demo", output=tmp_path / "x", textual_inversion=(f"{words[0]}:<x>",), vae=vae, offline=True)
    assert spec.command() == f"calotype build demo --vae {vae} --textual-inversion '{words[0]}:<x>' --offline"
    given = {}

    def read(model, nets, autoencoder, *, offline):
        given.update(vae=autoencoder, offline=offline)
        return read_source(model)

    def learned(source, said):
        raise SourceError(f"learning {said[0]}")

    monkeypatch.setattr("calotype.export.builder.build.read_source", read)
    monkeypatch.setattr("calotype.export.builder.build.learn", learned)
    with pytest.raises(SourceError, match=r"learning .*:<x>"):
        build(spec)
    assert given == {"vae": vae, "offline": True}


def test_words_in_prompts(words):
    source = add_embeddings(read_source("demo"), [words[0], f"{words[1]}:hands"])
    size = read_source("demo").configs["text_encoder"]["vocab_size"]
    folder = source.tokenizers["text_encoder"]
    assert ClipTokenizer(folder, 77)(["<THING>hands <thing>_1 x"]).ids[0, 0, :8].tolist()[1:6] == [
        *(size, size + 1, size + 2, size + 3, size + 1),  # "<thing>_1" is its second vector alone
    ]
    for other in ("<th\u0131ng>", "<TH\u0130NG>"):  # which Python takes for an "i" where case is ignored
        assert size not in ClipTokenizer(folder, 77)([other]).ids
    weighed = ClipTokenizer(folder, 77)(["(<thing>:1.5)"])
    assert weighed.weights[0, 0, :5].tolist() == [1, 1.5, 1.5, 1.5, 1]
    long = ClipTokenizer(folder, 77)(["a " * 74 + "<thing> ring"])
    assert long.dropped == ("<thing> ring",)
    table = load_file(source.folders["text_encoder"] / "model.safetensors")
    (name,) = (n for n in table if n.endswith("token_embedding.weight"))
    torch.testing.assert_close(table[name][size : size + 3], vectors(3, 128, 1), rtol=0, atol=0)


def test_both_encoders_of_sdxl(sdxl_folder, tmp_path):
    file = tmp_path / "style.safetensors"
    save_file({"clip_l": vectors(2, 128, 3), "clip_g": vectors(2, 48, 4)}, file)
    elder = elder_of(sdxl_folder, diffusers.StableDiffusionXLPipeline)
    for name, encoder, tokenizer in (
        ("clip_l", elder.text_encoder, elder.tokenizer),
        ("clip_g", elder.text_encoder_2, elder.tokenizer_2),
    ):
        elder.load_textual_inversion(
            {"style": load_file(file)[name]}, token="style", text_encoder=encoder, tokenizer=tokenizer
        )
    said = {"guidance_scale": 5.0, "height": 64, "width": 64, "output_type": "np"}
    generator = [torch.Generator().manual_seed(5)]
    wanted = elder("a ring in style", num_inference_steps=3, generator=generator, **said).images
    pipe = calotype.load(sdxl_folder, backend="eager", textual_inversion=file)
    got = pipe("a ring in style", steps=3, seed=5, **said).images
    assert psnr(got, wanted) >= 60
    with pytest.raises(SourceError, match=r"its vectors are \[2, 128\] and \[2, 48\]|does not fit the model"):
        calotype.load("demo", backend="eager", textual_inversion=save(tmp_path / "x.safetensors", clip_l=2, clip_g=3))


@pytest.mark.parametrize(
    ("counts", "told"),
    [
        ({"<x>": 2, "<x>_1": 1}, "'<x>_1' belongs to another file's word"),
        ({"<x>_1": 1, "<x>": 2}, "'<x>_1' belongs to another file's word"),
        ({"<x>": 1, "<X>_1": 1}, "'<x>_1' belongs to another file's word"),  # it would be the first's second vector
        ({"<x>": 1, "<x>_2": 1}, None),
    ],
)
def test_names_of_further_vectors_are_taken_as_well(tmp_path, counts, told):
    source, said = read_source("demo"), []
    for i, (word, count) in enumerate(counts.items()):
        save_file({word: vectors(count, 128, i)}, tmp_path / f"{i}.safetensors")
        said.append(tmp_path / f"{i}.safetensors")
    if told is None:
        assert add_embeddings(source, said)
        return
    with pytest.raises(SourceError, match=told):
        add_embeddings(source, said)
    with pytest.raises(SourceError, match=r"the word '<x>_1' is in the model's vocabulary"):
        add_embeddings(add_embeddings(source, said[:1]), said[1:])


def test_the_pooled_state_is_that_of_the_end_and_not_of_a_word(model_copy, words):
    """Where the config says 2, transformers pools at the largest number: it is so in all that is published."""
    from transformers import CLIPTextModel

    config = model_copy / "text_encoder" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"eos_token_id": 2}))
    source = add_embeddings(read_source(model_copy), [words[0]])
    ids = torch.from_numpy(ClipTokenizer(source.tokenizers["text_encoder"], 77)(["a <thing>"]).ids[0])
    encoder = CLIPTextModel.from_pretrained(source.folders["text_encoder"], dtype=torch.float32)
    with torch.no_grad():
        made = encoder(ids)
    torch.testing.assert_close(made.pooler_output, made.last_hidden_state[:, 5], rtol=0, atol=0)  # a, three vectors
    assert read_source(model_copy).configs["text_encoder"]["eos_token_id"] == 2


def test_a_config_that_says_no_width_is_told(model_copy, words):
    config = model_copy / "text_encoder" / "config.json"
    told = json.loads(config.read_text())
    for name in ("vocab_size", "hidden_size"):
        config.write_text(json.dumps({k: v for k, v in told.items() if k != name}))
        with pytest.raises(SourceError, match=f"config.json says no {name}; fetch the model again"):
            add_embeddings(read_source(model_copy), [words[0]])


def save(path, **counts):
    save_file({name: vectors(count, 48, 0) for name, count in counts.items()}, path)
    return path


WRONG = {
    "another family's": ({"<x>": vectors(1, 768, 0)}, "", r"its vectors are \[1, 768\], and the model's words are 128"),
    "a word there is": ({"red": vectors(1, 128, 0)}, "", "the word 'red' is in the model's vocabulary; call it other"),
    "no one word": ({"x": vectors(1, 128, 0)}, ":two words", "a word has no spaces, got 'two words'"),
    "many tensors": ({"a": vectors(1, 128, 0), "b": vectors(1, 128, 0)}, "", "it holds 2 tensors, such as a; one has"),
    "not finite": ({"<x>": vectors(1, 128, 0) * torch.inf}, "", "numbers that are not finite"),
    "a number": ({"<x>": torch.tensor(1.0)}, "", "does not fit the model"),
    "no vectors": ({"<x>": torch.zeros(0, 128)}, "", "does not fit the model"),
}


@pytest.mark.parametrize("case", WRONG)
def test_files_that_do_not_fit_are_told(tmp_path, case):
    tensors, called, told = WRONG[case]
    save_file({n: t.contiguous() for n, t in tensors.items()}, tmp_path / "x.safetensors")
    with pytest.raises(SourceError, match=told):
        add_embeddings(read_source("demo"), [f"{tmp_path / 'x.safetensors'}{called}"])


def test_files_that_are_not_there_or_pickles(tmp_path):
    (tmp_path / "x.pt").write_bytes(b"pickle")
    for name, told in (
        ("nowhere.safetensors", "there is no file .*nowhere"),
        ("x.pt", "is a pickle, which can run"),
        ("x" * 300, "cannot be looked at .*too long"),
    ):
        with pytest.raises(SourceError, match=told):
            add_embeddings(read_source("demo"), [tmp_path / name])
    with pytest.raises(SourceError, match=r"the file ~nosuchuser/x cannot be looked at"):
        add_embeddings(read_source("demo"), ["~nosuchuser/x"])


def test_more_vectors_than_a_prompt_holds_are_refused_before_the_file_is_hashed(demo_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("calotype.export.sources.textual_inversion.file_digest", lambda path: pytest.fail("hashed"))
    source, path, count = read_source(demo_folder), tmp_path / "x.safetensors", 64 << 20
    header = json.dumps({"<x>": {"dtype": "F32", "shape": [count, 128], "data_offsets": [0, 512 * count]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    os.truncate(path, 8 + len(header) + 512 * count)
    with pytest.raises(SourceError, match="vectors"):
        add_embeddings(source, [path])

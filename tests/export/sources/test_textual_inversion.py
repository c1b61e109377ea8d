"""Textual inversion: the same images as diffusers with the same files, on every backend, and in plans."""

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

PROMPT = "a large <thing> on a (blue:1.2) background"
PLAIN = "a large <thing> left of a <Thing2>, <thing>"


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch):
    """Add words in this process, except in fixtures: a child process takes seconds to start."""

    def run(*_, **arguments):
        return Outcome(value=add_embeddings_into(**arguments), peak_bytes=0)

    monkeypatch.setattr("calotype.export.steps.stored_step.run_in_subprocess", run)


def vectors(count, width, seed):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed)) * 0.5


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """Files for the demonstration model (width 128): diffusers' layout with three vectors, AUTOMATIC1111's with one."""
    folder = tmp_path_factory.mktemp("words")
    save_file({"<thing>": vectors(3, 128, 1)}, folder / "learned_embeds.safetensors")
    save_file({"emb_params": vectors(1, 128, 2)}, folder / "bad-hands.safetensors")
    return folder / "learned_embeds.safetensors", folder / "bad-hands.safetensors"


@pytest.fixture(scope="module")
def taught(words):
    """The demonstration model with both words, one of them renamed, on each backend."""
    files = [words[0], f"{words[1]}:<Thing2>"]
    return {b: calotype.load("demo", backend=b, textual_inversion=files) for b in ("eager", "onnxruntime", "openvino")}


def reference_pipeline(folder, cls, **more):
    pipe = cls.from_pretrained(folder, dtype=torch.float32, low_cpu_mem_usage=False, **more)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize(("backend", "min_db"), [("eager", 60), ("onnxruntime", 50), ("openvino", 50)])
def test_images_match_diffusers(demo_folder, words, taught, pipes, backend, min_db):
    reference = reference_pipeline(demo_folder, diffusers.StableDiffusionPipeline, safety_checker=None)
    reference.load_textual_inversion(str(words[0]))
    reference.load_textual_inversion(str(words[1]), token="<Thing2>")
    generator = [torch.Generator().manual_seed(5)]
    options = {"guidance_scale": 5.0, "output_type": "np", "negative_prompt": "a <Thing2>"}
    expected = reference(PLAIN, num_inference_steps=3, generator=generator, height=64, width=64, **options).images
    got = taught[backend](PLAIN, steps=3, seed=5, height=64, width=64, **options).images
    assert psnr(got, expected) >= min_db
    without = pipes["eager"](PLAIN, steps=3, seed=5, height=64, width=64, **options).images
    assert psnr(got, without) < 35  # the words change the image


def test_only_the_text_encoder_changes(words, taught):
    source = read_source("demo")
    learned = add_embeddings(source, [words[0]])
    changed = {name for name in source.digests if source.digests[name] != learned.digests[name]}
    assert changed == {"text_encoder"}
    plain, with_words = (calotype.load("demo", backend="onnxruntime").plan, taught["onnxruntime"].plan)
    for name in ("unet", "vae_decoder", "vae_encoder"):
        assert plain.components[name].artifacts[0].path == with_words.components[name].artifacts[0].path
    prints = {source.fingerprint, learned.fingerprint, add_embeddings(source, [f"{words[0]}:<x>"]).fingerprint}
    assert len(prints) == 3


def test_images_without_the_words_are_unchanged(taught, pipes):
    options = {"steps": 2, "seed": 1, "output_type": "np", "height": 64, "width": 64}
    for backend in ("eager", "onnxruntime"):
        got, expected = (p("a red ring", **options).images for p in (taught[backend], pipes[backend]))
        np.testing.assert_array_equal(got, expected)


def test_a_plan_contains_the_words(words, taught, tmp_path):
    files = [words[0], f"{words[1]}:<Thing2>"]
    plan = assemble(prepare("demo", words=files), add_embeddings(read_source("demo"), files), tmp_path)
    write_plan(plan, tmp_path, sealed=True)
    pipe = calotype.load(tmp_path, backend="onnxruntime")
    options = {"steps": 2, "seed": 1, "output_type": "np", "height": 64, "width": 64}
    np.testing.assert_array_equal(pipe(PROMPT, **options).images, taught["onnxruntime"](PROMPT, **options).images)
    with pytest.raises(InputError, match="is a plan"):
        calotype.load(tmp_path, textual_inversion=words[0])


def test_a_build_passes_words_autoencoder_and_offline_on(words, demo_folder, monkeypatch, tmp_path):
    vae = str(demo_folder / "vae")
    spec = BuildSpec(model="demo", output=tmp_path / "x", textual_inversion=(f"{words[0]}:<x>",), vae=vae, offline=True)
    assert spec.command() == f"calotype build demo --vae {vae} --textual-inversion '{words[0]}:<x>' --offline"
    passed = {}

    def read(model, _controlnets, autoencoder, *, unet, offline):
        passed.update(vae=autoencoder, unet=unet, offline=offline)
        return read_source(model)

    def add(source, files):
        raise SourceError(f"adding {files[0]}")

    monkeypatch.setattr("calotype.export.builder.prepare.read_source", read)
    monkeypatch.setattr("calotype.export.builder.prepare.add_embeddings", add)
    with pytest.raises(SourceError, match=r"adding .*:<x>"):
        build(spec)
    assert passed == {"vae": vae, "unet": None, "offline": True}


def test_words_in_prompts(words):
    source = add_embeddings(read_source("demo"), [words[0], f"{words[1]}:hands"])
    size = read_source("demo").configs["text_encoder"]["vocab_size"]
    folder = source.tokenizers["text_encoder"]
    assert ClipTokenizer(folder, 77)(["<THING>hands <thing>_1 x"]).ids[0, 0, :8].tolist()[1:6] == [
        *(size, size + 1, size + 2, size + 3, size + 1),  # "<thing>_1" is its second vector
    ]
    for other in ("<th\u0131ng>", "<TH\u0130NG>"):  # Python treats it as "i" when it ignores case
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
    reference = reference_pipeline(sdxl_folder, diffusers.StableDiffusionXLPipeline)
    for name, encoder, tokenizer in (
        ("clip_l", reference.text_encoder, reference.tokenizer),
        ("clip_g", reference.text_encoder_2, reference.tokenizer_2),
    ):
        reference.load_textual_inversion(
            {"style": load_file(file)[name]}, token="style", text_encoder=encoder, tokenizer=tokenizer
        )
    options = {"guidance_scale": 5.0, "height": 64, "width": 64, "output_type": "np"}
    generator = [torch.Generator().manual_seed(5)]
    expected = reference("a ring in style", num_inference_steps=3, generator=generator, **options).images
    pipe = calotype.load(sdxl_folder, backend="eager", textual_inversion=file)
    got = pipe("a ring in style", steps=3, seed=5, **options).images
    assert psnr(got, expected) >= 60
    with pytest.raises(SourceError, match="does not fit"):
        calotype.load("demo", backend="eager", textual_inversion=save(tmp_path / "x.safetensors", clip_l=2, clip_g=3))


@pytest.mark.parametrize(
    ("counts", "keyword"),
    [
        ({"<x>": 2, "<x>_1": 1}, "another file"),
        ({"<x>_1": 1, "<x>": 2}, "another file"),
        ({"<x>": 1, "<X>_1": 1}, "another file"),  # the name of the first word's second vector
        ({"<x>": 1, "<x>_2": 1}, None),
    ],
)
def test_names_of_additional_vectors_are_taken_as_well(tmp_path, counts, keyword):
    source, files = read_source("demo"), []
    for i, (word, count) in enumerate(counts.items()):
        save_file({word: vectors(count, 128, i)}, tmp_path / f"{i}.safetensors")
        files.append(tmp_path / f"{i}.safetensors")
    if keyword is None:
        assert add_embeddings(source, files)
        return
    with pytest.raises(SourceError, match=keyword):
        add_embeddings(source, files)
    with pytest.raises(SourceError, match="vocabulary"):
        add_embeddings(add_embeddings(source, files[:1]), files[1:])


def test_the_pooled_state_is_that_of_the_end_token(model_copy, words):
    """For an end token of 2, as in all published configs, transformers pools at the largest token id."""
    from transformers import CLIPTextModel

    config = model_copy / "text_encoder" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"eos_token_id": 2}))
    source = add_embeddings(read_source(model_copy), [words[0]])
    ids = torch.from_numpy(ClipTokenizer(source.tokenizers["text_encoder"], 77)(["a <thing>"]).ids[0])
    encoder = CLIPTextModel.from_pretrained(source.folders["text_encoder"], dtype=torch.float32)
    with torch.no_grad():
        output = encoder(ids)
    torch.testing.assert_close(output.pooler_output, output.last_hidden_state[:, 5], rtol=0, atol=0)  # a, three vectors
    assert read_source(model_copy).configs["text_encoder"]["eos_token_id"] == 2


def test_a_config_without_sizes_is_refused(model_copy, words):
    config = model_copy / "text_encoder" / "config.json"
    original = json.loads(config.read_text())
    for name in ("vocab_size", "hidden_size"):
        config.write_text(json.dumps({k: v for k, v in original.items() if k != name}))
        with pytest.raises(SourceError) as raised:
            add_embeddings(read_source(model_copy), [words[0]])
        assert raised.value.data == {"path": config, "field": name}


def save(path, **counts):
    save_file({name: vectors(count, 48, 0) for name, count in counts.items()}, path)
    return path


WRONG = {
    "another family's": ({"<x>": vectors(1, 768, 0)}, "", r"\[1, 768\]"),
    "a known word": ({"red": vectors(1, 128, 0)}, "", "vocabulary"),
    "two words": ({"x": vectors(1, 128, 0)}, ":two words", "spaces"),
    "many tensors": ({"a": vectors(1, 128, 0), "b": vectors(1, 128, 0)}, "", "got 2 tensors"),
    "not finite": ({"<x>": vectors(1, 128, 0) * torch.inf}, "", "not finite"),
    "a number": ({"<x>": torch.tensor(1.0)}, "", "does not fit"),
    "no vectors": ({"<x>": torch.zeros(0, 128)}, "", "does not fit"),
}


@pytest.mark.parametrize("case", WRONG)
def test_files_that_do_not_fit_are_refused(tmp_path, case):
    tensors, word, keyword = WRONG[case]
    save_file({n: t.contiguous() for n, t in tensors.items()}, tmp_path / "x.safetensors")
    with pytest.raises(SourceError, match=keyword):
        add_embeddings(read_source("demo"), [f"{tmp_path / 'x.safetensors'}{word}"])


def test_missing_files_and_pickles_are_refused(tmp_path):
    (tmp_path / "x.pt").write_bytes(b"pickle")
    for name, keyword in (
        ("nowhere.safetensors", "nowhere"),
        ("x.pt", "is a pickle"),
        ("x" * 300, "too long"),
    ):
        with pytest.raises(SourceError, match=keyword):
            add_embeddings(read_source("demo"), [tmp_path / name])
    with pytest.raises(SourceError, match="~nosuchuser/x"):
        add_embeddings(read_source("demo"), ["~nosuchuser/x"])


def test_more_vectors_than_a_prompt_holds_are_refused_before_the_file_is_hashed(demo_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("calotype.export.sources.textual_inversion.file_digest", lambda path: pytest.fail("hashed"))
    source, path, count = read_source(demo_folder), tmp_path / "x.safetensors", 64 << 20
    header = json.dumps({"<x>": {"dtype": "F32", "shape": [count, 128], "data_offsets": [0, 512 * count]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    os.truncate(path, 8 + len(header) + 512 * count)
    with pytest.raises(SourceError, match="vectors"):
        add_embeddings(source, [path])

"""CLIP scores equal transformers', for any CLIP model's folder; and the model that ships is useful."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

import calotype
from calotype.errors import InputError, SourceError
from calotype.export.judge import scenes
from calotype.images import clip
from demo_training.evaluate import held_out_scenes, measure_clip

DRAWN = [scenes.draw_scene(s, held_out=True) for s in range(10_000_000, 10_000_008)]
IMAGES = [Image.fromarray(scenes.render(s)) for s in DRAWN]
WORDS = [scenes.caption(s) for s in DRAWN]


@pytest.fixture(scope="module")
def other(tmp_path_factory, demo_folder):
    """A CLIP of random weights and other sizes, with OpenAI's processor, but another filter and crop."""
    folder = tmp_path_factory.mktemp("clip")
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = small | {"vocab_size": 604, "bos_token_id": 602, "eos_token_id": 603, "max_position_embeddings": 40}
    vision = small | {"image_size": 48, "patch_size": 16}
    torch.manual_seed(0)
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=24))
    for weights in model.parameters():
        torch.nn.init.normal_(weights, std=0.15)
    model.save_pretrained(folder)
    cut = {"height": 48, "width": 48}
    CLIPImageProcessorPil(size={"shortest_edge": 56}, crop_size=cut, resample=2).save_pretrained(folder)
    CLIPTokenizer.from_pretrained(demo_folder / "tokenizer").save_pretrained(folder)
    return folder


@pytest.mark.parametrize("which", ["the one that ships", "another"])
def test_scores_are_a_hundred_times_transformers_cosine(which, other):
    folder = clip.DEMO if which == "the one that ships" else other
    model = CLIPModel.from_pretrained(folder, dtype=torch.float32).eval()
    processor, words = CLIPImageProcessorPil.from_pretrained(folder), CLIPTokenizer.from_pretrained(folder)
    wide = [image.resize((150, 100)) for image in IMAGES]  # so that the processor crops
    length = model.config.text_config.max_position_embeddings
    ids = words(WORDS, padding="max_length", max_length=length, return_tensors="pt")
    with torch.no_grad():
        out = model(**processor(wide, return_tensors="pt"), **ids)
        cosines = (out.logits_per_image / model.logit_scale.exp()).numpy()
    got = calotype.clip_score(wide, WORDS, model=None if folder == clip.DEMO else folder)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, 100 * cosines.diagonal(), atol=1e-3)
    opened = calotype.Clip(folder)
    np.testing.assert_allclose(opened.encode_image(wide), out.image_embeds.numpy(), atol=1e-5)
    np.testing.assert_allclose(opened.encode_text(WORDS), out.text_embeds.numpy(), atol=1e-5)


def test_one_image_equals_a_list_and_arrays_equal_images():
    scores = calotype.clip_score(IMAGES, WORDS)
    np.testing.assert_allclose(calotype.clip_score(IMAGES[0], WORDS[0]), scores[:1], atol=1e-3)
    stack = np.stack([np.asarray(p) for p in IMAGES])
    np.testing.assert_array_equal(calotype.clip_score(stack, WORDS), scores)
    np.testing.assert_allclose(calotype.clip_score(stack / 255, WORDS), scores, atol=1e-3)
    np.testing.assert_allclose(calotype.clip_score(IMAGES, WORDS[0])[0], scores[0], atol=1e-3)


def test_images_of_several_sizes_in_one_list():
    sizes = [128, 64, 300]
    several = [IMAGES[0].resize((side, side)) for side in sizes]
    each = [calotype.clip_score(image, WORDS[0])[0] for image in several]
    np.testing.assert_allclose(calotype.clip_score(several, WORDS[0]), each, atol=1e-3)


def test_a_long_text_is_truncated(other):
    words = "a red circle on a blue background " * 40
    assert np.isfinite(calotype.Clip(other).encode_text(words)).all()
    assert calotype.Clip(other).tokens == 40


def test_it_tells_held_out_scenes_apart():
    """A sample of the 300 scenes of `demo_training clip`; the floors allow for the small sample.

    The model hardly distinguishes wrong shapes, sizes and relations from right ones, so they have no floor.
    """
    scores = measure_clip(calotype.Clip(), held_out_scenes(40, skip=2000))
    assert scores["above_another"] >= 0.95
    assert scores["matched"] >= scores["mismatched"] + 50
    assert scores["rejected"]["color"] >= 0.95  # by chance a half
    assert scores["rejected"]["background"] >= 0.95


@pytest.mark.parametrize(
    ("images", "prompts", "keyword"),
    [
        ([], "x", "empty list"),
        (IMAGES[:2], ["x", "y", "z"], "2 images"),
        (IMAGES[:2], [], "prompts"),
        (IMAGES[0], [3], "prompts"),
        (["a.png"], "x", "a.png"),
        (np.full((4, 4, 3), np.nan), "x", "from nan"),
    ],
)
def test_invalid_arguments_raise(images, prompts, keyword):
    with pytest.raises(InputError, match=keyword):
        calotype.clip_score(images, prompts)


def test_folders_without_a_clip_model_raise(tmp_path, demo_folder, other):
    with pytest.raises(SourceError, match=r"config\.json"):
        calotype.Clip(tmp_path)
    with pytest.raises(SourceError, match="clip_text_model"):
        calotype.Clip(demo_folder / "text_encoder")
    copy = shutil.copytree(other, tmp_path / "copy")
    weights = load_file(copy / "model.safetensors")
    del weights["visual_projection.weight"]
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(SourceError, match=r"visual_projection\.weight"):
        calotype.Clip(copy)
    (copy / "model.safetensors").unlink()
    torch.save({}, copy / "pytorch_model.bin")
    with pytest.raises(SourceError, match="Cannot load"):
        calotype.Clip(copy)


def test_it_is_small():
    files = list(clip.DEMO.iterdir())
    assert sum(f.stat().st_size for f in files) <= 3_000_000
    assert json.loads((clip.DEMO / "config.json").read_text())["architectures"] == ["CLIPModel"]

"""LoRAs that a prompt names: only those of a folder, and only on request."""

import shutil

import numpy as np
import pytest

import calotype
from calotype.errors import InputError, SourceError

OPTIONS = {"steps": 1, "seed": 3, "height": 64, "width": 64, "output_type": "np"}


@pytest.fixture(scope="module")
def folder(demo_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("loras")
    (folder / "more").mkdir()
    for name in ("outline", "more/thin outline"):
        shutil.copy(demo_folder / "outline.safetensors", folder / f"{name}.safetensors")
    return folder


@pytest.fixture(scope="module")
def pipe(folder):
    return calotype.load("demo", backend="eager", lora_folder=folder)


def test_a_tag_adds_a_lora_for_the_call_and_leaves_the_prompt(pipe, folder):
    tagged = pipe("a red ring <lora:outline:0.5>", **OPTIONS)
    assert [(path.rpartition("/")[2], weight) for path, weight in tagged.report.loras] == [("outline.safetensors", 0.5)]
    without = pipe("a red ring", **OPTIONS)
    assert without.report.loras == ()
    pipe.set_lora((folder / "outline.safetensors", 0.5))
    same = pipe("a red ring", **OPTIONS)
    np.testing.assert_array_equal(tagged.images, same.images)
    assert np.abs(tagged.images - without.images).max() > 0.01
    both = pipe(["<lora:thin outline> a red ring", "a ring<LORA:thin outline:1.0>"], **OPTIONS)
    assert [weight for _, weight in both.report.loras] == [0.5, 1.0]
    assert [weight for _, weight in pipe("a red ring", **OPTIONS).report.loras] == [0.5]
    pipe.set_lora(None)
    assert pipe("a red ring", **OPTIONS).report.loras == ()


@pytest.mark.parametrize(
    ("prompt", "keyword"),
    [
        ("<lora:other:1>", "outline"),
        ("<lora:../loras/outline:1>", "no LoRA"),
        ("<lora:more/thin outline>", "no LoRA"),
        ("<lora:outline:much>", "weight"),
        ("<lora:outline:nan>", "weight"),
        ("<lora:outline:0.5:0.6>", "weight"),
        ("<lora:outline:11>", "weight"),
        (["a <lora:outline>", "b"], "one set"),
    ],
)
def test_odd_tags_are_refused(pipe, prompt, keyword):
    with pytest.raises(InputError, match=keyword):
        pipe(prompt, **OPTIONS)


def test_without_a_folder_a_tag_is_text_with_a_note(folder):
    result = calotype.load("demo", backend="eager")("a red ring <lora:outline:0.5>", **OPTIONS)
    assert result.report.loras == ()
    assert any("lora_folder" in note for note in result.report.notes)
    for other in (folder / "nowhere", 3, "\0"):
        with pytest.raises(SourceError, match="lora_folder"):
            calotype.load("demo", backend="eager", lora_folder=other)

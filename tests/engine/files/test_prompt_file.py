"""`--prompts FILE` and `--grid`: a call for each line, one contact sheet."""

import json

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from calotype import cli
from calotype.errors import InputError
from calotype.files.prompt_file import read_prompts
from calotype.images.output import contact_sheet


def generate(*arguments):
    return CliRunner().invoke(cli.app, ["generate", "--backend", "fake", "--steps", "1", *map(str, arguments)])


def test_a_line_is_a_prompt_or_a_json_object(tmp_path):
    (tmp_path / "a.txt").write_text('\ufeffa cat\r\n\n  {red|blue} dog\n{"prompt": "x", "seed": 5}\n', "utf-8")
    assert [line for _, line in read_prompts(tmp_path / "a.txt")] == [
        *[{"prompt": "a cat"}, {"prompt": "{red|blue} dog"}],
        {"prompt": "x", "seed": 5},
    ]


FILES = {
    "empty.txt": b"\n \n",
    "latin.txt": "ü".encode("latin-1"),
    "a.jsonl": b"a cat",
    "b.txt": b'{"prompt": ',
    "c.jsonl": b"[1]",
    "d.jsonl": b'{"prompt": "x", "output_type": "latent"}',
    "deep.txt": b'{"a":' * 100_000,
    "large.txt": b"x" * (17 << 20),
}


@pytest.mark.parametrize("name", [*FILES, "missing.txt", "."])
def test_a_wrong_file_raises(name, tmp_path):
    if name in FILES:
        (tmp_path / name).write_bytes(FILES[name])
    with pytest.raises(InputError):
        read_prompts(tmp_path / name)


@pytest.mark.parametrize(
    "line", [{"stepz": 3}, {"steps": "many"}, {"seed": -1}, {"image": "none.png"}, {"prompt": 3}, {"scheduler": "x"}]
)
def test_a_wrong_line_raises_before_the_first_image(line, tmp_path):
    (tmp_path / "p.txt").write_text("a cat\n" + json.dumps({"prompt": "x"} | line))
    done = generate("--prompts", tmp_path / "p.txt", "-o", tmp_path / "a.png")
    assert isinstance(done.exception, InputError)
    assert "line 2" in str(done.exception)
    assert not list(tmp_path.glob("*.png"))


def test_a_prompt_and_a_file_exclude_each_other(tmp_path):
    done = generate("x", "--prompts", tmp_path / "p.txt")
    assert isinstance(done.exception, InputError)
    assert done.exception.argument == "prompts"


def test_the_seed_counts_up_over_the_lines_and_a_grid_has_all_images(tmp_path, fake):
    (tmp_path / "p.txt").write_text('a\n{"prompt": "b", "seed": 50}\nc\n')
    done = generate("--prompts", tmp_path / "p.txt", "--seed", 3, "--num-images", 2, "--grid", "-o", tmp_path / "i.png")
    assert done.exit_code == 0, done.output
    seeds = []
    for i in range(6):
        with Image.open(tmp_path / f"i-{i}.png") as image:
            seeds.append(int(image.text["seed"]))
    assert seeds == [3, 4, 50, 51, 7, 8]
    with Image.open(tmp_path / "i-grid.png") as sheet, Image.open(tmp_path / "i-3.png") as image:
        assert sheet.size == (256, 384)  # a row for each line
        np.testing.assert_array_equal(np.asarray(sheet)[128:256, 128:], np.asarray(image))


def test_a_sheet_is_about_square_and_has_cells_of_the_largest_image():
    sheet = contact_sheet([Image.new("RGB", (4, 8)), Image.new("RGB", (8, 4)), *[Image.new("RGB", (2, 2))] * 3])
    assert sheet.size == (24, 16)
    assert sheet.getpixel((5, 0)) == (255, 255, 255)


@pytest.mark.parametrize("suffix", ["jpg", "webp"])
def test_the_quality_changes_the_size(suffix, tmp_path):
    for quality in (5, 100):
        assert (
            generate("x", "--seed", 1, "--image-quality", quality, "-o", tmp_path / f"{quality}.{suffix}").exit_code
            == 0
        )
    small, large = ((tmp_path / f"{quality}.{suffix}").stat().st_size for quality in (5, 100))
    assert small < large


def test_a_quality_of_a_png_is_refused(tmp_path):
    done = generate("x", "--image-quality", 90, "-o", tmp_path / "a.png")
    assert isinstance(done.exception, InputError)
    assert done.exception.argument == "image_quality"

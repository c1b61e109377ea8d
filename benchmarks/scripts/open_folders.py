"""Open the tiny pipelines of diffusers' own tests as folders, and compare the images with diffusers'.

    DIFFUSERS_TESTS=diffusers/tests python -m calotype.benchmarks.scripts.open_folders [CLASS...] [--backend eager]

Each pipeline with a U-Net gets its dummy components (random weights), is saved with `save_pretrained`, and opened with
`calotype.load`. Both sides get the same images, prompt and seed. The table has the class, "opened" or the reason of a
refusal, and the PSNR. Nothing is fetched: a tokenizer of the hub becomes one of single bytes.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import inspect
import io
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock
from warnings import catch_warnings, simplefilter

import numpy as np
from numpy.typing import NDArray
from PIL import Image

import calotype
from calotype.errors import CalotypeError, SourceError, first_line
from calotype.export.quality.metrics import psnr

ROOT_VARIABLE = "DIFFUSERS_TESTS"
# diffusers' names of arguments -> ours. Arguments without an entry change nothing at these values.
_NAMES = {"num_inference_steps": "steps", "num_images_per_prompt": "num_images"}
_IMAGES = ("image", "mask_image", "control_image", "adapter_image")
# Arguments whose defaults differ between the classes of diffusers: the call names them.
_DEFAULTS = ("strength", "guidance_scale", "guidance_rescale", "num_inference_steps", "controlnet_conditioning_scale")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One class: the PSNR of our image to diffusers', or the reason why there is none."""

    name: str
    decibels: float | None
    reason: str

    def __str__(self) -> str:
        figure = "" if self.decibels is None else f"{self.decibels:.0f} dB"
        return f"| `{self.name}` | {self.reason} | {figure} |"


def compare(pipe: Any, inputs: Mapping[str, Any], *, seed: int = 0, backend: str = "eager") -> float:
    """Save a pipeline of diffusers, open the folder, and return the PSNR of our image to its image, in dB.

    Args:
        pipe: the pipeline.
        inputs: arguments of its call. Images may be tensors; both sides get them as bytes.
        seed: the seed of both sides.
        backend: a backend of Calotype.

    Raises:
        CalotypeError: Calotype refuses the folder or an argument.
    """
    import torch

    takes = inspect.signature(type(pipe).__call__).parameters
    inputs = {name: takes[name].default for name in _DEFAULTS if name in takes} | dict(inputs)
    inputs = {name: _as_images(value) if name in _IMAGES else value for name, value in inputs.items()}
    with tempfile.TemporaryDirectory() as folder, _quiet():
        pipe.save_pretrained(folder)
        opened = calotype.load(folder, backend=backend, pag=hasattr(pipe, "pag_applied_layers"))
        got = opened(**our_inputs(pipe, inputs), seed=seed).images
        pipe.set_progress_bar_config(disable=True)
        expected = pipe(**{**inputs, "output_type": "np", "generator": torch.Generator().manual_seed(seed)}).images
    return psnr(np.asarray(got), np.asarray(expected))


def our_inputs(pipe: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the inputs of a pipeline's call under Calotype's names. A ControlNet's `image` is our `control_image`."""
    from calotype.request.request import Request

    ours = {_NAMES.get(name, name): value for name, value in inputs.items()}
    if getattr(pipe, "controlnet", None) is not None and "control_image" not in inputs:
        ours["control_image"] = ours.pop("image")
    if getattr(pipe, "adapter", None) is not None:
        ours["adapter_image"] = ours.pop("image")
    if (layers := getattr(pipe, "pag_applied_layers", None)) is not None:  # an argument of diffusers' pipelines
        ours["pag_applied_layers"] = layers
    known = inspect.signature(Request).parameters
    return {name: value for name, value in ours.items() if name in known} | {"output_type": "np"}


def _as_images(value: Any) -> Any:
    """Return images for tensors [B, C, H, W] or arrays; other values unchanged."""
    if isinstance(value, list):
        return [_as_images(each) for each in value]
    if hasattr(value, "numpy"):  # a tensor
        value = value.numpy()
    if not isinstance(value, np.ndarray):
        return value
    pixels: NDArray[Any] = value[0] if value.ndim == 4 else value
    pixels = np.moveaxis(pixels, 0, -1) if pixels.ndim == 3 and pixels.shape[0] in (1, 3) else pixels
    pixels = (pixels.clip(0, 1) * 255).round().astype(np.uint8)
    return Image.fromarray(pixels[..., 0] if pixels.ndim == 3 and pixels.shape[-1] == 1 else pixels)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()), catch_warnings():
        simplefilter("ignore")
        yield


def testers(folder: Path, classes: Sequence[str]) -> Iterator[Any]:
    """Yield an object with `get_dummy_components` for each pipeline with a U-Net in diffusers' tests.

    `classes` are the names of the pipelines; the default is all.
    """
    sys.path.insert(0, str(folder.resolve().parent))
    seen = set()
    for file in sorted((folder / "pipelines").rglob("test_*.py")):
        text = file.read_text()
        if (
            "UNet2D" not in text
            or file.parent.name == "pipelines"
            or (classes and not any(name in text for name in classes))
        ):
            continue
        parts = file.relative_to(folder.parent).with_suffix("").parts
        module = _imported(".".join([folder.name, *parts[1:]]))
        for kind in vars(module).values():
            if not inspect.isclass(kind) or kind.__module__ != module.__name__:
                continue  # diffusers' stand-in for a class that lacks a package raises for every attribute
            tester = hasattr(kind, "get_dummy_inputs")
            name = getattr(getattr(kind, "pipeline_class", None), "__name__", None)
            key = name, getattr(kind, "get_dummy_components", None)
            if tester and name is not None and key not in seen and (not classes or name in classes):
                seen.add(key)
                yield object.__new__(kind)


def _imported(name: str) -> Any:
    """Import a file of tests. Packages that only its tests need and that are missing become mocks."""
    while True:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as missing:
            if missing.name is None or missing.name in sys.modules:
                raise
            sys.modules[missing.name] = mock.MagicMock()


def row_of(tester: Any, backend: str) -> Row:
    """Return the row of one pipeline. A class that cannot be made without the hub says so."""
    name = tester.pipeline_class.__name__
    try:
        with _quiet():
            pipe = tester.pipeline_class(**tester.get_dummy_components())
            args = ["cpu"] if "device" in inspect.signature(tester.get_dummy_inputs).parameters else []
            inputs = tester.get_dummy_inputs(*args)
    except Exception as failed:
        return Row(name=name, decibels=None, reason=f"not made: {first_line(failed)}")
    for unused in ("generator", "output_type", "return_dict"):
        inputs.pop(unused, None)
    if "mask_image" in inputs:  # a masked image of one color makes the autoencoder divide by a variance of almost 0
        inputs["mask_image"] = _half_mask(_as_images(inputs["mask_image"]))
    try:
        return Row(name=name, decibels=compare(pipe, inputs, backend=backend), reason="opened")
    except SourceError as refused:
        reason = first_line(refused).replace(str(refused.path), "the folder")
        return Row(name=name, decibels=None, reason=f"refused: {reason}")
    except CalotypeError as refused:
        return Row(name=name, decibels=None, reason=f"opened; this call has no counterpart: {first_line(refused)}")
    except Exception as failed:
        return Row(name=name, decibels=None, reason=f"failed: {type(failed).__name__}: {first_line(failed)}")


def _half_mask(mask: Image.Image) -> Image.Image:
    half = Image.new("L", mask.size)
    half.paste(255, (mask.width // 4, 0, mask.width, mask.height))
    return half


def _byte_tokenizer() -> Any:
    """Return a CLIP tokenizer of single bytes, in place of hf-internal-testing/tiny-random-clip."""
    from transformers import CLIPTokenizer
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters = list(bytes_to_unicode().values())
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocab = {word: number for number, word in enumerate(words)}
    return CLIPTokenizer(vocab=vocab, merges=[], model_max_length=77)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("classes", nargs="*", help="names of pipeline classes; the default is all")
    parser.add_argument("--backend", default="eager")
    options = parser.parse_args(arguments)
    if not (folder := os.environ.get(ROOT_VARIABLE)):
        parser.error(f"set {ROOT_VARIABLE} to the folder tests/ of a clone of diffusers")
    os.environ["HF_HUB_OFFLINE"] = "1"  # read at the import
    import diffusers
    from transformers import CLIPTokenizer

    diffusers.logging.set_verbosity_error()
    CLIPTokenizer.from_pretrained = lambda name, **_: _byte_tokenizer()
    rows = []
    print("| class | | PSNR |\n| --- | --- | --- |")
    for tester in testers(Path(folder), options.classes):
        rows.append(row_of(tester, options.backend))
        print(rows[-1], flush=True)
    same = {row.name for row in rows if row.decibels is not None and row.decibels >= 60}
    print(f"\n{len(same)} of {len({row.name for row in rows})} classes give the same image (60 dB or more)")


if __name__ == "__main__":
    main()

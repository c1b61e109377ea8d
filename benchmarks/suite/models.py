"""`python -m calotype.benchmarks.suite.models sd15 [--once]`: full-size models of seeded random weights, without a
download.

Configs are the published ones; weights are the libraries' own initialization under a seed, kept in fp16. Pictures of
such a model mean nothing, but every layer, size and name is the real one: for figures of speed, memory and exactness.
They are no flat grey: the decoder's last norm makes states of unit size of any latents, and the initial weights of its
last convolution make of these a contrast of 38 of 255 levels in each channel (SD 1.5 at 256 px, 2 steps; another prompt
moves pixels by 16 levels, another control picture by 5). So a fault does not drown in the rounding to bytes.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from calotype.errors import InputError
from calotype.export.sources.configs import MODELS, VOCABULARY
from calotype.export.steps.subprocess_task import run_in_subprocess
from calotype.export.store.store import fetch, key_of
from calotype.text.tokenizer import END, START

# What makes what; raised when the same config and seed are made into other weights.
_VERSIONS = {"make_described": 1, "make_controlnet": 2}


def model_folder(name: str, *, seed: int = 0) -> Path:
    """The model's folder among what Calotype keeps, made at the first call (GBs, and a minute or two)."""
    if name not in MODELS:
        raise InputError(f"there is no model {name!r} to make; the full-size models are {', '.join(sorted(MODELS))}.")
    return _kept(name, f"the model {name}", "make_described", described=MODELS[name], seed=seed)


def controlnet_folder(name: str, *, seed: int = 0) -> Path:
    """A ControlNet for that model, likewise."""
    model = model_folder(name, seed=seed)
    return _kept(f"{name}-controlnet", f"a ControlNet for {name}", "make_controlnet", model=str(model), seed=seed)


def _kept(name: str, what: str, function: str, **how: Any) -> Path:
    """What `function` makes of `how`, in the store: in a child, whose memory ends with it."""
    # Not where a model lies, which is its user's: its folder's name says what it is.
    about = {**how, "model": Path(how["model"]).name} if "model" in how else how

    def make(folder: Path) -> Mapping[str, Any]:
        run_in_subprocess(f"making {what}", f"calotype.benchmarks.suite.models:{function}", folder=str(folder), **how)
        return {}

    key = key_of({"version": _VERSIONS[function], "function": function, **about})
    return fetch(key, make, label={"model": name, "kind": "random weights"})[0]


def make_described(*, described: Mapping[str, Any], folder: str | Path, seed: int) -> None:
    """Write a model of MODELS in diffusers' layout. Takes as much memory as its largest network in float32."""
    folder, parts = Path(folder), dict(described)
    kind = parts.pop("pipeline")
    index: dict[str, Any] = {"_class_name": kind, "_diffusers_version": "0.30.0"}
    if kind == "StableDiffusionXLPipeline":
        index["force_zeros_for_empty_prompt"] = True
    scheduler, settings = parts.pop("scheduler")
    _write(folder / "scheduler" / "scheduler_config.json", {"_class_name": scheduler, **settings})
    index["scheduler"] = ["diffusers", scheduler]
    for part, (class_name, config) in parts.items():
        library = "transformers" if class_name.startswith("CLIP") else "diffusers"
        index[part] = [library, class_name]
        _make_network(library, class_name, config, folder / part, seed)
        if part.startswith("text_encoder"):
            tokenizer = part.replace("text_encoder", "tokenizer")
            index[tokenizer] = ["transformers", "CLIPTokenizer"]
            # OpenAI's encoder was trained on prompts filled up with its end mark, OpenCLIP's (with gelu) on others.
            _make_tokenizer(folder / tokenizer, pad="!" if config["hidden_act"] == "gelu" else END)
    _write(folder / "model_index.json", index)


def _make_network(library: str, class_name: str, config: Mapping[str, Any], folder: Path, seed: int) -> None:
    import diffusers
    import torch
    import transformers

    torch.manual_seed(seed)
    if library == "transformers":
        made = getattr(transformers, class_name)(transformers.CLIPTextConfig(**config))
    else:
        made = getattr(diffusers, class_name).from_config(dict(config))
    made.to(torch.float16).save_pretrained(folder, safe_serialization=True)


def make_controlnet(*, model: str | Path, folder: str | Path, seed: int = 0) -> None:
    """Write a ControlNet for the model's U-Net: its copy, as training begins with, and steering from the start.

    What training begins with at zero (Zhang et al. 2023, arXiv 2302.05543) gets small random numbers: each output is
    about a fifth as large as the state of the copy that it is computed from. The picture's embedding, whose first
    numbers would let hardly anything of a picture through, gets larger ones, and no biases: black stays nothing.
    """
    import diffusers
    import torch

    unet = diffusers.UNet2DConditionModel.from_pretrained(Path(model) / "unet", torch_dtype=torch.float16)
    torch.manual_seed(seed)
    made = diffusers.ControlNetModel.from_unet(unet)
    del unet
    outputs = [(0.2, layer) for layer in (*made.controlnet_down_blocks, made.controlnet_mid_block)]
    picture = made.controlnet_cond_embedding  # 2 makes up for a SiLU, whose slope is a half near zero
    hidden = [(2.0, layer) for layer in (picture.conv_in, *picture.blocks)]
    for size, layer in (*outputs, *hidden, (1.0, picture.conv_out)):
        torch.nn.init.normal_(layer.weight, std=size * layer.weight[0].numel() ** -0.5)
        torch.nn.init.zeros_(layer.bias)
    made.to(torch.float16).save_pretrained(folder, safe_serialization=True)


def control_image(*, height: int, width: int, seed: int = 0) -> Image.Image:
    """White outlines on black, as an edge detector draws them: what most ControlNets are steered by."""
    drawn = Image.new("RGB", (width, height))
    pen, dice = ImageDraw.Draw(drawn), random.Random(seed)
    for _ in range(12):
        x, y, size = dice.random() * width, dice.random() * height, (0.1 + 0.3 * dice.random()) * min(height, width)
        draw = pen.ellipse if dice.random() < 0.5 else pen.rectangle
        draw((x - size / 2, y - size / 2, x + size / 2, y + size / 2), outline="white", width=max(1, width // 256))
    return drawn


def _make_tokenizer(folder: Path, *, pad: str) -> None:
    """CLIP's alphabet of bytes without merges: every prompt is spelt letter by letter."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(b) for b in shown] + [chr(256 + i) for i in range(256 - len(shown))]
    words = [*letters, *(letter + "</w>" for letter in letters)]
    words += [f"<unused-{i}>" for i in range(VOCABULARY - 2 - len(words))] + [START, END]
    _write(folder / "vocab.json", {word: i for i, word in enumerate(words)})
    (folder / "merges.txt").write_text("#version: 0.2\n")
    _write(
        folder / "special_tokens_map.json", {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": pad}
    )
    said = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "pad_token": pad}
    _write(folder / "tokenizer_config.json", {**said, "bos_token": START, "eos_token": END, "unk_token": END})


def once(folder: Path, backend: str = "onnxruntime") -> Iterator[str]:
    """Trace every component, paint one step at the model's own size, and say what that took: a line each."""
    from calotype.loading import load

    pipe = load(folder, backend=backend)
    for name in pipe.plan.components:
        made = pipe.component(name).component.artifacts[0].check
        yield f"{name}: traced and checked in {made['seconds']:.0f} s, {made['peak_bytes'] / 2**30:.1f} GiB at most"
    began = time.monotonic()
    report = pipe("a house by a lake", steps=1, seed=0).report
    seconds, peak = time.monotonic() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    usual = f"{pipe.plan.profile.width.opt} x {pipe.plan.profile.height.opt}"
    yield f"one step at {usual} px: {seconds:.0f} s with all that is opened, {peak / 2**30:.1f} GiB at most"
    yield str(report)


def _write(path: Path, data: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data))


def main() -> None:
    """The command line: makes the model once, and says where it is."""
    parser = argparse.ArgumentParser(description="Make a full-size model with random weights, once.")
    parser.add_argument("model", choices=sorted(MODELS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--controlnet", action="store_true", help="a ControlNet for it as well")
    parser.add_argument("--once", action="store_true", help="trace it, paint one step, and say memory and seconds")
    said = parser.parse_args()
    print(model_folder(said.model, seed=said.seed))
    if said.controlnet:
        print(controlnet_folder(said.model, seed=said.seed))
    if said.once:
        for line in once(model_folder(said.model, seed=said.seed)):
            print(line, flush=True)


if __name__ == "__main__":
    main()

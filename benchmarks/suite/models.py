"""Full-size models with seeded random weights, without a download: `python -m calotype.benchmarks.suite.models sd15`.

The configs are the published ones. The weights are the libraries' own initialization under a seed, kept in fp16. Images
of such a model mean nothing, but every layer, size and name is the real one, so the models serve for speed, memory and
exactness. Their images are not flat: the decoder's last norm gives states of unit size for any latents, and the initial
weights of its last convolution turn these into a contrast of 38 of 255 levels in each channel (SD 1.5 at 256 px, 2
steps). Another prompt moves pixels by 16 levels, another control image by 5. A fault therefore does not disappear in
the rounding to bytes.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from calotype.errors import InputError
from calotype.export.sources.configs import MODELS, VOCABULARY
from calotype.export.steps.subprocess_task import run_in_subprocess
from calotype.export.store.store import fetch, key_of
from calotype.text.tokenizer import END, START

# Versions of the functions: increase one if it makes other weights from the same config and seed.
_VERSIONS = {"make_described": 1, "make_controlnet": 2}


def model_folder(name: str, *, seed: int = 0) -> Path:
    """Return the folder of the model in the cache. The first call creates it (gigabytes, and a minute or two)."""
    if name not in MODELS:
        message = f"unknown model {name!r}. The full-size models are {', '.join(sorted(MODELS))}."
        raise InputError(message, argument="name", got=name)
    return _kept(name, f"the model {name}", "make_described", described=MODELS[name], seed=seed)


def controlnet_folder(name: str, *, seed: int = 0) -> Path:
    """Return the folder of a ControlNet for the model. The first call creates it."""
    model = model_folder(name, seed=seed)
    return _kept(f"{name}-controlnet", f"a ControlNet for {name}", "make_controlnet", model=str(model), seed=seed)


def _kept(name: str, what: str, function: str, **how: Any) -> Path:
    """Return the cached result of `function`. A child process creates it, so that its memory is freed."""
    # The key contains the name of the model's folder and not its path, which depends on the user.
    about = {**how, "model": Path(how["model"]).name} if "model" in how else how

    def make(folder: Path) -> Mapping[str, Any]:
        run_in_subprocess(f"making {what}", f"calotype.benchmarks.suite.models:{function}", folder=str(folder), **how)
        return {}

    key = key_of({"version": _VERSIONS[function], "function": function, **about})
    return fetch(key, make, label={"model": name, "kind": "random weights"})[0]


def make_described(*, described: Mapping[str, Any], folder: str | Path, seed: int) -> None:
    """Write a model of MODELS in diffusers' layout. Takes as much memory as its largest network in float32."""
    import torch

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
        torch.manual_seed(seed)
        network(class_name, config).to(torch.float16).save_pretrained(folder / part, safe_serialization=True)
        if part.startswith("text_encoder"):
            tokenizer = part.replace("text_encoder", "tokenizer")
            index[tokenizer] = ["transformers", "CLIPTokenizer"]
            # OpenAI's encoder was trained with its end token as padding, OpenCLIP's (with gelu) with "!".
            _make_tokenizer(folder / tokenizer, pad="!" if config["hidden_act"] == "gelu" else END)
    _write(folder / "model_index.json", index)


def network(class_name: str, config: Mapping[str, Any]) -> Any:
    """Return a network of transformers (CLIP) or diffusers with initial weights, on torch's default device."""
    import diffusers
    import transformers

    if class_name.startswith("CLIP"):
        return getattr(transformers, class_name)(transformers.CLIPTextConfig(**config))
    return getattr(diffusers, class_name).from_config(dict(config))


def make_controlnet(*, model: str | Path, folder: str | Path, seed: int = 0) -> None:
    """Write a ControlNet for the model's U-Net: its copy, as at the start of training, that steers at once.

    The layers that start at zero in training (Zhang et al. 2023, arXiv 2302.05543) get small random numbers: each
    output is about a fifth as large as the state that it is computed from. The embedding of the control image gets
    larger numbers, because its initial ones would pass almost nothing of the image. It gets no biases, so that a black
    image has no effect.
    """
    import diffusers
    import torch

    unet = diffusers.UNet2DConditionModel.from_pretrained(Path(model) / "unet", torch_dtype=torch.float16)
    torch.manual_seed(seed)
    net = diffusers.ControlNetModel.from_unet(unet)
    del unet
    outputs = [(0.2, layer) for layer in (*net.controlnet_down_blocks, net.controlnet_mid_block)]
    embedding = net.controlnet_cond_embedding  # 2 compensates for a SiLU, whose slope near zero is a half
    hidden = [(2.0, layer) for layer in (embedding.conv_in, *embedding.blocks)]
    for size, layer in (*outputs, *hidden, (1.0, embedding.conv_out)):
        torch.nn.init.normal_(layer.weight, std=size * layer.weight[0].numel() ** -0.5)
        torch.nn.init.zeros_(layer.bias)
    net.to(torch.float16).save_pretrained(folder, safe_serialization=True)


def control_image(*, height: int, width: int, seed: int = 0) -> Image.Image:
    """Draw white outlines on black, as an edge detector does: the input of most ControlNets."""
    drawn = Image.new("RGB", (width, height))
    pen, dice = ImageDraw.Draw(drawn), random.Random(seed)
    for _ in range(12):
        x, y, size = dice.random() * width, dice.random() * height, (0.1 + 0.3 * dice.random()) * min(height, width)
        draw = pen.ellipse if dice.random() < 0.5 else pen.rectangle
        draw((x - size / 2, y - size / 2, x + size / 2, y + size / 2), outline="white", width=max(1, width // 256))
    return drawn


def _make_tokenizer(folder: Path, *, pad: str) -> None:
    """Write a tokenizer with CLIP's alphabet of bytes and no merges: it splits every prompt into letters."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(b) for b in shown] + [chr(256 + i) for i in range(256 - len(shown))]
    words = [*letters, *(letter + "</w>" for letter in letters)]
    words += [f"<unused-{i}>" for i in range(VOCABULARY - 2 - len(words))] + [START, END]
    _write(folder / "vocab.json", {word: i for i, word in enumerate(words)})
    (folder / "merges.txt").write_text("#version: 0.2\n")
    _write(
        folder / "special_tokens_map.json", {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": pad}
    )
    options = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "pad_token": pad}
    _write(folder / "tokenizer_config.json", {**options, "bos_token": START, "eos_token": END, "unk_token": END})


def _write(path: Path, data: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data))


def main() -> None:
    """Run the command line: create the model and print its folder."""
    parser = argparse.ArgumentParser(description="Create a full-size model with random weights.")
    parser.add_argument("model", choices=sorted(MODELS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--controlnet", action="store_true", help="also create a ControlNet for it")
    options = parser.parse_args()
    print(model_folder(options.model, seed=options.seed))
    if options.controlnet:
        print(controlnet_folder(options.model, seed=options.seed))


if __name__ == "__main__":
    main()

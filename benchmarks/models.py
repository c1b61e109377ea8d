"""`python -m calotype.benchmarks.models sd15 FOLDER`: full-size models with seeded random weights, without a download.

Configs are the published ones; weights are the libraries' own initialisation under a seed, kept in fp16. Pictures of
such a model mean nothing, but every layer, size and name is the real one: for figures of speed, memory and exactness.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from calotype.prompt import END, START

_VOCABULARY = 49408
_CROSS, _UP = "CrossAttnDownBlock2D", "CrossAttnUpBlock2D"

_TEXT = {
    **{"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12},
    **{"hidden_act": "quick_gelu", "projection_dim": 768, "vocab_size": _VOCABULARY, "max_position_embeddings": 77},
    **{"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1},
}
_TEXT_BIG = {
    **_TEXT,
    **{"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20},
    **{"hidden_act": "gelu", "projection_dim": 1280},
}
_VAE = {
    **{"block_out_channels": [128, 256, 512, 512], "layers_per_block": 2, "latent_channels": 4, "sample_size": 512},
    **{"down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4},
    "scaling_factor": 0.18215,
}
_BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}

MODELS: Mapping[str, Mapping[str, Any]] = {
    "sd15": {
        "pipeline": "StableDiffusionPipeline",
        "scheduler": ("PNDMScheduler", {**_BETAS, "skip_prk_steps": True, "set_alpha_to_one": False}),
        "text_encoder": ("CLIPTextModel", _TEXT),
        "unet": (
            "UNet2DConditionModel",
            {
                **{"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8, "layers_per_block": 2},
                "block_out_channels": [320, 640, 1280, 1280],
                "down_block_types": [_CROSS, _CROSS, _CROSS, "DownBlock2D"],
                "up_block_types": ["UpBlock2D", _UP, _UP, _UP],
            },
        ),
        "vae": ("AutoencoderKL", _VAE),
    },
    "sdxl": {
        "pipeline": "StableDiffusionXLPipeline",
        "scheduler": ("EulerDiscreteScheduler", {**_BETAS, "timestep_spacing": "leading"}),
        "text_encoder": ("CLIPTextModel", _TEXT),
        "text_encoder_2": ("CLIPTextModelWithProjection", _TEXT_BIG),
        "unet": (
            "UNet2DConditionModel",
            {
                **{"sample_size": 128, "cross_attention_dim": 2048, "attention_head_dim": [5, 10, 20]},
                **{"layers_per_block": 2, "transformer_layers_per_block": [1, 2, 10], "use_linear_projection": True},
                "block_out_channels": [320, 640, 1280],
                "down_block_types": ["DownBlock2D", _CROSS, _CROSS],
                "up_block_types": [_UP, _UP, "UpBlock2D"],
                **{"addition_embed_type": "text_time", "addition_time_embed_dim": 256},
                "projection_class_embeddings_input_dim": 2816,
            },
        ),
        "vae": ("AutoencoderKL", {**_VAE, "sample_size": 1024, "scaling_factor": 0.13025, "force_upcast": True}),
    },
}


def make_model(name: str, folder: Path, *, seed: int = 0) -> None:
    """Write the model in diffusers' layout. Takes as much memory as its largest network in float32."""
    described = dict(MODELS[name])
    kind = described.pop("pipeline")
    index: dict[str, Any] = {"_class_name": kind, "_diffusers_version": "0.30.0"}
    if kind == "StableDiffusionXLPipeline":
        index["force_zeros_for_empty_prompt"] = True
    scheduler, settings = described.pop("scheduler")
    _write(folder / "scheduler" / "scheduler_config.json", {"_class_name": scheduler, **settings})
    index["scheduler"] = ["diffusers", scheduler]
    for part, (class_name, config) in described.items():
        library = "transformers" if class_name.startswith("CLIP") else "diffusers"
        index[part] = [library, class_name]
        _make_network(library, class_name, config, folder / part, seed)
        if part.startswith("text_encoder"):
            tokenizer = part.replace("text_encoder", "tokenizer")
            index[tokenizer] = ["transformers", "CLIPTokenizer"]
            _make_tokenizer(folder / tokenizer, pad=END if part == "text_encoder" else "!")
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


def _make_tokenizer(folder: Path, *, pad: str) -> None:
    """CLIP's alphabet of bytes without merges: every prompt is spelt letter by letter."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(b) for b in shown] + [chr(256 + i) for i in range(256 - len(shown))]
    words = [*letters, *(letter + "</w>" for letter in letters)]
    words += [f"<unused-{i}>" for i in range(_VOCABULARY - 2 - len(words))] + [START, END]
    _write(folder / "vocab.json", {word: i for i, word in enumerate(words)})
    (folder / "merges.txt").write_text("#version: 0.2\n")
    _write(
        folder / "special_tokens_map.json", {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": pad}
    )
    said = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "pad_token": pad}
    _write(folder / "tokenizer_config.json", {**said, "bos_token": START, "eos_token": END, "unk_token": END})


def _write(path: Path, data: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Write a full-size model with random weights.")
    parser.add_argument("model", choices=sorted(MODELS))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    said = parser.parse_args()
    make_model(said.model, said.folder, seed=said.seed)


if __name__ == "__main__":
    main()

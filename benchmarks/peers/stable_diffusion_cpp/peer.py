"""stable-diffusion.cpp through its Python binding, on the CPU, in fp16, as its convolutions are whatever is asked for.

Its networks have the published shapes of Stable Diffusion 1 and 2 and no others. It reads a folder in diffusers'
layout, draws the noise that PyTorch draws (rng_type "cpu"), and is given Euler's sigmas as diffusers has them
(`sigmas.py`). It takes one prompt a call, so a batch is painted one picture after another. `parts` stay empty: it tells
of none. A job and a `Peer` are described in `serve.py`.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import struct
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

_PACKAGES = ("stable-diffusion-cpp-python", "numpy")
_UNET_BLOCKS, _VAE_BLOCKS = [320, 640, 1280, 1280], [128, 256, 512, 512]
_TEXT_WIDTHS = (768, 1024)  # Stable Diffusion 1 and 2
_LATENT_SCALE = 0.18215
_FILES = (
    "unet/diffusion_pytorch_model.safetensors",
    "vae/diffusion_pytorch_model.safetensors",
    "text_encoder/model.safetensors",
)


class Peer:
    """One model of stable-diffusion.cpp."""

    def __init__(self) -> None:
        self.parts: dict[str, list[float]] = {}
        self.waits = False
        self._model: Any = None
        self._sigmas = ""
        self._job: Mapping[str, Any] = {}

    def cannot(self, job: Mapping[str, Any]) -> str | None:
        if job["controlnets"]:
            return "this suite has stable-diffusion.cpp paint without ControlNets"
        if job["device"] != "cpu":
            return "its binding was built for the CPU"
        if job["precision"] != "fp16":
            return f"its convolutions are in fp16 whatever is asked for, so that it cannot be {job['precision']}"
        if job["scheduler"]["class"] != "EulerDiscreteScheduler":
            return f"of diffusers' schedulers it can be given the sigmas of Euler, not of {job['scheduler']['class']}"
        return _sibling("sigmas").cannot(job["scheduler"]["config"]) or _cannot_read(Path(job["model"]))

    def load(self, job: Mapping[str, Any]) -> dict[str, Any]:
        from stable_diffusion_cpp import StableDiffusion

        self._job = job
        config = job["scheduler"]["config"]
        self._sigmas = ",".join(f"{s:.9g}" for s in _sibling("sigmas").euler(config, job["steps"]))
        folder = _staged(Path(job["model"]), Path(job["cache"]))
        self._model = StableDiffusion(
            model_path=str(folder),
            n_threads=job["threads"],
            wtype="f16",
            rng_type="cpu",
            sampler_rng_type="cpu",
            prediction="v" if config.get("prediction_type") == "v_prediction" else "eps",
            vae_decode_only=True,
            verbose=False,
        )
        return {
            "threads": job["threads"],
            "artifact_bytes": sum((folder / name).stat().st_size for name in _FILES),
            "versions": {name: metadata.version(name) for name in _PACKAGES},
            "notes": ["stable-diffusion.cpp paints a batch one picture after another"] if job["batch"] > 1 else [],
        }

    def paint(self, prompts: Sequence[str], negative: str | None, seeds: Sequence[int]) -> np.ndarray[Any, Any]:
        return np.stack([self._paint(p, negative or "", s) for p, s in zip(prompts, seeds, strict=True)])

    def device_peak_bytes(self) -> int | None:
        return None

    def _paint(self, prompt: str, negative: str, seed: int) -> np.ndarray[Any, Any]:
        job = self._job
        (image,) = self._model.generate_image(
            prompt=prompt,
            negative_prompt=negative,
            width=job["width"],
            height=job["height"],
            cfg_scale=max(1.0, float(job["guidance"])),
            sample_method="euler",
            sample_steps=job["steps"],
            sigmas=self._sigmas,
            seed=seed,
        )
        return np.asarray(image.convert("RGB"))


def _cannot_read(model: Path) -> str | None:
    """Why the folder is not one of the models that are built into the program."""
    kind = json.loads((model / "model_index.json").read_text())["_class_name"]
    if kind != "StableDiffusionPipeline":
        return f"this suite has stable-diffusion.cpp paint with Stable Diffusion 1 and 2, not with {kind}"
    missing = [name for name in _FILES if not (model / name).is_file()]
    if missing:
        return f"it looks for weights in {missing[0]}, which is not there"
    unet = json.loads((model / "unet" / "config.json").read_text())
    vae = json.loads((model / "vae" / "config.json").read_text())
    shapes = (unet["block_out_channels"], vae["block_out_channels"], vae.get("scaling_factor", _LATENT_SCALE))
    if shapes != (_UNET_BLOCKS, _VAE_BLOCKS, _LATENT_SCALE) or unet["cross_attention_dim"] not in _TEXT_WIDTHS:
        told = f"U-Net {unet['block_out_channels']}, autoencoder {vae['block_out_channels']}"
        return f"its networks have the published shapes of Stable Diffusion 1 and 2, and this model has others ({told})"
    return None


def _staged(model: Path, cache: Path) -> Path:
    """The model with the names that transformers gave a text encoder's weights before 5.6: the rest by links."""
    texts = model / _FILES[2]
    header, start = _header(texts)
    if any(name.startswith("text_model.") for name in header):
        return model
    told = f"{texts.resolve()} {texts.stat().st_size} {texts.stat().st_mtime_ns}"
    folder = cache / f"named-{hashlib.sha256(told.encode()).hexdigest()[:16]}"
    for name in _FILES[:2]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to((model / name).resolve())
    place = folder / _FILES[2]
    if not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        named = json.dumps({f"text_model.{name}": entry for name, entry in header.items()}).encode()
        fresh = place.with_suffix(f".{os.getpid()}")
        with texts.open("rb") as source, fresh.open("wb") as file:
            source.seek(start)
            file.write(struct.pack("<Q", len(named)) + named)
            shutil.copyfileobj(source, file, 1 << 24)
        fresh.rename(place)
    return folder


def _header(path: Path) -> tuple[dict[str, Any], int]:
    """What a safetensors file says of its tensors, and where their bytes begin."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header: dict[str, Any] = json.loads(file.read(length))
    header.pop("__metadata__", None)
    return header, 8 + length


def _sibling(name: str) -> Any:
    """Another file of this folder, which is on nobody's path."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

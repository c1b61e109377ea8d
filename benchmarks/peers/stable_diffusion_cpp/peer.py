"""stable-diffusion.cpp through its Python binding, on the CPU, in fp16: its convolutions always run in fp16.

Its networks have the published shapes of Stable Diffusion 1 and 2 and no others. It reads a folder in diffusers'
layout, draws the noise of PyTorch (rng_type "cpu"), and gets Euler's sigmas as diffusers computes them (`sigmas.py`).
It takes one prompt a call, so it generates a batch one image after another. `parts` stay empty, because it does not
report them. `serve.py` describes a job and a `Peer`.
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
        self.synchronizes = False
        self._model: Any = None
        self._sigmas = ""
        self._job: Mapping[str, Any] = {}

    def unsupported_reason(self, job: Mapping[str, Any]) -> str | None:
        if job["controlnets"]:
            return "this suite runs stable-diffusion.cpp without ControlNets"
        if job["device"] != "cpu":
            return "its binding is built for the CPU"
        if job["precision"] != "fp16":
            return f"its convolutions always run in fp16, not in {job['precision']}"
        if job["scheduler"]["class"] != "EulerDiscreteScheduler":
            return f"this suite has sigmas of Euler for it, not of {job['scheduler']['class']}"
        return _sibling("sigmas").unsupported_reason(job["scheduler"]["config"]) or _unsupported_model(
            Path(job["model"])
        )

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
            "notes": ["stable-diffusion.cpp generates a batch one image after another"] if job["batch"] > 1 else [],
        }

    def generate(self, prompts: Sequence[str], negative: str | None, seeds: Sequence[int]) -> np.ndarray[Any, Any]:
        return np.stack([self._generate(p, negative or "", s) for p, s in zip(prompts, seeds, strict=True)])

    def device_peak_bytes(self) -> int | None:
        return None

    def _generate(self, prompt: str, negative: str, seed: int) -> np.ndarray[Any, Any]:
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


def _unsupported_model(model: Path) -> str | None:
    """Return why the folder is not one of the models that the program contains, or None."""
    kind = json.loads((model / "model_index.json").read_text())["_class_name"]
    if kind != "StableDiffusionPipeline":
        return f"this suite runs stable-diffusion.cpp with Stable Diffusion 1 and 2, not with {kind}"
    missing = [name for name in _FILES if not (model / name).is_file()]
    if missing:
        return f"it needs weights in {missing[0]}, which does not exist"
    unet = json.loads((model / "unet" / "config.json").read_text())
    vae = json.loads((model / "vae" / "config.json").read_text())
    shapes = (unet["block_out_channels"], vae["block_out_channels"], vae.get("scaling_factor", _LATENT_SCALE))
    if shapes != (_UNET_BLOCKS, _VAE_BLOCKS, _LATENT_SCALE) or unet["cross_attention_dim"] not in _TEXT_WIDTHS:
        got = f"U-Net {unet['block_out_channels']}, autoencoder {vae['block_out_channels']}"
        return f"its networks have the shapes of Stable Diffusion 1 and 2; this model has other shapes ({got})"
    return None


def _staged(model: Path, cache: Path) -> Path:
    """Return the model with the names that transformers used for text encoders before 5.6; other files are links."""
    texts = model / _FILES[2]
    header, start = _header(texts)
    if any(name.startswith("text_model.") for name in header):
        return model
    identity = f"{texts.resolve()} {texts.stat().st_size} {texts.stat().st_mtime_ns}"
    folder = cache / f"named-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"
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
    """Return the tensors of a safetensors file and the offset of their bytes."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header: dict[str, Any] = json.loads(file.read(length))
    header.pop("__metadata__", None)
    return header, 8 + length


def _sibling(name: str) -> Any:
    """Import another file of this folder, which is not on the path."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

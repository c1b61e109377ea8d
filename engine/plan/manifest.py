"""The schema of `plan.json`: the type and range of every field, and which components and tensors belong together.

A plan may come from a stranger, and later code does not check it again. `files` checks which files it opens. `plan`
converts it into a `Plan`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors.schema import (
    SchemaError,
    boolean,
    figure,
    integer,
    list_of,
    mapping_of,
    mismatch,
    nullable,
    number,
    one_of,
    record,
    text,
)
from .command import NAME, SPEC
from .config_fields import check_scheduler_config
from .controls.manifest import (
    adapter_inputs,
    check_controlnets,
    check_only,
    check_t2i_adapters,
    map_of,
    residual_inputs,
)
from .image_input import check_image_input
from .image_prompts.manifest import check_image_prompting, check_ip_adapters, image_inputs
from .image_prompts.perturbed import skip_inputs
from .image_prompts.style import STYLE
from .networks import controlnets_of, ip_adapters_of, t2i_adapters_of
from .profile import Profile, check_profile, size_range
from .video.model import IDS, MAX_FRAMES

TEXT_FAMILIES = ("sd1", "sd2", "sdxl")
_FAMILIES = (*TEXT_FAMILIES, "pixels", "latents", "video")
_MAX_CHANNELS = 65536
_LATENTS = ("latent_height", "latent_width")
_PIXELS = ("height", "width")

Fields = Mapping[str, Any]
Dims = Sequence[Any]


def _dims(value: Any, where: str) -> None:
    list_of(lambda dim, at: _SYMBOL(dim, at) if isinstance(dim, str) else _CHANNELS(dim, at), 1, 5)(value, where)
    if value[0] != "batch":
        mismatch(f"{where}[0]", value[0], "batch")


_CHANNELS = integer(1, _MAX_CHANNELS)
_SYMBOL = text(r"[a-z]+(_[a-z]+)?(_\d{1,4})?", "a symbol, for example latent_height")
_DIGEST = text(r"[0-9a-f]{64}", "64 hexadecimal digits")
_PATH = text(r"[^\x00]{1,4096}", "a path")
_TEXT = text(r"[\s\S]{0,10000}", "text of at most 10000 characters")
_NETWORKS = r"unet|vae_(decoder|encoder)|text_encoder(_2)?|image_encoder|(controlnet|(ip|t2i)_adapter)(_[1-9]\d?)?"
_NETWORK = text(_NETWORKS, "the name of a network")
# Versions are printed in a command line: `pip install 'onnxruntime>=1.32.0'`.
_VERSION = text(r"\d[0-9A-Za-z.+_-]{0,99}", "a version")
_PROFILE = record(
    {
        **{"batch": size_range(65536), "height": size_range(16384), "width": size_range(16384)},
        **{"multiple": integer(1, 4096), "factor": integer(1, 64), "tokens": integer(3, 4096), "rows": integer(2, 3)},
        **{"images": list_of(integer(1, 4096), 2, 2), "frames": size_range(MAX_FRAMES)},
    },
    optional=("images", "frames"),
)
_BINDING = record(
    {
        "name": text(r"[A-Za-z_][A-Za-z0-9_.]{0,99}", "a tensor's name"),
        "dtype": one_of("float32", "int64"),
        "dims": _dims,
    }
)
_FIGURES = {"max_relative_error": nullable(figure), "traced_error": nullable(figure)}
_OTHER = record({"refused": nullable(_TEXT)}, optional=("refused",), more=True)
_CHECK = record(
    {
        **_FIGURES,
        **{"backend": NAME, "weights": NAME, "others": mapping_of(_OTHER, NAME)},
        "real_inputs": record({"relative_l2": figure}, more=True),
    },
    optional=(*_FIGURES, "backend", "weights", "others", "real_inputs"),
    more=True,
)
_ARTIFACT = record({"form": NAME, "path": _PATH, "precision": NAME, "check": _CHECK})
_COMPONENT = record(
    {
        "inputs": list_of(_BINDING, 1, 200),
        "outputs": list_of(_BINDING, 1, 1000),
        "artifacts": list_of(_ARTIFACT, 1, 20),
        "refused": mapping_of(_TEXT, NAME),
    }
)
_LOAD = record({"pixels": integer(1, 65536), "width": integer(1, 1 << 20), "squared": boolean, "guided": boolean})
_LOSSES = ("psnr", "ssim", "lpips", "judge", "clip")
_TRIAL = record(
    {
        **{"component": _TEXT, "precision": _TEXT, "why": _TEXT, "chosen": boolean, "passed": boolean},
        **{"kept": integer(0, 1 << 20), "groups": integer(0, 1 << 20), "speed": nullable(figure)},
        "loss": record(dict.fromkeys(_LOSSES, figure), optional=_LOSSES, more=True),
    },
    more=True,
)
_COUNTS = dict.fromkeys(("pictures", "steps", "width", "height"), integer(1, 1 << 20))
_PROOF = record({**_COUNTS, **dict.fromkeys(_LOSSES, figure)}, optional=_LOSSES, more=True)
_BUILD = record(
    {
        **{"key": _TEXT, "spec": SPEC, "backend": NAME, "precision": NAME, "made": _TEXT, "seconds": figure},
        **{"max_loss": list_of(_TEXT), "engine": list_of(_TEXT), "needs": mapping_of(_VERSION, NAME)},
        "tools": mapping_of(nullable(_TEXT)),
        "machine": record({"gpu": nullable(_TEXT)}, more=True),
        **{"proof": _PROOF, "table": list_of(_TRIAL)},
    },
    optional=("engine",),
    more=True,
)
_PAIR = list_of(_TEXT, 2, 2)
_PROMPTING = record({"states": list_of(_PAIR, max_length=2), "pooled": nullable(_PAIR), "zero_negative": boolean})
_MANIFEST = record(
    {
        **{"version": integer(0, 1 << 20), "family": one_of(*_FAMILIES), "fingerprint": _DIGEST},
        **{"profile": _PROFILE, "components": mapping_of(_COMPONENT, _NETWORK), "scheduler": check_scheduler_config},
        **{"tokenizers": mapping_of(_PATH, _NETWORK), "prompting": _PROMPTING},
        "scaling_factor": number(1e-6, 1e6),
        "latents_mean": list_of(number(-1e6, 1e6)),
        "latents_std": list_of(number(1e-6, 1e6)),
        "loads": list_of(_LOAD, max_length=1000),
        "image_input": check_image_input,
        "image_prompts": check_image_prompting,
        "build": lambda value, where: None if value == {} else _BUILD(value, where),
        "samplers": nullable(_PATH),
        "depth_estimator": nullable(_PATH),
        "files": mapping_of(lambda stamp, where: _stamp(stamp, where), _PATH),
    },
    optional=("image_prompts",),  # plans of earlier versions lack it
)


def check_manifest(data: Any) -> None:
    """Check the manifest of a plan, without its digest. Raises `SchemaError` that names the field."""
    _MANIFEST(data, "")
    check_profile(data["profile"])
    components = data["components"]
    for name, component in components.items():
        for side in ("inputs", "outputs"):
            _check_names(component[side], f"components.{name}.{side}", data["profile"])
    _check_networks(data)
    states, pooled = _check_prompting(data)
    channels = _check_autoencoder(data)
    _check_unet(data, channels, states, pooled)
    check_controlnets(components, channels, controlnets_of(components))
    check_t2i_adapters(components, t2i_adapters_of(components))
    check_ip_adapters(data)
    build = data["build"]
    if build and build["backend"] not in build["needs"]:
        raise SchemaError(f"build.needs.{build['backend']}", "is missing")


def _stamp(value: Any, where: str) -> None:
    list_of(lambda entry, at: None, 2, 2)(value, where)
    integer(0, 1 << 62)(value[0], f"{where}[0]")
    _DIGEST(value[1], f"{where}[1]")


def _check_names(bindings: Sequence[Fields], where: str, profile: Fields) -> None:
    """Check that no name occurs twice and that every symbol has a value."""
    symbols = Profile.from_json(profile).sizes(batch=1, height=profile["multiple"], width=profile["multiple"])
    names: set[str] = set()
    for i, binding in enumerate(bindings):
        if binding["name"] in names:
            mismatch(f"{where}[{i}].name", binding["name"], "a name that no other tensor has")
        names.add(binding["name"])
        for dim in binding["dims"]:
            if isinstance(dim, str) and dim not in symbols:
                mismatch(f"{where}[{i}].dims", binding["dims"], f"symbols from {', '.join(symbols)}")


def _check_networks(data: Fields) -> None:
    """Check that there are exactly the networks of the family, and a tokenizer for each text encoder."""
    components, has_text = data["components"], data["family"] in TEXT_FAMILIES
    required = {"unet"} | (set() if data["family"] == "pixels" else {"vae_decoder", "vae_encoder"})
    for name in sorted(required):
        if name not in components:
            raise SchemaError(f"components.{name}", f"is missing; the family {data['family']} requires it")
    texts = {name for name in components if name.startswith("text_encoder")}
    sees = _kind(data) in ("vision", "video")
    clips = "frames" in data["profile"]
    if (clips and not (has_text or _clip(data))) or (data["family"] == "video") != bool(_clip(data)):
        expected = "frames, if the family and the image input are video, or the U-Net has motion modules"
        mismatch("profile.frames", data["profile"].get("frames"), expected)
    if (data["family"] == "video" and not clips) or (clips and has_text and data["image_input"]):
        mismatch("profile.frames", data["profile"].get("frames"), "frames of a video model, or no image input")
    required |= {"image_encoder"} if sees else set()
    prompted = {*controlnets_of(components), *t2i_adapters_of(components), *texts}
    prompted |= {*(adapters := ip_adapters_of(components))}
    prompted |= {"image_encoder"} if adapters else set()
    others = set(components) - required - (prompted if has_text else set())
    if others:
        mismatch("components", sorted(components), f"no {min(others)} in the family {data['family']}")
    if has_text and not (texts or sees):
        raise SchemaError("components.text_encoder", f"is missing; the family {data['family']} requires it")
    if set(data["tokenizers"]) != texts:
        mismatch("tokenizers", sorted(data["tokenizers"]), f"one for each text encoder: {', '.join(sorted(texts))}")


def _check_prompting(data: Fields) -> tuple[int, int | None]:
    """Check the text encoders against the profile and the prompting. Returns the widths of the hidden states and of the
    pooled state; width 0 means a model without text."""
    components, prompting, tokens = data["components"], data["prompting"], data["profile"]["tokens"]
    texts = sorted(data["tokenizers"])
    if sorted(name for name, _ in prompting["states"]) != texts:
        mismatch("prompting.states", prompting["states"], f"an output of each text encoder: {', '.join(texts)}")
    for name in texts:
        where = f"components.{name}"
        check_only(components[name]["inputs"], f"{where}.inputs", {"input_ids": ("batch", tokens)}, dtype="int64")
        widths = {tuple(b["dims"][1:]) for b in components[name]["outputs"] if len(b["dims"]) != 2}
        if len(widths) > 1 or any(len(dims) != 2 or dims[0] != tokens for dims in widths):
            mismatch(f"{where}.outputs", sorted(map(str, widths)), f"states [batch, {tokens}, W] of one width")
    width = 0
    for i, pair in enumerate(prompting["states"]):
        where = f"prompting.states[{i}]"
        if not re.fullmatch(r"last_hidden_state|hidden_states\.\d{1,3}", pair[1]):
            mismatch(where, pair[1], "last_hidden_state or hidden_states.N")
        width += _width(components, pair, where, rank=3)
    pooled = prompting["pooled"]
    return width, None if pooled is None else _width(components, pooled, "prompting.pooled", rank=2)


def _width(components: Fields, pair: Sequence[str], where: str, rank: int) -> int:
    """Return the last dimension of a text encoder's output. `pair` holds the names of both."""
    name, output = pair
    outputs = components[name]["outputs"] if name in components and name.startswith("text_encoder") else []
    dims: Dims = next((b["dims"] for b in outputs if b["name"] == output), [])
    if len(dims) != rank or not isinstance(dims[-1], int):
        mismatch(where, pair, f"a text encoder and one of its outputs with {rank} dimensions")
    return int(dims[-1])


def _check_autoencoder(data: Fields) -> int:
    """Check the autoencoder. Returns the channels of the latents, or 3 (pixels) for a model without an autoencoder."""
    components = data["components"]
    channels = 3
    if "vae_decoder" in components:
        decoder, encoder = components["vae_decoder"], components["vae_encoder"]
        dims, clip = decoder["inputs"][0]["dims"], _clip(data)
        channels = dims[-3] if len(dims) == 4 + len(clip) and isinstance(dims[-3], int) else 0
        check_only(decoder["inputs"], "components.vae_decoder.inputs", {"latent_sample": map_of(channels, *clip)})
        check_only(decoder["outputs"], "components.vae_decoder.outputs", {"sample": ("batch", *clip, 3, *_PIXELS)})
        check_only(encoder["inputs"], "components.vae_encoder.inputs", {"sample": ("batch", 3, *_PIXELS)})
        sampled = encoder["outputs"][0]["name"] == "latent_parameters"  # mean and log-variance
        encoded = {"latent_parameters": map_of(2 * channels)} if sampled else {"latents": map_of(channels)}
        check_only(encoder["outputs"], "components.vae_encoder.outputs", encoded)
    for name in ("latents_mean", "latents_std"):
        if len(data[name]) not in (0, channels) or len(data["latents_mean"]) != len(data["latents_std"]):
            mismatch(name, data[name], f"one number per channel ({channels}) in both lists, or two empty lists")
    return channels


def _kind(data: Fields) -> str | None:
    return data["image_input"] and str(data["image_input"]["kind"])


def _check_unet(data: Fields, channels: int, states: int, pooled: int | None) -> None:
    unet, kind = data["components"]["unet"], _kind(data)
    sample = unet["inputs"][0]
    doubled = dict.fromkeys(("edit", "latents", "video"), channels)
    more = {**doubled, "mask": channels + 1, "depth": 1, "pixels": 3}.get(kind or "", 0)
    expected: dict[str, Dims] = {"sample": map_of(channels + more, *_clip(data)), "timestep": ("batch",)}
    animates = "frames" in data["profile"] and not _clip(data)
    expected |= {"sample": ("batch", channels, "frames", *_LATENTS)} if animates else {}
    by_name = {b["name"]: b["dims"] for b in unet["inputs"]}
    where = "components.unet.inputs"
    expected |= {"added_time_ids": ("batch", IDS)} if kind == "video" else {}
    if kind in ("vision", "video"):
        vector = data["components"]["image_encoder"]["outputs"][0]
        expected["encoder_hidden_states"] = ("batch", 1, vector["dims"][-1])
    if states:
        chunks = by_name.get("encoder_hidden_states", ["batch", "tokens"])[1:2]
        fixed = chunks and isinstance(chunks[0], int)  # the model takes only one chunk of text
        expected["encoder_hidden_states"] = ("batch", chunks[0] if fixed else "tokens", states)
        if pooled is not None and kind != "latents":
            ids = 5 if by_name.get("time_ids", [])[-1:] == [5] else 6  # 5 for the SDXL refiner
            expected |= {"text_embeds": ("batch", pooled), "time_ids": ("batch", ids)}
        if "timestep_cond" in by_name or kind == "latents":  # half sines, half cosines
            width = by_name.get("timestep_cond", [0])[-1]
            even = isinstance(width, int) and not width % 2
            expected["timestep_cond"] = ("batch", width if even else "an even number")
        expected |= residual_inputs(by_name) | adapter_inputs(by_name) | image_inputs(data["components"])
        expected |= skip_inputs(by_name)
    labels = [b for b in unet["inputs"] if b["name"] == "class_labels"] if kind == "pixels" else []
    style = [b for b in unet["inputs"] if b["name"] == STYLE] if states else []
    check_only(style, f"{where}.{STYLE}", dict.fromkeys((STYLE,) if style else (), ("batch",)), dtype="int64")
    if kind == "pixels":
        check_only(labels, f"{where}.class_labels", {"class_labels": ("batch",)}, dtype="int64")
    check_only([b for b in unet["inputs"] if b not in (*labels, *style)], where, expected)
    if sample["name"] != "sample":
        mismatch(f"{where}[0].name", sample["name"], "sample")
    out = channels + 1 if kind == "latents" else channels  # the last one is a variance that nothing reads
    output = expected["sample"] if animates else map_of(out, *_clip(data))
    check_only(unet["outputs"], "components.unet.outputs", {"out_sample": output})


def _clip(data: Fields) -> tuple[str, ...]:
    """Return the dimension of a video model's tensors that counts frames."""
    return ("frames",) if _kind(data) == "video" else ()

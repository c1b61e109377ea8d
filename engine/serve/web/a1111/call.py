"""The body of `txt2img` and `img2img` as a job."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from PIL import Image

from ....errors import InputError
from ....errors.validation import check_float
from ....lora.prompt_tags import without_tags
from ...job import JobRequest
from ..service import Service
from .clients import ClientOptions
from .controlnet import Control, arguments_of, controls_from, names_of
from .fields import Fields
from .images import Size, check_size, filled, mask_from, resized
from .samplers import scheduler_from

# Fields without a counterpart, where they are neither zero nor empty.
_NOT_TAKEN = (
    *("restore_faces", "tiling", "styles", "subseed_strength", "script_name", "refiner_checkpoint", "firstpass_image"),
    *("s_churn", "s_tmin", "s_min_uncond", "image_cfg_scale", "hr_prompt", "hr_negative_prompt", "hr_sampler_name"),
    *("hr_scheduler", "hr_checkpoint_name", "seed_resize_from_w", "seed_resize_from_h"),
)
_KNOWN_SETTINGS = ("sd_model_checkpoint", "CLIP_stop_at_last_layers", "sd_vae")
_STEPS, _GUIDANCE, _STRENGTH, _HIRES = 50, 7.0, 0.75, 2.0
_PREVIEW_EVERY = 5
_SAMPLER = "Euler"
_LATENT_RESIZE, _FILL, _ORIGINAL = 3, 0, 1
_MASK_BLUR, _MAX_BLUR = 4, 256


@dataclass(frozen=True, kw_only=True)
class Call:
    """What a request asks for.

    Attributes:
        job: The job.
        sampler: The name of the sampler, as the request has it.
        comments: What of the request has no counterpart.
        controls: The ControlNet units.
        unmasked: The input image and the blurred mask, if the image is to keep its pixels outside of the mask.
        task: The id that the client chose for the job, or "".
        sends_images: Whether the answer has images.
    """

    job: JobRequest
    sampler: str
    comments: list[str]
    controls: list[Control]
    unmasked: tuple[Image.Image, Image.Image] | None
    task: str
    sends_images: bool


def model_from(service: Service, title: str) -> str:
    """Return the name of a model for a title of the web UI, such as "name.safetensors [hash]". Raises `InputError`."""
    name = title.partition(" [")[0]
    return service.model_of(
        name if name in service.engine.catalog.names else re.sub(r"\.(safetensors|ckpt)$", "", name)
    )


def call_from(service: Service, body: dict[str, Any], options: ClientOptions, *, from_image: bool) -> Call:
    """Return the call of a request. Slow, as it decodes images and may open a model.

    Args:
        service: The service.
        body: The request.
        options: What the client has set before.
        from_image: Whether it is `img2img`.

    Raises:
        InputError: A field is invalid.
        HTTPError: The sampler is unknown.
    """
    fields, settings = Fields(body), Fields(Fields(body).mapping("override_settings"))
    title = settings.text("sd_model_checkpoint")
    model = model_from(service, title) if title else options.model or service.model_of(None)
    comments = _not_taken(fields, settings)
    profile = service.engine.catalog.open(model).plan.profile
    sampler = fields.text("sampler_name") or fields.text("sampler_index") or _SAMPLER
    scheduler, lost = scheduler_from(sampler, fields.text("scheduler"))
    prompt = fields.text("prompt")
    service.engine.catalog.lora_files(without_tags(prompt)[1])  # checks the names; the engine reads the tags
    arguments = _basics(fields, settings, options, comments) | {"scheduler": scheduler}
    decode = service.image_decoder()
    source = _source(fields, decode) if from_image else None
    size = _size(fields, source, profile.multiple, comments)
    check_size(service, size or (1, 1))
    images, unmasked = _image_arguments(fields, source, size, decode, comments) if source and size else ({}, None)
    names = names_of(service, model)
    controls = controls_from(fields, decode, names, size, source)
    hires = _hires(fields, size, comments) if fields.flag("enable_hr") and not from_image else {}
    sides = {} if size is None else {"width": size[0], "height": size[1]}
    return Call(
        job=JobRequest(
            prompt=prompt,
            arguments={**arguments, **sides, **images, **hires, **arguments_of(controls)},
            model=model,
            preview_every=_PREVIEW_EVERY,
        ),
        sampler=sampler,
        comments=[*comments, *lost],
        controls=controls,
        unmasked=unmasked,
        task=fields.text("force_task_id"),
        sends_images=fields.flag("send_images", True),
    )


def _not_taken(fields: Fields, settings: Fields) -> list[str]:
    scripts = [name for name in fields.mapping("alwayson_scripts") if name.lower() != "controlnet"]
    vae = settings.values.get("sd_vae")
    return [
        *(f"{name}: {fields.values[name]!r:.60}" for name in _NOT_TAKEN if fields.values.get(name)),
        *(f"script {name:.60}" for name in scripts),
        *(f"override_settings.{name:.60}" for name in settings.values if name not in _KNOWN_SETTINGS),
        *([f"sd_vae: {vae!r:.60}"] if vae not in (None, "", "None", "Automatic") else []),
    ]


def _basics(fields: Fields, settings: Fields, options: ClientOptions, comments: list[str]) -> dict[str, Any]:
    """Return the arguments that need no image."""
    guidance, seed = fields.number("cfg_scale", _GUIDANCE), fields.integer("seed", -1)
    clip_stop = settings.integer("CLIP_stop_at_last_layers", fields.integer("clip_skip", options.clip_stop))
    negative, _ = without_tags(fields.text("negative_prompt"))
    if negative and guidance <= 1:
        comments.append("negative_prompt, as cfg_scale is 1")
    return {
        "steps": fields.integer("steps", _STEPS),
        "guidance_scale": guidance,
        "num_images": fields.integer("batch_size", 1) * fields.integer("n_iter", 1),
        **({"seed": seed} if seed >= 0 else {}),
        **({"negative_prompt": negative} if negative and guidance > 1 else {}),
        **({"clip_skip": clip_stop - 1} if clip_stop > 1 else {}),
        **({"eta": fields.number("eta", 0.0)} if fields.values.get("eta") else {}),
    }


def _size(fields: Fields, source: Image.Image | None, multiple: int, comments: list[str]) -> Size | None:
    """Return width and height, rounded down as the model needs; None if neither the request nor an image has them."""
    default = source.size if source is not None else (0, 0)
    width, height = fields.integer("width", default[0]), fields.integer("height", default[1])
    if width <= 0 or height <= 0:
        return None
    size = max(multiple, width // multiple * multiple), max(multiple, height // multiple * multiple)
    if size != (width, height):
        comments.append(f"size {width}x{height}, rounded to {size[0]}x{size[1]}")
    return size


def _source(fields: Fields, decode: Any) -> Image.Image:
    images = fields.items("init_images")
    if len(images) != 1:
        raise InputError(f"init_images has {len(images)} images; expected 1.", argument="init_images", expected="1")
    image: Image.Image = decode(images[0], "init_images")
    if "A" not in image.getbands():
        return image.convert("RGB")
    opaque = Image.new("RGB", image.size, "white")  # as the web UI's default for transparency
    opaque.paste(image, mask=image.getchannel("A"))
    return opaque


def _image_arguments(
    fields: Fields, source: Image.Image, size: Size, decode: Any, comments: list[str]
) -> tuple[dict[str, Any], tuple[Image.Image, Image.Image] | None]:
    """Return the arguments of image-to-image or inpainting, and the image and mask that the result is laid over."""
    strength = {"strength": fields.number("denoising_strength", _STRENGTH)}
    mode = fields.integer("resize_mode", 0)
    if mode == _LATENT_RESIZE:
        comments.append("resize_mode 3 (latent upscale): the image was resized")
    value = fields.values.get("mask")
    if not value:
        return {"image": resized(source, size, mode), **strength}, None
    blur = max(fields.number("mask_blur_x", _MASK_BLUR), fields.number("mask_blur_y", _MASK_BLUR))
    blur = check_float("mask_blur", fields.number("mask_blur", blur), _MAX_BLUR)
    mask = mask_from(decode(value, "mask"), invert=fields.flag("inpainting_mask_invert"), blur=blur)
    mask = mask.resize(source.size) if mask.size != source.size else mask
    fill = fields.integer("inpainting_fill", _FILL)
    if fill not in (_FILL, _ORIGINAL):
        comments.append(f"inpainting_fill {fill}: the image itself was used")
    only_masked = fields.flag("inpaint_full_res", True)
    if not only_masked:
        source, mask = resized(source, size, mode), resized(mask, size, mode)
    start = filled(source, mask) if fill == _FILL else source
    arguments = {"image": start, "mask_image": mask, **strength}
    if only_masked:
        arguments["padding_mask_crop"] = fields.integer("inpaint_full_res_padding", 0)
    return arguments, (source, mask)


def _hires(fields: Fields, size: Size | None, comments: list[str]) -> dict[str, Any]:
    """Return the arguments of the second pass."""
    upscaler, scale = fields.text("hr_upscaler", "Latent"), fields.number("hr_scale", _HIRES)
    wide, high = fields.integer("hr_resize_x", 0), fields.integer("hr_resize_y", 0)
    if size is not None and (wide or high):
        scale = max(wide / size[0], high / size[1])
    latent = upscaler.lower().startswith("latent")
    if not latent and upscaler.lower() not in ("lanczos", "none"):
        comments.append(f"hr_upscaler {upscaler:.60}: lanczos was used")
    return {
        "hires": scale,
        "hires_strength": fields.number("denoising_strength", _STRENGTH),
        "hires_steps": fields.integer("hr_second_pass_steps", 0) or fields.integer("steps", _STEPS),
        "hires_upscaler": "latent" if latent else "lanczos",
    }

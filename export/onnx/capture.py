"""Record the inputs and float32 eager outputs of networks in real runs: for calibration, checks and the quality gate.

The ordinary pipeline generates images on the eager backend, with one component in memory at a time. The calls of
earlier components are replayed from their recordings. The run stops at the first call of the next component, and the
inputs of that call are kept. A recording is a folder of .npz files, made in one child process per component. This
module does not know about precision.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calotype.backends import choose
from calotype.backends.components import Components
from calotype.backends.torch.eager import EagerRunner
from calotype.files.digest import file_digest
from calotype.pipeline import Pipeline
from calotype.plan import networks
from calotype.plan.family import Family
from calotype.plan.image_input import ImageInput
from calotype.plan.networks import controlnets_of, ip_adapters_of
from calotype.plan.plan import Plan, PlannedComponent, read_plan, write_plan
from calotype.text.tokenizer import tokenizer_files

from ..sources.source import Source
from ..steps.progress import Progress
from ..steps.stored_step import StoredStep
from ..steps.versions import versions

Arrays = dict[str, NDArray[Any]]
RECORDER = 3  # increased when the content of recordings changes
KEPT_CALLS = 256  # per network in a recording, spread evenly over all images and steps


@dataclass(frozen=True, kw_only=True)
class Call:
    """One call of a network: name -> [B, ...]. `outputs` is empty if the run stopped before the network ran."""

    inputs: Arrays
    outputs: Arrays


@dataclass(frozen=True, kw_only=True)
class ImageSet:
    """The images to generate: image i has prompt i and the seed `first_seed` + i."""

    prompts: tuple[str, ...]
    steps: int
    height: int
    width: int
    first_seed: int = 0
    # For each ControlNet the types of images that it knows: a ControlNet-Union gets images of two, others (0) one.
    controls: tuple[int, ...] = ()
    adapters: int = 0  # number of T2I-Adapters; each gets an outline image
    prompted: tuple[tuple[int, ...], ...] = ()  # for each IP-Adapter the sizes of its embeddings, or none for images
    takes: str | None = None  # the kind of the model's image input: it also gets an image, and a mask or a depth map
    enlarges: int = 1  # the sides of the images to generate are those of the input image times this
    frames: int | None = None  # of the clips, if the model makes videos

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ImageSet:
        """Return the images of `dataclasses.asdict`, after JSON."""
        lists = {"prompts": tuple(data["prompts"]), "prompted": tuple(map(tuple, data["prompted"]))}
        lists["controls"] = tuple(data["controls"])
        return cls(**{**data, **lists})

    def arguments(self, i: int) -> dict[str, Any]:
        """Return the keyword arguments of the pipeline's call for image i."""
        call: dict[str, Any] = {"prompt": self.prompts[i], "seed": self.first_seed + i, "steps": self.steps}
        call |= {"height": self.height, "width": self.width}
        call |= {"prompt": None} if self.takes in ("vision", "video") else {}
        call |= {} if self.frames is None else {"frames": self.frames}
        modes = [list(range(min(types, 2))) or None for types in self.controls]
        if any(modes):
            call["control_mode"] = modes[0] if len(modes) == 1 else modes
        counts = {"control_image": sum(len(each or [0]) for each in modes), "adapter_image": self.adapters}
        outlines = {name: [self._outline(i, c) for c in range(count)] for name, count in counts.items() if count}
        return {**call, **outlines, **self._image_prompts(i), **(self._seen(i) if self.takes else {})}

    @property
    def encodes(self) -> bool:
        """Whether the VAE encoder runs before the U-Net."""
        return self.takes is not None and ImageInput(kind=self.takes).encodes

    def _seen(self, i: int) -> dict[str, NDArray[Any]]:
        """Draw boxes of flat colors, and a mask with one box, or depths.  # uint8 [H, W, 3], bool or float [H, W]"""
        rng = np.random.default_rng([self.first_seed + i, 2**16])
        size = self.height // self.enlarges, self.width // self.enlarges
        image = np.full((*size, 3), rng.integers(0, 256, 3), dtype=np.uint8)
        for _ in range(4):
            image[self._box(rng, size)] = rng.integers(0, 256, 3)
        if self.takes == "depth":
            return {"depth_map": image.mean(axis=-1) + np.linspace(0, 64, size[0])[:, None]}
        mask = np.zeros(size, dtype=np.bool_)
        mask[self._box(rng, size)] = True
        return {"image": image} | ({"mask_image": mask} if self.takes == "mask" else {})

    def _image_prompts(self, i: int) -> dict[str, Any]:
        """Draw an image prompt for each IP-Adapter, or its embeddings where one of them takes no images."""
        rng = np.random.default_rng([self.first_seed + i, 2**17])
        if not any(self.prompted):
            return {"ip_adapter_image": [self._seen(i)["image"] for _ in self.prompted]} if self.prompted else {}
        embeds = [rng.standard_normal((2, 1, *dims), dtype=np.float32) for dims in self.prompted]
        return {"ip_adapter_image_embeds": embeds}

    def _box(self, rng: np.random.Generator, size: tuple[int, int]) -> tuple[slice, slice]:
        """Choose a box of a quarter to three quarters of each side of the image."""
        sides = [(side, int(rng.integers(side // 4, 3 * side // 4))) for side in size]
        starts = [int(rng.integers(0, side - length + 1)) for side, length in sides]
        rows, columns = (slice(a, a + length) for a, (_, length) in zip(starts, sides, strict=True))
        return rows, columns

    def _outline(self, i: int, control: int) -> NDArray[np.uint8]:
        """Draw white lines on black, as an edge detector does.  # uint8 [H, W, 3]"""
        rng = np.random.default_rng([self.first_seed + i, control])
        image = np.zeros((self.height, self.width, 3), dtype=np.uint8)
        for _ in range(6):
            top, bottom = sorted(rng.integers(0, self.height, 2))
            left, right = sorted(rng.integers(0, self.width, 2))
            image[[top, bottom], left : right + 1] = image[top : bottom + 1, [left, right]] = 255
        return image


def write_calls(path: Path, calls: Sequence[Call]) -> None:
    """Write calls into one .npz file."""
    sides = [(i, side, arrays) for i, c in enumerate(calls) for side, arrays in (("in", c.inputs), ("out", c.outputs))]
    np.savez(path, **{f"{i}.{side}.{name}": a for i, side, arrays in sides for name, a in arrays.items()})  # type: ignore[arg-type]


def read_calls(path: Path) -> list[Call]:
    """Read the calls that `write_calls` wrote."""
    arrays: dict[int, dict[str, Arrays]] = {}
    with np.load(path, allow_pickle=False) as file:
        for key in file.files:
            i, side, name = key.split(".", 2)
            arrays.setdefault(int(i), {"in": {}, "out": {}})[side][name] = file[key]
    return [Call(inputs=arrays[i]["in"], outputs=arrays[i]["out"]) for i in sorted(arrays)]


def record_all(plan: Plan, source: Source, images: ImageSet, purpose: str, progress: Progress) -> dict[str, Path]:
    """Record every component of the plan over the images: component -> .npz file of `Call`s.

    `plan` has the eager reference of every component. `purpose` ("calibration", "proof") appears in progress. A
    recording is an entry of the store. It depends only on its component and on those before it in a run: a new decoder
    does not change the U-Net's.
    """
    recordings: dict[str, Path] = {}
    before: list[str] = []
    for names in groups(tuple(plan.components), encoded=images.encodes):
        before += names
        with progress.stage(f"record {', '.join(names)} ({purpose})"):
            folder = _record(plan, source, images, list(names), before, recordings)
        recordings |= {name: folder / f"{name}.npz" for name in names}
        if "unet" in names and "vae_decoder" not in plan.components:  # its images stand for the decoder's
            recordings["vae_decoder"] = folder / "vae_decoder.npz"
        pending = folder / "vae_decoder.pending.npz"
        if pending.is_file():
            recordings["vae_decoder"] = pending
        if "vae_decoder" in names and not images.encodes:
            recordings["vae_encoder"] = recordings["vae_decoder"]
    return recordings


def _record(
    plan: Plan, source: Source, images: ImageSet, names: list[str], before: list[str], earlier: Mapping[str, Path]
) -> Path:
    """Return the folder with the recordings of `names`; they depend on the components `before`, themselves included."""
    step = StoredStep(
        depends_on={
            "recorder": RECORDER,
            "components": {n: [source.weights_digest(n), plan.components[n].inputs] for n in before},
            "tokenizers": [file_digest(p) for folder in plan.tokenizers.values() for p in tokenizer_files(folder)],
            "scheduler": plan.scheduler,
            "pictures": asdict(images),
            "tools": versions(),
        },
        label={"component": ", ".join(names), "kind": "recording", "model": plan.model},
    )
    with tempfile.TemporaryDirectory(prefix="calotype-") as scratch:
        write_plan(plan, Path(scratch))
        return step.run_in_child(
            f"recording the {', '.join(names)}",
            f"{__name__}:record",
            plan=scratch,
            names=names,
            earlier={name: str(path) for name, path in earlier.items()},
            images=asdict(images),
        ).folder


def control_types(family: Family) -> tuple[int, ...]:
    """Return for each ControlNet how many types of images it knows: 0 but for a ControlNet-Union."""
    return tuple(networks.control_types(family.components[n].config) for n in controlnets_of(family.components))


def embedding_sizes(family: Family) -> tuple[tuple[int, ...], ...]:
    """Return the sizes of each IP-Adapter's embeddings where one takes embeddings only; empty for images."""
    adapters = {name: family.components[name] for name in ip_adapters_of(family.components)}
    prompting = family.image_prompts
    if prompting is None or ("image_encoder" in family.components and "face_id" not in prompting.kinds):
        return tuple(() for _ in adapters)
    return tuple(tuple(int(str(dim)) for dim in c.inputs[0].dims[1:]) for c in adapters.values())


def groups(names: Sequence[str], *, encoded: bool) -> list[tuple[str, ...]]:
    """Group components in the order of a run; those that run at every step are recorded together.

    If images are `encoded`, the VAE encoder runs first. Else it is recorded last, on the decoded images.
    """
    stepwise = tuple(n for n in names if n.startswith(("controlnet", "unet")))
    text = [(n,) for n in names if n.startswith(("text_encoder", "image_encoder", "ip_adapter", "t2i_adapter"))]
    decoder, encoder = ([(n,)] if n in names else [] for n in ("vae_decoder", "vae_encoder"))
    return [*encoder, *text, stepwise, *decoder] if encoded else [*text, stepwise, *decoder, *encoder]


class _EndOfRecording(Exception):
    """Raised at the call of a component that is recorded later."""


class Tape:
    """Replaces a loaded component: replays recorded calls, records new calls, or ends the run at the first of them."""

    def __init__(
        self,
        component: PlannedComponent,
        known: Sequence[Call],
        *,
        records: bool,
        opens: Callable[[PlannedComponent], Callable[[Arrays], Arrays]] | None = None,
    ) -> None:
        """`opens` returns what runs the component in float32; by default the eager backend does."""
        self._component, self._records, self._opens = component, records, opens or open_eager
        self._known = {_digest(c.inputs): c.outputs for c in known if c.outputs}
        self._runner: Any = None
        self.calls: list[Call] = []

    def __call__(self, **inputs: NDArray[Any]) -> Arrays:
        """Return the outputs of a call: recorded ones, or those of a run, which is recorded."""
        digest = _digest(inputs)
        if digest in self._known:
            return self._known[digest]
        copies = {name: np.array(array) for name, array in inputs.items()}
        if not self._records:
            self.calls.append(Call(inputs=copies, outputs={}))
            raise _EndOfRecording
        if self._runner is None:
            self._runner = self._opens(self._component)
        outputs = self._runner(copies)
        self.calls.append(Call(inputs=copies, outputs=outputs))
        return dict(outputs)

    def run_with_fallback(self, run: Any, inputs: Callable[[], Arrays]) -> Arrays:
        """Replace `LoadedComponent.run_with_fallback`: record each call of a session with its full inputs."""
        return self(**inputs())


def open_eager(component: PlannedComponent) -> EagerRunner:
    """Open the eager reference of a component."""
    artifact = component.artifact("diffusers")
    assert artifact is not None  # the plan of a source has the eager reference of every component
    return EagerRunner(component, artifact)


def _digest(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(name.encode() + np.ascontiguousarray(arrays[name]).tobytes())
    return digest.digest()


class Tapes(Components):
    """Tapes in place of the components of a pipeline."""

    def __init__(self, plan: Plan, tapes: Mapping[str, Tape]) -> None:
        super().__init__(plan, choose("eager"))
        self._tapes = tapes

    def __call__(self, name: str) -> Any:
        """Return the tape of a component."""
        return self._tapes[name]


def record(*, plan: str, names: Sequence[str], earlier: Mapping[str, str], images: Mapping[str, Any], out: str) -> None:
    """Record the components `names` over the images, in a child process.

    Args:
        plan: the folder of a plan of eager references.
        names: the components to record.
        earlier: component -> the .npz file of its recording, for the components recorded before.
        images: the fields of an `ImageSet`.
        out: the folder for NAME.npz, and vae_decoder.pending.npz with the decoder's inputs where the run ended.
    """
    requested = ImageSet.from_json(images)
    opened, folder = read_plan(Path(plan), sealed=False), Path(out)
    if names == ["vae_decoder"] or (names == ["vae_encoder"] and not requested.encodes):
        # Run the decoder on the final latents of the runs, or the encoder on the decoder's pixels.
        (name,), calls = names, read_calls(Path(earlier[names[0]]))
        decodes = name == "vae_decoder"
        inputs = [c.inputs if decodes else {"sample": c.outputs["sample"].clip(-1, 1)} for c in calls]
        runner = open_eager(opened.components[name])
        write_calls(folder / f"{name}.npz", [Call(inputs=i, outputs=runner(i)) for i in inputs])
        return
    tapes = {
        name: Tape(component, read_calls(Path(earlier[name])) if name in earlier else (), records=name in names)
        for name, component in opened.components.items()
    }
    pipe = Pipeline(opened, Tapes(opened, tapes))
    generated = [generate_images(pipe, requested.arguments(i)) for i in range(len(requested.prompts))]
    if "vae_decoder" not in opened.components and "unet" in names:  # the model denoises pixels
        pixels = [2 * images.transpose(0, 3, 1, 2) - 1 for images in generated if images is not None]
        write_calls(folder / "vae_decoder.npz", [Call(inputs={}, outputs={"sample": each}) for each in pixels])
    for name, tape in tapes.items():
        if name in names:
            assert tape.calls, f"the run ended before the {name}"
            write_calls(folder / f"{name}.npz", evenly(tape.calls, KEPT_CALLS))
        elif tape.calls and name == "vae_decoder":
            write_calls(folder / f"{name}.pending.npz", tape.calls)


def generate_images(pipe: Pipeline, arguments: Mapping[str, Any]) -> NDArray[Any] | None:
    """Run a call, and return its images, or None if the recording ended it.  # float32 [1, H, W, 3] in [0, 1]"""
    images: NDArray[Any] | None = None
    try:
        for event in pipe.stream(**arguments, output_type="np"):
            images = event.result.images if event.result else None
    except Exception as stopped:  # the pipeline wraps errors of its backends
        if not isinstance(stopped, _EndOfRecording) and not isinstance(stopped.__cause__, _EndOfRecording):
            raise
    return images


def evenly(calls: Sequence[Call], limit: int) -> list[Call]:
    """Return at most `limit` of the calls, evenly spaced."""
    if len(calls) <= limit:
        return list(calls)
    return [calls[i * len(calls) // limit] for i in range(limit)]

"""`calotype.accelerate`: run the networks of a diffusers pipeline, or one network, compiled."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import nn

from ..backends import BackendSelection, choose
from ..backends.precision import selection_for
from ..errors import InputError
from ..weights.precisions import Precisions, parse_precision
from . import image_check
from .forward import Forward
from .kinds import CLASSES, Kind, kinds_of, networks_of
from .paging import move_to_file
from .report import AccelerateReport, ModuleReport

T = TypeVar("T")
_WARM_STEPS = 2  # of a call that only warms up


def accelerate(
    target: T,
    *,
    backend: str | Sequence[str] = "auto",
    precision: str | Mapping[str, str] = "auto",
    verify: bool = True,
    keep_eager: bool = True,
    warm: Mapping[str, Any] | None = None,
) -> T:
    """Make the networks of a diffusers pipeline run compiled, in place.

    The pipeline keeps its class, its arguments and its seeds, and its networks keep their attributes. Each network is
    traced at its first call, once for each content of its weights. LoRAs, scales and other changes of weights are
    noticed. What an artifact cannot take runs in eager PyTorch for that call, and `accelerate_report` says why.
    `restore` undoes it. A second call changes the settings.

    Args:
        target: a pipeline of diffusers, or a network: `UNet2DConditionModel`, `UNet2DModel`, `ControlNetModel`,
            `ControlNetUnionModel`, `T2IAdapter`, `AutoencoderKL`, `AutoencoderTiny`,
            `UNetSpatioTemporalConditionModel`, `AutoencoderKLTemporalDecoder`, or transformers' `CLIPTextModel`,
            `CLIPTextModelWithProjection` or `CLIPVisionModelWithProjection`.
        backend: "auto", a name, or a list of names by preference, as for `load`. With "eager" all stays in PyTorch.
        precision: "auto", "fp32", "bf16", "fp16" or "int8", or one for each network, as for `load`: `{"unet": "bf16"}`,
            where the others are "auto". Networks have the names of the report: vae.decoder, or vae_decoder as in
            `load`. "auto" compares with float32 on the inputs of the first call. "int8" opens what `calotype build`
            left in the cache for the same weights; without one, the first call raises `BuildError`.
        verify: Compare the first call of each network, also after each change of its weights, with eager PyTorch, and
            the pipeline's first image, for which its first call runs a second time in PyTorch. A network or an image
            that differs too much stays in eager PyTorch.
        keep_eager: Keep the weights of PyTorch in memory. False moves those on the CPU into a memory-mapped file in
            the cache: the system reads them where something needs them, and may drop them from memory.
        warm: Arguments of a call that runs now, so that later calls of its sizes do not wait: for a pipeline
            `{"prompt": "", "height": 512, "width": 512}`. It runs 2 steps unless it sets `num_inference_steps`.

    Returns:
        `target` itself.

    Raises:
        BackendError: no requested backend can run here, or none computes in the precision.
        InputError: `target` is neither a pipeline nor a network, an argument has the wrong type, or `precision` names
            a network that `target` lacks.
        SourceError: the cache cannot be written (`keep_eager=False`).
    """
    for name, value in (("verify", verify), ("keep_eager", keep_eager)):
        if not isinstance(value, bool):
            message = f"{name} must be True or False, got {value!r:.40}."
            raise InputError(message, argument=name, got=repr(value), expected="a bool")
    if warm is not None and not isinstance(warm, Mapping):
        message = f"warm must be a mapping of a call's arguments, got {warm!r:.40}. Try warm={{'prompt': ''}}."
        raise InputError(message, argument="warm", got=repr(warm), expected="a mapping")
    networks = _networks(target)
    precisions = _precisions(precision, target, networks)
    choice = _compiled_only(selection_for(choose(backend), precisions))
    restore(target)
    if choice is not None:
        for name, owner in networks:
            _install(name, owner, choice, precisions, verify)
    if not keep_eager:
        for _, owner in networks:
            move_to_file(owner, type(owner).__name__)
    if warm is not None:
        _warm(target, warm)
    if verify and not isinstance(target, nn.Module) and (forwards := _forwards(target)):
        image_check.watch(target, forwards)
    return target


@contextmanager
def accelerated(target: T, **options: Any) -> Iterator[T]:
    """Accelerate a pipeline or a network inside of a `with` block, and restore it at its end.

    Args:
        target: a pipeline or a network, as for `accelerate`.
        **options: the other arguments of `accelerate`.

    Returns:
        A context manager of `target` itself.

    Raises:
        CalotypeError: as `accelerate`.
    """
    accelerate(target, **options)
    try:
        yield target
    finally:
        restore(target)


def restore(target: T) -> T:
    """Undo `accelerate`: the networks run in eager PyTorch again. Does nothing for what was not accelerated.

    Weights that `keep_eager=False` moved stay in the mapped file.

    Args:
        target: a pipeline or a network.

    Returns:
        `target` itself.

    Raises:
        InputError: `target` is neither a pipeline nor a network.
    """
    for each in _forwards(target):
        each.remove()
    if not isinstance(target, nn.Module):
        image_check.forget(target)
    return target


def accelerate_report(target: Any) -> AccelerateReport:
    """Return what runs compiled in a pipeline or a network, and what stays in eager PyTorch, with the reasons.

    Args:
        target: a pipeline or a network. It need not be accelerated.

    Returns:
        The report. `print` shows it as text.

    Raises:
        InputError: `target` is neither a pipeline nor a network.
    """
    modules = []
    for name, owner in _networks(target):
        forwards = _forwards_of(owner)
        # Another pipeline may have accelerated the network, under another name.
        modules += [each.report(_title(name, each.kind)) for each in forwards] or [_untouched(name, owner)]
    check = None if isinstance(target, nn.Module) else image_check.check_of(target)
    if check is None:
        return AccelerateReport(modules=tuple(modules))
    return AccelerateReport(modules=tuple(modules), image_psnr_db=check.psnr_db, image_note=check.note)


def _networks(target: Any) -> list[tuple[str, nn.Module]]:
    """Return the networks of a pipeline, or the network itself, by name. Raises `InputError` if it has none."""
    if isinstance(target, nn.Module):
        return list(networks_of(type(target).__name__, target))
    parts = {} if isinstance(target, type) else getattr(target, "__dict__", {})
    networks = [pair for name, part in parts.items() for pair in networks_of(name, part)]
    if not networks:
        got = f"{type(target).__module__}.{type(target).__name__}" if not isinstance(target, type) else target.__name__
        raise InputError(
            f"cannot accelerate a {got}: expected a pipeline of diffusers or one of its networks. Try "
            "calotype.accelerate(diffusers.DiffusionPipeline.from_pretrained(...)).",
            argument="target",
            got=got,
            expected="a pipeline of diffusers or a network",
        )
    return networks


def _compiled_only(choice: BackendSelection) -> BackendSelection | None:
    """Return the backends other than eager, which is the module itself; None if eager comes first."""
    if choice.names[0] in ("eager", "fake"):
        return None
    names = tuple(name for name in choice.names if name not in ("eager", "fake"))
    requested = tuple(name for name in choice.requested if name not in ("eager", "fake"))
    return replace(choice, names=names, requested=requested)


def _precisions(value: Any, target: Any, networks: Sequence[tuple[str, nn.Module]]) -> Precisions:
    """Return the precisions by the names of the report. Raises `InputError` for a name that `target` lacks."""
    titles: dict[str, str] = {}
    for name, owner in networks:
        for kind in kinds_of(owner):
            title = _title(name, kind)
            as_loaded = kind.name if target is owner else title.removesuffix(".0").replace(".", "_")
            titles |= {title: title, as_loaded: title}
    precisions = parse_precision(value)
    precisions.check_components(titles)
    return replace(precisions, components={titles[name]: each for name, each in precisions.components.items()})


def _install(name: str, owner: nn.Module, choice: BackendSelection, precisions: Precisions, verify: bool) -> None:
    for kind in kinds_of(owner):
        title = _title(name, kind)
        Forward(title, owner, kind, choice, precision=precisions.of(title), verify=verify).install()


def _title(name: str, kind: Kind) -> str:
    return f"{name}.{kind.part}" if kind.part else name


def _forwards_of(owner: nn.Module) -> list[Forward]:
    modules = [getattr(owner, kind.part) if kind.part else owner for kind in kinds_of(owner)]
    # Hooks of the package accelerate keep the method that they replace.
    methods = [module.__dict__.get(name) for module in modules for name in ("forward", "_old_forward")]
    return [each for each in methods if isinstance(each, Forward)]


def _forwards(target: Any) -> list[Forward]:
    return [each for _, owner in _networks(target) for each in _forwards_of(owner)]


def _untouched(name: str, owner: nn.Module) -> ModuleReport:
    if not kinds_of(owner):
        reason = f"a {type(owner).__name__} has no compiled form; expected one of {', '.join(CLASSES)}"
    else:
        reason = "it is not accelerated; call calotype.accelerate"
    return ModuleReport(name=name, class_name=type(owner).__name__, backend="eager", notes=(reason,))


def _warm(target: Any, arguments: Mapping[str, Any]) -> None:
    """Run a call, and leave the random generators as they were."""
    known = inspect.signature(target.forward if isinstance(target, nn.Module) else target.__call__).parameters
    steps = {"num_inference_steps": _WARM_STEPS} if "num_inference_steps" in known else {}
    state = image_check.random_state((), arguments)
    try:
        with torch.no_grad():
            target(**{**steps, **arguments})
    finally:
        image_check.restore_random(state)

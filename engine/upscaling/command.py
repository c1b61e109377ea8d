"""The command `calotype upscale`: make image files larger. Checks all files before the work."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer

from ..errors import InputError
from ..errors.printable import printable

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
_READ = (*SUFFIXES, ".bmp", ".gif", ".tif", ".tiff")


def upscale(
    images: Annotated[list[Path], typer.Argument(help="Image files, and folders of image files.")],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="A .png, .jpg or .webp file; for several images a folder."),
    ],
    model: Annotated[
        str,
        typer.Option(help="The upscaler: a .safetensors or .pth file of ESRGAN, Real-ESRGAN or its compact network."),
    ],
    scale: Annotated[
        float | None,
        typer.Option(
            help="How many times larger each side becomes, 1 to 16.  [default: the model's]", show_default=False
        ),
    ] = None,
    backend: Annotated[
        str, typer.Option(help="auto, or names by preference: onnxruntime,eager.  [default: auto]", show_default=False)
    ] = "auto",
) -> None:
    """Make images larger by a network: ESRGAN, Real-ESRGAN, or its compact network."""
    pairs = list(_pairs(images, output))
    from ..images.arrays import read_image
    from .load import load_upscaler

    names = [name.strip() for name in backend.split(",") if name.strip()]
    upscaler = load_upscaler(model, backend=names[0] if len(names) == 1 else names)
    for source, target in pairs:
        image = upscaler(read_image(source), scale=scale)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            (image if target.suffix.lower() in (".png", ".webp") else image.convert("RGB")).save(target, quality=95)
        except OSError as failed:
            raise InputError(f"cannot write {target}: {failed.strerror or failed}.", argument="output") from None
        typer.echo(printable(f"{target}  {image.width} x {image.height}"))


def _pairs(images: Sequence[Path], output: Path) -> Iterator[tuple[Path, Path]]:
    """Return each image file with the file that it becomes. Raises `InputError` if one is missing or would be lost."""
    files = [file for path in images for file in _files(path)]
    single = len(files) == 1 and not any(path.is_dir() for path in images) and not output.is_dir()
    targets = [output] if single else [output / f"{file.stem}.png" for file in files]
    if not single and (output.is_file() or output.suffix.lower() in SUFFIXES):
        message = f"cannot write {len(files)} images to {output}: expected a folder."
        raise InputError(message, argument="output", got=str(output))
    if single and output.suffix.lower() not in SUFFIXES:
        message = f"cannot write {output}: expected a file with one of the suffixes {', '.join(SUFFIXES)}."
        raise InputError(message, argument="output", got=str(output))
    for file, target in zip(files, targets, strict=True):
        if targets.count(target) > 1:
            raise InputError(f"two images would be written to {target}. Rename one.", argument="output")
        if target.absolute() == file.absolute():
            raise InputError(f"{target} would replace its own input. Choose another output.", argument="output")
    return zip(files, targets, strict=True)


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise InputError(f"cannot read {path}: there is no such file.", argument="images", got=str(path))
    if files := sorted(file for file in path.iterdir() if file.suffix.lower() in _READ):
        return files
    raise InputError(f"{path} holds no image file ({', '.join(_READ)}).", argument="images", got=str(path))

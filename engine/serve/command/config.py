"""`ServeConfig`: every setting of `calotype serve`, in one dataclass.

The command's options and the keys of `serve.toml` are its fields. Its module imports nothing heavy, because the command
line reads it.
"""

from __future__ import annotations

import inspect
import ipaddress
import re
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

from ...errors import InputError
from ...errors.validation import check_names
from ...weights.precisions import parse_precision
from ..ray_settings import RaySettings
from ..service_settings import ServiceSettings
from ..settings import EngineSettings

Model = str | Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class ServeConfig(ServiceSettings, EngineSettings, RaySettings):
    """The configuration of `calotype serve`.

    Attributes:
        models: Models by the names that clients use: what `calotype.load` takes, or a table of its arguments.
        backend: The backend of models without one of their own: auto, or names by preference.
        precision: The precision of models without one of their own: auto, fp32, bf16, fp16 or int8, or one for each
            component, as unet=bf16,vae_decoder=fp32.
        controlnet: The ControlNets of models without their own: folders, files or hub ids.
        lora_folder: A folder of LoRAs, which clients name without paths.
        memory_bytes: The memory that open models may take; the model used longest ago is closed. By default no limit.
        offline: Read hub ids from the cache only.
        host: The address that the server listens on.
        port: The port; 0 takes a free one.
        allow_anonymous: Let everybody in who reaches an address beyond this machine.
        drain_s: Seconds that jobs may still take after SIGTERM.
        log_level: debug, info, warning or error.
    """

    models: Mapping[str, Model] = field(default_factory=lambda: {"demo": "demo"})
    backend: str = "auto"
    precision: str = "auto"
    controlnet: tuple[str, ...] = ()
    lora_folder: Path | None = None
    memory_bytes: int | None = None
    offline: bool = False
    host: str = "127.0.0.1"
    port: int = 8000
    allow_anonymous: bool = False
    drain_s: float = 30.0
    log_level: str = "info"

    def __post_init__(self) -> None:
        """Raise `InputError` for a value that no server can run with."""
        if not self.models:
            raise InputError("a server needs at least one model.", argument="models", expected='demo = "demo"')
        parse_precision(self.precision)
        if not 0 <= self.port <= 65535:
            raise InputError(f"port must be from 0 to 65535, got {self.port}.", argument="port", got=self.port)
        if not _is_loopback(self.host) and self.key_file is None and not self.allow_anonymous:
            message = (
                f"{self.host} is reachable from other machines, and there is no key file. Pass --key-file (calotype "
                "serve --new-key NAME makes a key), or --allow-anonymous to let everybody in."
            )
            raise InputError(message, argument="host", got=self.host, expected="127.0.0.1, ::1 or localhost")


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def types_of_fields() -> dict[str, Any]:
    """Return the type of each field, None left out: str, int, float, bool, Path, tuple for several texts, or dict."""
    hints = get_type_hints(ServeConfig)
    types: dict[str, Any] = {}
    for each in fields(ServeConfig):
        hint = hints[each.name]
        kinds = [kind for kind in get_args(hint) if kind is not NoneType] if NoneType in get_args(hint) else [hint]
        types[each.name] = {Mapping: dict}.get(origin, origin) if (origin := get_origin(kinds[0])) else kinds[0]
        if types[each.name] not in (str, int, float, bool, Path, tuple):
            types[each.name] = dict
    return types


def help_of_fields() -> dict[str, str]:
    """Return what the docstrings say of each field, and its default."""
    texts: dict[str, str] = {}
    for kind in reversed(ServeConfig.__mro__[:-1]):
        section = inspect.cleandoc(kind.__doc__ or "").partition("Attributes:\n")[2]
        texts |= {m[1]: " ".join(m[2].split()) for m in re.finditer(r"^ {4}(\w+): ((?:.|\n {6,})*)", section, re.M)}
    for each in fields(ServeConfig):
        if each.default is not MISSING and each.default not in (None, ()):
            texts[each.name] = f"{texts.get(each.name, '')}  [default: {each.default}]"
    return texts


def read_config(path: Path | None, options: Mapping[str, Any]) -> ServeConfig:
    """Return the configuration in a TOML file, with the options of the command line in place of its values.

    Raises:
        InputError: The file cannot be read, or a value is unknown or of another type.
    """
    values: dict[str, Any] = {}
    if path is not None:
        try:
            values = tomllib.loads(path.expanduser().read_text())
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise InputError(f"cannot read {path}: {error}.", argument="config", got=str(path)) from None
    types = types_of_fields()
    check_names(values, list(types), {})
    return ServeConfig(**{name: _value(name, value, types[name]) for name, value in {**values, **options}.items()})


def models_from(texts: list[str]) -> dict[str, str]:
    """Return models by name from texts such as `NAME=PATH`, or `PATH`, whose name is that of the file or folder."""
    pairs = [text.partition("=") for text in texts]
    return {name if sign else Path(name).stem: model if sign else name for name, sign, model in pairs}


def _value(name: str, value: Any, kind: Any) -> Any:
    if kind is Path and isinstance(value, (str, Path)):
        return Path(value)
    if kind is tuple and isinstance(value, (list, tuple)) and all(isinstance(each, str) for each in value):
        return tuple(value)
    if kind is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if kind is dict and isinstance(value, Mapping) and all(isinstance(each, (str, dict)) for each in value.values()):
        return dict(value)
    if kind in (str, int, bool) and type(value) is kind:
        return value
    expected = {Path: "a path", tuple: "a list of texts", float: "a number", dict: "a table of models"}
    what = expected.get(kind, kind.__name__)
    raise InputError(f"{name} must be {what}, got {value!r:.80}.", argument=name, got=value, expected=what)

"""Probes of libraries for `calotype.doctor.doctor`, each in a child process: `python -m calotype.doctor.probes NAME`.

A broken library may raise anything, end the process, crash or hang. The result is one line of JSON after a mark,
because libraries may print other lines. This file does not judge the results.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import sys
from collections.abc import Callable
from typing import Any

MARK = "calotype-checkup:"

# y = relu(x) for one number, as an ONNX file (ir_version 8, opset 13), so that onnx need not be installed.
TINY = bytes.fromhex(
    "08083a330a0c0a0178120179220452656c751201675a0f0a0178120a0a08080112040a020801620f0a0179120a0a08080112040a0208014202100d"
)
# A client for models on a server: it opens any model and runs nothing locally.
_REMOTE = ("AzureExecutionProvider",)


def imported(name: str) -> dict[str, Any]:
    """Import the library and return its version."""
    module = importlib.import_module(name)
    return {"version": str(getattr(module, "__version__", ""))}


def torch() -> dict[str, Any]:
    """Return PyTorch's version, its CUDA runtime and the devices that it finds."""
    import torch

    cuda = torch.cuda.is_available()
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if cuda else []
    return {"version": torch.__version__, "cuda_runtime": torch.version.cuda, "devices": devices}


def gpu() -> dict[str, Any]:
    """Return NVIDIA's driver and devices from the driver's library, without torch or a CUDA toolkit."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return {"absent": "no NVIDIA driver (libcuda.so.1 is missing)"}
    status = cuda.cuInit(0)
    if status:
        return {"absent": f"the NVIDIA driver finds no GPU (cuInit returns {status})"}
    number = ctypes.c_int()
    cuda.cuDriverGetVersion(ctypes.byref(number))
    supports = f"{number.value // 1000}.{number.value % 1000 // 10}"
    cuda.cuDeviceGetCount(ctypes.byref(number))
    devices = [_device(cuda, i) for i in range(number.value)]
    return {"driver": _driver(), "cuda": supports, "devices": devices}


def _device(cuda: Any, index: int) -> dict[str, Any]:
    handle, name, memory = ctypes.c_int(), ctypes.create_string_buffer(256), ctypes.c_size_t()
    cuda.cuDeviceGet(ctypes.byref(handle), index)
    cuda.cuDeviceGetName(name, len(name), handle)
    cuda.cuDeviceTotalMem_v2(ctypes.byref(memory), handle)
    capability = []
    for attribute in (75, 76):  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR
        number = ctypes.c_int()
        cuda.cuDeviceGetAttribute(ctypes.byref(number), attribute, handle)
        capability.append(str(number.value))
    text = name.value.decode(errors="replace")
    return {"name": text, "capability": ".".join(capability), "memory_bytes": memory.value}


def _driver() -> str | None:
    """Return the driver's version from its management library."""
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
        text = ctypes.create_string_buffer(96)
        success = nvml.nvmlInit_v2() == 0 and nvml.nvmlSystemGetDriverVersion(text, len(text)) == 0
    except (OSError, AttributeError):
        return None
    return text.value.decode(errors="replace") if success else None


def tensorrt(name: str) -> dict[str, Any]:
    """Return TensorRT's version. With a GPU, also create a builder. Without one, TensorRT may end the process."""
    trt = importlib.import_module(name)
    result = {"version": str(trt.__version__)}
    if "devices" in gpu():
        result["builder"] = str(bool(trt.Builder(trt.Logger(trt.Logger.ERROR))))
    return result


def onnxruntime() -> dict[str, Any]:
    """Return ONNX Runtime's version and the execution providers of this build."""
    import onnxruntime

    providers = [p for p in onnxruntime.get_available_providers() if p not in _REMOTE]
    return {"version": onnxruntime.__version__, "providers": providers}


def provider(name: str) -> dict[str, Any]:
    """Run a tiny model: providers that cannot start fall back to the CPU and only write a log line."""
    import numpy as np
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(TINY, options, providers=[name])
    providers = session.get_providers()
    if providers[:1] != [name]:
        return {"absent": f"it falls back to {', '.join(providers)}"}
    (y,) = session.run(None, {"x": np.array([2], dtype=np.float32)})
    return {} if y.tolist() == [2] else {"absent": f"it computes relu(2) = {y.tolist()}"}


def openvino() -> dict[str, Any]:
    """Run a tiny model and return OpenVINO's version, its devices and the CPU's precisions."""
    import numpy as np

    from ..backends.openvino.network import library

    openvino = library()
    core = openvino.Core()
    (y,) = core.compile_model(core.read_model(TINY), "CPU")([np.array([2], dtype=np.float32)]).values()
    if y.tolist() != [2]:
        return {"absent": f"it computes relu(2) = {y.tolist()}"}
    able = sorted(set(core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")) & {"FP32", "BF16", "FP16", "INT8"})
    return {"version": openvino.__version__.partition("-")[0], "devices": core.available_devices, "computes": able}


_PROBES: dict[str, Callable[..., dict[str, Any]]] = {
    "gpu": gpu,
    "imported": imported,
    "onnxruntime": onnxruntime,
    "openvino": openvino,
    "provider": provider,
    "tensorrt": tensorrt,
    "torch": torch,
}


def main() -> None:
    """Run the probe named by the arguments and print its result."""
    probe, *arguments = sys.argv[1:]
    try:
        result = _PROBES[probe](*arguments)
    except BaseException as error:  # any error is the result, also SystemExit
        message = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
        missing = isinstance(error, ModuleNotFoundError) and error.name
        result = {"error": f"{type(error).__name__}: {message}", "missing": missing or None}
    sys.stdout.flush()
    print(f"\n{MARK}{json.dumps(result)}", flush=True)
    os._exit(0)  # skip the exit handlers and threads of the library


if __name__ == "__main__":
    main()

"""The doctor on broken machines: a broken library only affects its own line."""

import ctypes
import json
import os
import subprocess
import sys

import onnx
import pytest

from calotype.doctor import doctor, machine, probes

PACKAGES = (*doctor._CORE, *doctor._BUILD, "onnxruntime", "openvino", *doctor._FOR_GPUS)
KINDS = {
    "ImportError": ("raise ImportError('libfoo.so.3: cannot open shared object file')", "broken", "libfoo.so.3"),
    "OSError": ("import ctypes\nctypes.CDLL('libnot-there.so')", "broken", "libnot-there.so"),
    "SystemExit": ("import sys\nprint('chatter')\nsys.exit('Error: set the variable')", "broken", "set the variable"),
    "RuntimeError": ("raise RuntimeError('built for another numpy\\nline 2')", "broken", "built for another numpy"),
    "a bare interrupt": ("raise KeyboardInterrupt", "broken", "KeyboardInterrupt"),
    "a crash": ("import os\nos.abort()", "broken", "crashed (SIGABRT)"),
    "a quiet end": ("import os\nos._exit(3)", "broken", "ended the process (exit code 3)"),
    "a missing dependency": ("import no_such_package", "broken", "No module named 'no_such_package'"),
    "a warning": ("import warnings\nwarnings.warn('old')\n__version__ = '1.0'", "", ""),
    "nothing in it": ("", "", ""),
}


def fake(folder, name, code):
    (folder / name).mkdir(parents=True)
    (folder / name / "__init__.py").write_text(code)


def run(folder, *arguments, **more):
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONWARNINGS": "error", **more}
    command = [sys.executable, "-m", "calotype", "doctor", *arguments]
    return subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("kind", KINDS)
def test_everything_broken_at_once(tmp_path, kind):
    """With typer, rich and numpy broken, the command line itself cannot start."""
    code, state, detail = KINDS[kind]
    for name in PACKAGES:
        fake(tmp_path, name, code)
    done = run(tmp_path, "--json")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    report = json.loads(done.stdout)
    findings = {f["name"]: f for f in (*report["backends"], *report["packages"])}
    assert set(findings) == {*PACKAGES, "eager"}
    for name in PACKAGES if state else ():
        assert findings[name]["state"] == state, findings[name]
        assert detail in findings[name]["detail"]
        assert "\n" not in findings[name]["detail"]
        assert findings[name]["mend"].startswith("pip install --force-reinstall")
    assert findings["onnxruntime"]["state"] == "broken"  # it imports, but has no providers
    assert findings["openvino"]["state"] == "broken"


def test_everything_missing(tmp_path):
    for name in PACKAGES:
        fake(tmp_path, name, f"raise ModuleNotFoundError('No module named {name}', name='{name}')")
    done = run(tmp_path, PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    for line in ("pip install 'calotype[cpu]'", "pip install 'calotype[build]'", "pip install calotype "):
        assert line in done.stdout
    assert "tensorrt_rtx    no use   not installed, and this machine has no NVIDIA GPU" in done.stdout
    assert "eager           missing  torch is missing, diffusers is missing, transformers is missing" in done.stdout


def test_a_probe_that_hangs_times_out(tmp_path, monkeypatch):
    for name in PACKAGES:
        fake(tmp_path, name, "")
    (tmp_path / "scipy" / "__init__.py").write_text("import time\ntime.sleep(600)")
    # A library that imports, and leaves a process behind that keeps the output open.
    left = "import subprocess\nsubprocess.Popen(['sleep', '600'])\n__version__ = '7'"
    (tmp_path / "onnx" / "__init__.py").write_text(left)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    findings = {f.name: f for f in doctor.examine(timeout_s=4).packages}
    assert findings["scipy"].detail == "it did not respond in 4 s"
    assert findings["onnx"].detail == "7"
    assert findings["numpy"].state == "ready"


ORT = """
import os
__version__ = "9"
def get_available_providers():
    return ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider", "AzureExecutionProvider"]
class SessionOptions: pass
class InferenceSession:
    def __init__(self, model, options, providers):
        if providers == ["TensorrtExecutionProvider"]: os.abort()
    def get_providers(self): return ["CPUExecutionProvider"]
    def run(self, names, inputs): return [inputs["x"]]
"""


def test_only_providers_that_open_a_session_count(tmp_path, monkeypatch):
    fake(tmp_path, "onnxruntime", ORT)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    for name in PACKAGES:
        if name not in ("numpy", "onnxruntime"):
            fake(tmp_path, name, "")
    (finding,) = (f for f in doctor.examine().backends if f.name == "onnxruntime")
    assert finding.state == "ready"
    assert "no TensorrtExecutionProvider (it crashed (SIGABRT))" in finding.detail
    assert "no CUDAExecutionProvider (it falls back to CPUExecutionProvider)" in finding.detail
    assert "opens CPUExecutionProvider" in finding.detail
    assert "Azure" not in finding.detail


def test_this_machine(tmp_path):
    done = run(tmp_path)
    assert done.returncode == 0, done.stderr
    assert "opens CPUExecutionProvider" in done.stdout
    assert "CPU in " in done.stdout
    assert "eager           ready" in done.stdout
    assert max(map(len, done.stdout.splitlines())) < 140


def test_other_commands_say_that_typer_is_broken(tmp_path):
    fake(tmp_path, "typer", "raise ImportError('no')")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-m", "calotype", "--version"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("calotype: ")
    assert ": no." in done.stderr
    assert "calotype doctor" in done.stderr


def test_a_full_disk_is_an_error_without_a_traceback(tmp_path):
    for name in PACKAGES:
        fake(tmp_path, name, "raise ImportError")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-m", "calotype", "doctor"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, env=environment, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr


def test_files_of_the_current_folder_are_not_imported(tmp_path):
    (tmp_path / "scipy.py").write_text("raise RuntimeError")
    assert doctor._run_probe(("imported", "json"), 30) == {"version": "2.0.9"}
    environment = {**os.environ, "PYTHONWARNINGS": "error"}
    code = "from calotype.doctor import doctor; print(doctor._run_probe(('imported', 'scipy'), 60))"
    command = [sys.executable, "-P", "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert "error" not in done.stdout


def test_the_fix_is_that_of_the_root_cause(tmp_path, monkeypatch):
    for name in PACKAGES:
        fake(tmp_path, name, "__version__ = '1'")
    for name in ("torch", "diffusers"):
        (tmp_path / name / "__init__.py").write_text("raise OSError('undefined symbol')")
    (tmp_path / "onnx" / "__init__.py").write_text("raise ModuleNotFoundError('no onnx', name='onnx')")
    (tmp_path / "onnxscript" / "__init__.py").write_text("import onnx")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    examination = doctor.examine()
    findings = {f.name: f for f in examination.packages}
    assert findings["diffusers"].mend == findings["torch"].mend == "pip install --force-reinstall torch"
    assert (findings["onnxscript"].detail, findings["onnxscript"].mend) == (
        "needs onnx",
        "pip install 'calotype[build]'",
    )
    assert "  pip install --force-reinstall torch        eager, torch, diffusers" in str(examination)


def test_gpu_libraries_are_missing_on_a_machine_with_a_gpu():
    missing = {"error": "ModuleNotFoundError: No module named 'tensorrt'", "missing": "tensorrt"}
    finding = doctor._judge("tensorrt", missing, has_gpu=True)
    assert (finding.state, finding.mend) == ("missing", "pip install 'calotype[tensorrt]'")
    torch = {"version": "2.11.0+cu130", "cuda_runtime": "13.0", "devices": ["NVIDIA H200"]}
    assert doctor._judge("torch", torch, has_gpu=True).detail == "2.11.0+cu130, CUDA 13.0, NVIDIA H200"
    assert doctor._judge("torch", torch | {"devices": []}, has_gpu=True).detail.endswith("finds no GPU")


class FakeCuda:
    """libcuda.so.1 of a machine with a driver, and one GPU or none."""

    def __init__(self, status=0, devices=1):
        self.status, self.devices = status, devices

    def cuInit(self, _):
        return self.status

    def cuDriverGetVersion(self, number):
        number._obj.value = 13000

    def cuDeviceGetCount(self, number):
        number._obj.value = self.devices

    def cuDeviceGet(self, handle, index):
        handle._obj.value = index

    def cuDeviceGetName(self, name, length, handle):
        name.value = b"NVIDIA H200"

    def cuDeviceTotalMem_v2(self, memory, handle):
        memory._obj.value = 139 << 30

    def cuDeviceGetAttribute(self, number, attribute, handle):
        number._obj.value = {75: 9, 76: 0}[attribute]


@pytest.mark.parametrize(
    ("library", "line"),
    [
        (FakeCuda(), "NVIDIA H200, compute capability 9.0, 139.0 GiB; driver of unknown version, CUDA up to 13.0"),
        (FakeCuda(devices=0), "none; driver of unknown version, CUDA up to 13.0"),
        (FakeCuda(status=100), "the NVIDIA driver finds no GPU (cuInit returns 100)"),
        (None, "no NVIDIA driver (libcuda.so.1 is missing)"),
    ],
)
def test_gpus(monkeypatch, library, line):
    def open_library(name):
        if name != "libcuda.so.1" or library is None:
            raise OSError(name)
        return library

    monkeypatch.setattr(ctypes, "CDLL", open_library)
    assert doctor._gpu_lines(probes.gpu()) == [line]


def test_the_tiny_model_is_a_model():
    onnx.checker.check_model(onnx.load_from_string(probes.TINY))


def test_a_missing_python(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    assert "cannot start Python" in doctor._run_probe(("gpu",), 5)["error"]


def test_the_machine_is_read_from_its_files(tmp_path):
    for folder in ("proc", "sys/fs/cgroup"):
        (tmp_path / folder).mkdir(parents=True)
    cpuinfo = "model name : Xeon\nflags : sse2 avx2 avx512f avx512_vnni avx512_bf16 amx_bf16 amx_int8\n"
    (tmp_path / "proc" / "cpuinfo").write_text(cpuinfo)
    (tmp_path / "proc" / "meminfo").write_text("MemTotal: 2048 kB\nMemAvailable: 1024 kB\n")
    (tmp_path / "sys" / "fs" / "cgroup" / "cpu.max").write_text("150000 100000")
    properties = machine.inspect_machine(tmp_path)
    assert properties.processor == "Xeon"
    assert properties.features == ("AVX2", "AVX-512", "AVX-512 VNNI", "AVX-512 BF16", "AMX BF16", "AMX INT8")
    assert properties.lacking == ()
    assert (properties.memory_bytes, properties.memory_free_bytes, properties.quota) == (2048 << 10, 1024 << 10, 1.5)


def test_arm_does_not_list_absent_x86_features(tmp_path):
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "cpuinfo").write_text("Features : fp asimd asimddp i8mm bf16 sve\n")
    properties = machine.inspect_machine(tmp_path)
    assert (properties.features, properties.lacking) == (("dot product", "I8MM", "BF16", "SVE"), ())


@pytest.mark.parametrize("home", ["/proc/nothing/here", "~no-such-user/x", "x" * 400, "/dev/null/below"])
def test_an_unknown_machine(tmp_path, monkeypatch, home):
    monkeypatch.setenv("CALOTYPE_HOME", home)
    properties = machine.inspect_machine(tmp_path / "empty")
    assert properties.features == ()
    assert properties.store_bytes is None
    if home != "x" * 400:
        assert not properties.store_writable or os.getuid() == 0
    examination = doctor.Examination(machine=properties, gpu={"absent": "none"}, backends=(), packages=())
    assert "unknown" in str(examination)
    json.dumps(examination.to_json())

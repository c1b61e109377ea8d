"""Child processes that start in milliseconds: forks of one interpreter that has imported the large packages.

A fresh interpreter that traces or builds imports torch, diffusers and onnx for seconds before it works. `ForkedPopen`
is `subprocess.Popen` for `[sys.executable, "-c" or "-m", ...]`, and `run` is `subprocess.run`: the code runs in a fork,
with its own arguments, environment, folder and files. Tests of what an interpreter imports use `subprocess`.

The server imports and traces, which starts no threads. It leaves out onnxruntime and openvino, which start threads when
imported: a fork would miss them. It ends with this process.
"""

import atexit
import builtins
import ctypes
import gc
import importlib
import json
import os
import re
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
import types
import warnings
from pathlib import Path

MODULES = (
    *("networkx", "onnx", "onnx_ir", "onnxscript.function_libs.torch_lib.ops", "safetensors.torch", "scipy.stats"),
    *("sympy.combinatorics", "tokenizers", "torch", "torch._dynamo", "torch._functorch._aot_autograd.autograd_cache"),
    *("torch.export._trace", "torch.onnx._internal.exporter._compat", "torch.onnx._internal.exporter._torchlib.ops"),
    *("transformers.models.clip.modeling_clip", "transformers.models.clip.tokenization_clip"),
    *("diffusers.models.autoencoders.autoencoder_kl", "diffusers.models.unets.unet_2d_condition"),
    *("diffusers.models.unets.unet_2d", "diffusers.models.controlnets.controlnet"),
    *("calotype.benchmarks.cli", "calotype.loading", "calotype.export.builder.build", "calotype.export.onnx.trace"),
)
PREFIXES = ("-S", "-P", "-s", "-B")  # options that a fork has no use for
_lock = threading.Lock()
_server: socket.socket | None = None


def run(arguments, *, input=None, timeout=None, check=False, capture_output=False, **options):
    """Do what `subprocess.run` does, in a fork."""
    if capture_output:
        options |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    if input is not None:
        options["stdin"] = subprocess.PIPE
    with ForkedPopen(arguments, **options) as child:
        try:
            out, err = child.communicate(input, timeout)
        except BaseException:
            child.kill()
            raise
    done = subprocess.CompletedProcess(arguments, child.returncode, out, err)
    if check:
        done.check_returncode()
    return done


class ForkedPopen(subprocess.Popen):
    """`subprocess.Popen` whose process is a fork of the server: only the start and the wait differ."""

    def _execute_child(self, *values):
        names = subprocess.Popen._execute_child.__code__.co_varnames[1:]
        options = dict(zip(names, values, strict=False))
        files = [options[name] for name in ("p2cread", "c2pwrite", "errwrite")]
        files = [number if file == -1 else file for number, file in enumerate(files)]
        status, writer = socket.socketpair()
        job = {
            "arguments": [os.fspath(word) for word in options["args"]],
            "environment": dict(os.environ if options["env"] is None else options["env"]),
            "folder": os.fspath(options["cwd"] or os.getcwd()),
            "new_session": options["start_new_session"],
            "passed": list(options["pass_fds"]),
        }
        with writer:
            _send(job, [writer.fileno(), *files, *options["pass_fds"]])
        self._status = status.makefile("r")
        status.close()
        if not (line := self._status.readline()):
            raise ChildProcessError("the fork server died; its messages are above")
        self.pid = int(line)
        self._child_created = True
        pipes = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")
        self._close_pipe_fds(*(options[name] for name in pipes))

    def _try_wait(self, wait_flags):
        if wait_flags & os.WNOHANG:
            ended = select.poll()  # `select.select` takes no file number above 1023
            ended.register(self._status, select.POLLIN)
            if not ended.poll(0):
                return 0, 0
        with self._status:
            return self.pid, int(self._status.readline() or signal.SIGKILL)  # as `os.waitpid` returns it

    def _internal_poll(self, *_, **__):
        if self.returncode is None and not self._status.closed and self._waitpid_lock.acquire(False):
            try:
                pid, status = self._try_wait(os.WNOHANG)
                if pid:
                    self._handle_exitstatus(status)
            finally:
                self._waitpid_lock.release()
        return self.returncode


def _send(job, files) -> None:
    global _server
    with _lock:
        if _server is None:
            _server, other = socket.socketpair()
            command = [sys.executable, "-P", __file__, str(other.fileno())]
            options = {
                "stdin": subprocess.DEVNULL,
                "start_new_session": True,
            }  # Ctrl-C ends the tests, and they the server
            process = subprocess.Popen(command, pass_fds=(other.fileno(),), **options)
            other.close()
            atexit.register(process.wait)
            atexit.register(_server.close)  # before the wait
        data = json.dumps(job).encode()
        socket.send_fds(_server, [len(data).to_bytes(8, "big")], files)
        _server.sendall(data)


def serve(control: socket.socket) -> None:
    """Fork for each job until the other end closes."""
    from calotype.export.steps import subprocess_task

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for module in MODULES:
            importlib.import_module(module)
        threads = len(os.listdir("/proc/self/task"))
        _trace()
    subprocess_task._die_with = lambda parent: None  # a fork dies with the server, and the server with its parent
    assert threading.active_count() == 1
    assert len(os.listdir("/proc/self/task")) == threads  # those of the libraries, which start with the imports
    gc.collect()
    gc.freeze()  # forks do not look through what the server imported
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        head, files, _, _ = socket.recv_fds(control, 8, 64)
        if not head:
            os._exit(0)
        data = b""
        while len(data) < int.from_bytes(head, "big"):
            data += control.recv(1 << 20)
        if os.fork() == 0:
            control.close()
            _keep(json.loads(data), files)
        for file in files:
            os.close(file)


def _trace() -> None:
    """Trace a network: the first trace of a process compiles operators and fills caches, which forks then have."""
    import diffusers

    from calotype.backends.torch.modules import UNet
    from calotype.drop_in.kinds import profile_of
    from calotype.export.onnx.trace import trace
    from calotype.plan.networks import unet

    network = diffusers.UNet2DConditionModel(
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
        block_out_channels=(8,),
        layers_per_block=1,
        attention_head_dim=2,
        cross_attention_dim=8,
        norm_num_groups=2,
    )
    sizes = profile_of("unet", network.config).sizes(batch=2, height=16, width=24)
    with tempfile.TemporaryDirectory() as folder:
        trace(unet({"unet": network.config}), UNet(network).eval(), sizes, Path(folder))


def _keep(job, files) -> None:
    """Fork again, and send the process id and then the exit status of the fork."""
    _die_with_parent()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    writer, *rest = files
    child = os.fork()
    if child == 0:
        os.close(writer)
        _die_with_parent()
        _work(job, rest)
    for file in rest:
        os.close(file)
    os.write(writer, f"{child}\n".encode())
    os.write(writer, f"{os.waitpid(child, 0)[1]}\n".encode())
    os._exit(0)


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def _work(job, files) -> None:
    """Become the process of the job."""
    code = 1
    try:
        _place(files, [0, 1, 2, *job["passed"]])
        if job["new_session"]:
            os.setsid()
        os.environ.clear()
        os.environ.update(job["environment"])
        os.chdir(job["folder"])
        code = _execute(job["arguments"][1:])
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)


def _place(files, numbers) -> None:
    """Give the files these numbers, which other files may have now."""
    import fcntl

    above = [fcntl.fcntl(file, fcntl.F_DUPFD, max(numbers) + 1) for file in files]
    for file in files:
        os.close(file)
    for file, number in zip(above, numbers, strict=True):
        os.dup2(file, number)
        os.close(file)


def _execute(words) -> int:
    """Run `-c code ...` or `-m module ...`, and return the exit code."""
    for action in [*os.environ.get("PYTHONWARNINGS", "").split(","), *_warning_options(words)]:
        if action:
            kind, message, category = [*action.split(":"), "", ""][:3]
            warnings.filterwarnings(kind, re.escape(message), getattr(builtins, category or "Warning"))
    kind, name, *rest = [word for word in words if word not in PREFIXES]
    try:
        if kind == "-c":
            sys.argv = ["-c", *rest]
            sys.modules["__main__"] = types.ModuleType("__main__")
            exec(compile(name, "<string>", "exec"), vars(sys.modules["__main__"]))
        else:
            sys.argv = [name, *rest]
            runpy.run_module(name, run_name="__main__", alter_sys=True)
    except SystemExit as stop:
        if stop.code is None or isinstance(stop.code, int):
            return stop.code or 0
        print(stop.code, file=sys.stderr)
        return 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _warning_options(words):
    while "-W" in words:
        at = words.index("-W")
        _, action = words[at : at + 2]
        del words[at : at + 2]
        yield action


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))

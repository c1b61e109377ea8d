"""Models of the hub: which files are fetched, and no connection in offline mode. The hub is a local server."""

import errno
import hashlib
import http.server
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

import calotype
from calotype.errors import SourceError
from calotype.export import prepare
from calotype.export.sources.hub import from_url, needed
from calotype.export.sources.source import find

SHA = "0123456789abcdef0123456789abcdef01234567"
MODEL = ["model_index.json", "scheduler/scheduler_config.json", "tokenizer/vocab.json", "tokenizer/merges.txt"]
MODEL += ["text_encoder/config.json", "unet/config.json", "vae/config.json"]
STEMS = {"text_encoder": "model", "unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model"}
WEIGHTS = [f"{folder}/{stem}.safetensors" for folder, stem in STEMS.items()]
NEVER = ["README.md", "v1-5.ckpt", "v1-5.safetensors", "safety_checker/model.safetensors", "safety_checker/config.json"]
NEVER += [f"{folder}/{stem}.bin" for folder, stem in STEMS.items()] + ["unet/diffusion_flax_model.msgpack"]
NEVER += ["unet/diffusion_pytorch_model.non_ema.safetensors"]


def test_only_files_that_are_read_are_needed():
    halves = [name.replace(".safetensors", ".fp16.safetensors") for name in WEIGHTS]
    assert set(needed("a/b", [*MODEL, *WEIGHTS, *halves, *NEVER])) == {*MODEL, *WEIGHTS}
    assert set(needed("a/b", [*MODEL, *halves, *NEVER])) == {*MODEL, *halves}
    shards = [f"unet/diffusion_pytorch_model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    index = "unet/diffusion_pytorch_model.safetensors.index.json"
    sharded = [*MODEL, WEIGHTS[0], index, *shards, WEIGHTS[2]]
    assert set(needed("a/b", [*sharded, "unet/diffusion_pytorch_model.fp16-00001-of-00002.safetensors"])) == {*sharded}
    net = ["config.json", "diffusion_pytorch_model.safetensors"]
    assert set(needed("a/b", [*net, "diffusion_pytorch_model.bin", "README.md"])) == {*net}


@pytest.mark.parametrize(
    ("files", "keyword"),
    [
        ([*MODEL, *WEIGHTS[:2], "vae/diffusion_pytorch_model.bin"], "vae/diffusion_pytorch_model.bin"),
        ([*MODEL, *WEIGHTS[:2]], "vae/diffusion_pytorch_model.safetensors"),
        (["README.md", "dream.safetensors"], "hf download a/b dream.safetensors"),
        (["dream.ckpt"], "dream.ckpt"),
        (["README.md"], "no model"),
    ],
)
def test_repositories_without_a_model_are_refused_before_any_fetch(files, keyword):
    with pytest.raises(SourceError, match=keyword) as raised:
        needed("a/b", files)
    assert raised.value.path == Path("a/b")


def cached(cache: Path, hub_id: str, folder: Path) -> Path:
    """Copy the model into a cache of the hub's layout: a revision and its files."""
    place = cache / f"models--{hub_id.replace('/', '--')}"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text(SHA)
    return Path(shutil.copytree(folder, place / "snapshots" / SHA))


@pytest.fixture
def no_network(monkeypatch):
    """Make sockets raise, name lookups included."""

    def refuse(*_, **__):
        raise AssertionError("a connection was tried")

    for name in ("socket", "create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, refuse)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)


def test_offline_makes_no_connection(demo_folder, tmp_path, monkeypatch, no_network):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    folder = cached(tmp_path, "some-one/a-model", demo_folder)
    cached(tmp_path, "some-one/a-vae", demo_folder / "vae")
    plan = prepare("some-one/a-model", vae="some-one/a-vae", forms=(), offline=True)
    assert plan.fingerprint == prepare("demo", forms=()).fingerprint
    assert plan.components["unet"].artifact("diffusers").path == folder / "unet"
    pipe = calotype.load("some-one/a-model", backend="eager", offline=True)
    assert pipe("a red ring", steps=1, seed=1, width=64, height=64).images
    with pytest.raises(SourceError, match="Offline mode"):
        calotype.load("some-one/another", offline=True)
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()  # fetched in part
    with pytest.raises(SourceError, match=r"diffusion_pytorch_model\.safetensors"):
        calotype.load("some-one/a-model", offline=True)


def test_the_environment_variable_means_offline_as_well(demo_folder, tmp_path, monkeypatch, no_network):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    cached(tmp_path, "some-one/a-model", demo_folder)
    assert prepare("some-one/a-model", forms=()).family == "sd1"
    with pytest.raises(SourceError, match="without HF_HUB_OFFLINE"):
        calotype.load("some-one/another")


def test_an_unreachable_hub_means_the_cache_with_a_message(demo_folder, tmp_path, monkeypatch, no_network, capsys):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(SourceError, match="hub") as raised:
        prepare("some-one/a-model", forms=())
    assert raised.value.path == Path("some-one/a-model")
    cached(tmp_path, "some-one/a-model", demo_folder)
    assert prepare("some-one/a-model", forms=()).family == "sd1"
    assert "cannot reach the hub" in capsys.readouterr().err


@pytest.mark.parametrize("lost", [WEIGHTS[1], "vae/config.json", "scheduler/scheduler_config.json", None])
def test_an_incomplete_cache_is_not_used(demo_folder, tmp_path, monkeypatch, no_network, lost):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    folder = cached(tmp_path, "some-one/a-model", demo_folder if lost else demo_folder / "vae")
    (folder / (lost or "diffusion_pytorch_model.safetensors")).unlink()
    with pytest.raises(SourceError, match="a part"):
        find("some-one/a-model")


@pytest.mark.parametrize("number", ["ENOSPC", "EDQUOT", "EACCES"])
def test_a_full_disk_is_reported_as_such(demo_folder, tmp_path, monkeypatch, no_network, number):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    cached(tmp_path, "some-one/a-model", demo_folder)
    files = [SimpleNamespace(rfilename=name) for name in (*MODEL, *WEIGHTS)]
    code = getattr(errno, number)

    def download(*_, **__):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *_, **__: SimpleNamespace(siblings=files))
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    with pytest.raises(SourceError, match=re.escape(f"{tmp_path} ({os.strerror(code)})")):
        find("some-one/a-model")


class Hub(http.server.BaseHTTPRequestHandler):
    """The part of the hub that its client uses: a repository's list of files, and their bytes."""

    repositories: dict  # id -> folder of its files, or the code of an error and its name
    requests: list

    def do_HEAD(self):
        self._answer(body=False)

    def do_GET(self):
        self._answer(body=True)

    def _answer(self, body):
        self.requests.append(f"{self.command} {self.path}")
        if match := re.match(r"/api/models/([^/]+/[^/]+)(/.*)?$", self.path.partition("?")[0]):
            folder = self.repositories.get(match[1], (404, "RepoNotFound"))
            if isinstance(folder, tuple):
                return self._send(folder[0], b"{}", {"X-Error-Code": folder[1], "X-Error-Message": "no"}, body)
            files = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
            tree = [{"type": "file", "path": f, "size": (folder / f).stat().st_size, "oid": SHA} for f in files]
            info = {"id": match[1], "sha": SHA, "siblings": [{"rfilename": f} for f in files], "tags": []}
            answer = tree if "/tree/" in (match[2] or "") else info
            return self._send(200, json.dumps(answer).encode(), {"Content-Type": "application/json"}, body)
        owner, name, _, _, file = self.path.partition("?")[0].removeprefix("/").split("/", 4)
        data = (self.repositories[f"{owner}/{name}"] / file).read_bytes()
        headers = {"X-Repo-Commit": SHA, "ETag": f'"{hashlib.sha256(data).hexdigest()}"'}
        return self._send(200, data, headers, body)

    def _send(self, code, data, headers, body):
        self.send_response(code)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(demo_folder, tmp_path):
    """A local hub with three repositories: a model with unneeded files, a gated one, and a failing one."""
    folder = Path(shutil.copytree(demo_folder, tmp_path / "repository"))
    for name in NEVER:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"never fetched")
    Hub.repositories = {"some-one/a-model": folder, "some-one/gated": (403, "GatedRepo"), "some-one/ill": (500, "")}
    Hub.requests = []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


FETCH = """
import sys
from calotype.errors import SourceError
from calotype.export import prepare
for model in sys.argv[1:]:
    try:
        print(prepare(model, forms=()).fingerprint)
    except SourceError as failed:
        print(failed)
"""


def test_only_needed_files_are_fetched(hub, tmp_path):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_")} | {"HF_HOME": str(tmp_path / "hf")}
    environment |= {"HF_ENDPOINT": hub, "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1"}
    models = ["some-one/a-model", "some-one/gated", "some-one/nobodys", "some-one/ill"]
    command = [sys.executable, "-c", FETCH, *models]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    fetched, gated, nobodys, ill = done.stdout.splitlines()
    assert fetched == prepare("demo", forms=()).fingerprint
    assert "is gated" in gated
    assert "some-one/nobodys" in nobodys
    assert "some-one/ill" in ill
    got = {path.partition("/resolve/")[2].partition("/")[2] for path in Hub.requests if path.startswith("GET")} - {""}
    assert not got & set(NEVER)
    assert {"unet/diffusion_pytorch_model.safetensors", "tokenizer/vocab.json"} <= got
    Hub.requests.clear()  # offline: the hub gets no request
    again = subprocess.run(
        command[:4], env=environment | {"HF_HUB_OFFLINE": "1"}, capture_output=True, text=True, check=False
    )
    assert again.stdout.splitlines() == [fetched], again.stderr
    assert Hub.requests == []


HUB = "https://huggingface.co/a/b"
ADDRESSES = {
    HUB: ("a/b", None, None),
    f"{HUB}/": ("a/b", None, None),
    "huggingface.co/a/b": ("a/b", None, None),
    "http://hf.co/a/b?library=diffusers": ("a/b", None, None),
    f"{HUB}/tree/main": ("a/b", "main", None),
    f"{HUB}/tree/refs%2Fpr%2F7": ("a/b", "refs/pr/7", None),
    f"{HUB}/blob/fp16/model_index.json": ("a/b", "fp16", None),
    f"{HUB}/blob/main/x.safetensors": ("a/b", "main", "x.safetensors"),
    f"{HUB}/resolve/main/c/x.safetensors?download=true": ("a/b", "main", "c/x.safetensors"),
}


@pytest.mark.parametrize("address", [*ADDRESSES, Path(f"{HUB}/tree/main")], ids=str)
def test_an_address_of_the_hub_is_a_name(address, monkeypatch):
    def folder(hub_id, *, offline, revision=None):
        return hub_id, revision, None

    monkeypatch.setattr("calotype.export.sources.hub.from_hub", folder)
    monkeypatch.setattr("calotype.export.sources.hub._file", lambda hub_id, revision, file, _: (hub_id, revision, file))
    assert from_url(str(address), offline=True) == ADDRESSES.get(address, ("a/b", "main", None))


@pytest.mark.parametrize(
    "address",
    [
        *("https://huggingface.co/a", "https://huggingface.co/datasets/a", "https://example.com/x.safetensors"),
        *("https://huggingface.co/spaces/a/b", f"{HUB}/tree/main/unet", f"{HUB}/blob/main/x.ckpt", "ftp://hf.co/a/b"),
        *(f"{HUB}/commits/main", f"{HUB}/resolve/main/x.safetensors", "https://[::1"),
    ],
)
def test_other_addresses_are_refused_without_a_connection(address, no_network, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(SourceError):
        calotype.load(address, offline=True)


def test_an_address_is_read_from_the_cache(demo_folder, tmp_path, monkeypatch, no_network):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    folder = cached(tmp_path, "some-one/a-model", demo_folder)
    for end in ("", "/tree/main", f"/blob/{SHA}/README.md"):
        assert find(f"https://huggingface.co/some-one/a-model{end}", offline=True) == folder

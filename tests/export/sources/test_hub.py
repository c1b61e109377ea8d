"""Models of the hub: what is fetched of them, and that offline no connection is made. The hub is one of ours."""

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
from calotype.export.sources.hub import needed
from calotype.export.sources.source import find

SHA = "0123456789abcdef0123456789abcdef01234567"
MODEL = ["model_index.json", "scheduler/scheduler_config.json", "tokenizer/vocab.json", "tokenizer/merges.txt"]
MODEL += ["text_encoder/config.json", "unet/config.json", "vae/config.json"]
STEMS = {"text_encoder": "model", "unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model"}
WEIGHTS = [f"{folder}/{stem}.safetensors" for folder, stem in STEMS.items()]
NEVER = ["README.md", "v1-5.ckpt", "v1-5.safetensors", "safety_checker/model.safetensors", "safety_checker/config.json"]
NEVER += [f"{folder}/{stem}.bin" for folder, stem in STEMS.items()] + ["unet/diffusion_flax_model.msgpack"]
NEVER += ["feature_extractor/preprocessor_config.json", "unet/diffusion_pytorch_model.non_ema.safetensors"]


def test_only_what_is_read_is_needed():
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
    ("files", "told"),
    [
        (
            [*MODEL, *WEIGHTS[:2], "vae/diffusion_pytorch_model.bin"],
            "holds vae/diffusion_pytorch_model.bin, pickles",
        ),
        ([*MODEL, *WEIGHTS[:2]], "a/b has no vae/diffusion_pytorch_model.safetensors"),
        (["README.md", "dream.safetensors"], r"it holds dream.safetensors. .* \(hf download a/b dream.safetensors\)"),
        (["dream.ckpt"], "a/b holds dream.ckpt, pickles, which can run any code"),
        (["README.md"], "a/b holds no model: .* not among its 1 files"),
    ],
)
def test_repositories_without_a_model_are_told_before_anything_is_fetched(files, told):
    with pytest.raises(SourceError, match=told):
        needed("a/b", files)


def cached(cache: Path, hub_id: str, folder: Path) -> Path:
    """The model in a cache of the hub's layout: names of a revision, and its files."""
    place = cache / f"models--{hub_id.replace('/', '--')}"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text(SHA)
    return Path(shutil.copytree(folder, place / "snapshots" / SHA))


@pytest.fixture
def no_network(monkeypatch):
    """Sockets that raise: nothing may so much as look up a name."""

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
    with pytest.raises(SourceError, match=f"{tmp_path} has no model of that name, and offline nothing is fetched"):
        calotype.load("some-one/another", offline=True)
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()  # fetched in part
    with pytest.raises(SourceError, match=r"diffusion_pytorch_model.safetensors is missing"):
        calotype.load("some-one/a-model", offline=True)


def test_the_environment_says_offline_as_well(demo_folder, tmp_path, monkeypatch, no_network):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    cached(tmp_path, "some-one/a-model", demo_folder)
    assert prepare("some-one/a-model", forms=()).family == "sd1"
    with pytest.raises(SourceError, match="without HF_HUB_OFFLINE"):
        calotype.load("some-one/another")


def test_where_the_hub_cannot_be_asked_the_cache_is_taken_and_that_is_said(
    demo_folder, tmp_path, monkeypatch, no_network, capsys
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(SourceError, match="there is no folder some-one/a-model, and it cannot be had from the hub"):
        prepare("some-one/a-model", forms=())
    cached(tmp_path, "some-one/a-model", demo_folder)
    assert prepare("some-one/a-model", forms=()).family == "sd1"
    assert "the hub cannot be asked" in capsys.readouterr().err


@pytest.mark.parametrize("lost", [WEIGHTS[1], "vae/config.json", "scheduler/scheduler_config.json", None])
def test_where_the_cache_has_a_part_alone_it_is_not_taken(demo_folder, tmp_path, monkeypatch, no_network, lost):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    folder = cached(tmp_path, "some-one/a-model", demo_folder if lost else demo_folder / "vae")
    (folder / (lost or "diffusion_pytorch_model.safetensors")).unlink()
    with pytest.raises(SourceError, match=r"a-model \(the cache has a part of it\), and it cannot be had from the hub"):
        find("some-one/a-model")


@pytest.mark.parametrize("number", ["ENOSPC", "EDQUOT", "EACCES"])
def test_a_disk_that_takes_no_more_is_told_as_such(demo_folder, tmp_path, monkeypatch, no_network, number):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    cached(tmp_path, "some-one/a-model", demo_folder)
    files = [SimpleNamespace(rfilename=name) for name in (*MODEL, *WEIGHTS)]
    code = getattr(errno, number)

    def download(*_, **__):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *_, **__: SimpleNamespace(siblings=files))
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    told = re.escape(f"a-model cannot be kept in the hub's cache {tmp_path} ({os.strerror(code)}); make room")
    with pytest.raises(SourceError, match=told):
        find("some-one/a-model")


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the hub as its client asks for: a repository's files, and their bytes."""

    repositories: dict  # id -> folder of its files, or the code of an error and its name
    asked: list

    def do_HEAD(self):
        self._answer(body=False)

    def do_GET(self):
        self._answer(body=True)

    def _answer(self, body):
        self.asked.append(f"{self.command} {self.path}")
        if told := re.match(r"/api/models/([^/]+/[^/]+)(/.*)?$", self.path.partition("?")[0]):
            found = self.repositories.get(told[1], (404, "RepoNotFound"))
            if isinstance(found, tuple):
                return self._send(found[0], b"{}", {"X-Error-Code": found[1], "X-Error-Message": "no"}, body)
            files = sorted(str(p.relative_to(found)) for p in found.rglob("*") if p.is_file())
            tree = [{"type": "file", "path": f, "size": (found / f).stat().st_size, "oid": SHA} for f in files]
            info = {"id": told[1], "sha": SHA, "siblings": [{"rfilename": f} for f in files], "tags": []}
            answer = tree if "/tree/" in (told[2] or "") else info
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
    """A hub on this machine with a model that has more than is needed, one that is gated, and one of an error."""
    folder = Path(shutil.copytree(demo_folder, tmp_path / "repository"))
    for name in NEVER:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"never fetched")
    Hub.repositories = {"some-one/a-model": folder, "some-one/gated": (403, "GatedRepo"), "some-one/ill": (500, "")}
    Hub.asked = []
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
    except SourceError as told:
        print(told)
"""


def test_what_is_read_is_fetched_and_no_more(hub, tmp_path):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_")} | {"HF_HOME": str(tmp_path / "hf")}
    environment |= {"HF_ENDPOINT": hub, "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1"}
    models = ["some-one/a-model", "some-one/gated", "some-one/nobodys", "some-one/ill"]
    command = [sys.executable, "-c", FETCH, *models]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    fetched, gated, nobodys, ill = done.stdout.splitlines()
    assert fetched == prepare("demo", forms=()).fingerprint
    assert gated == "some-one/gated is gated: ask for access on its page at the hub, then log in with: hf auth login"
    assert "there is no folder some-one/nobodys, and the hub has no model of that name" in nobodys
    assert "it cannot be had from the hub: " in ill
    got = {path.partition("/resolve/")[2].partition("/")[2] for path in Hub.asked if path.startswith("GET")} - {""}
    assert not got & set(NEVER)
    assert {"unet/diffusion_pytorch_model.safetensors", "tokenizer/vocab.json"} <= got
    Hub.asked.clear()  # a second time offline: the hub hears nothing of it
    again = subprocess.run(
        command[:4], env=environment | {"HF_HUB_OFFLINE": "1"}, capture_output=True, text=True, check=False
    )
    assert again.stdout.splitlines() == [fetched], again.stderr
    assert Hub.asked == []

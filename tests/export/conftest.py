"""A store for each test, and tiny models of other families with random weights.

Files that need not differ are the demonstration model's, so that a test session traces them once.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import diffusers
import pytest
import torch
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from tests.helpers.fork_server import ForkedPopen
from tests.helpers.tiny_models import SCHEDULE, save_model, text_config, tiny_unet


@pytest.fixture(scope="session")
def sd21_folder(tmp_path_factory, demo_folder) -> Path:
    """Stable Diffusion 2.1: v-prediction, OpenCLIP's activation and padding, heads by level, linear projections."""
    torch.manual_seed(1)
    tokenizer = CLIPTokenizer.from_pretrained(demo_folder / "tokenizer", pad_token="!")
    parts = {
        "tokenizer": tokenizer,
        "text_encoder": CLIPTextModel(text_config(tokenizer, hidden_size=32)),
        "unet": tiny_unet(cross_attention_dim=32, attention_head_dim=[2, 4], use_linear_projection=True),
        "scheduler": diffusers.DDIMScheduler(
            **SCHEDULE, prediction_type="v_prediction", clip_sample=False, set_alpha_to_one=False
        ),
    }
    return save_model(tmp_path_factory.mktemp("sd21") / "model", demo_folder, "StableDiffusionPipeline", parts)


@pytest.fixture(scope="session")
def sdxl_folder(tmp_path_factory, demo_folder) -> Path:
    """SDXL base: two text encoders of different widths and paddings, and pooled text and sizes as conditions."""
    torch.manual_seed(2)
    second = CLIPTokenizer.from_pretrained(demo_folder / "tokenizer", pad_token="!")
    parts = {
        "tokenizer_2": second,
        "text_encoder_2": CLIPTextModelWithProjection(text_config(second, hidden_size=48, projection_dim=24)),
        "unet": tiny_unet(
            cross_attention_dim=128 + 48,
            attention_head_dim=[2, 4],
            transformer_layers_per_block=[2, 1],
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + 24,
        ),
        "scheduler": diffusers.EulerDiscreteScheduler(**SCHEDULE, timestep_spacing="leading"),
    }
    return save_model(tmp_path_factory.mktemp("sdxl") / "model", demo_folder, "StableDiffusionXLPipeline", parts)


@pytest.fixture(scope="session")
def refiner_folder(tmp_path_factory, sdxl_folder) -> Path:
    """SDXL's refiner: only the second text encoder, and an aesthetic score in place of the target size."""
    torch.manual_seed(8)
    folder = tmp_path_factory.mktemp("refiner") / "model"
    skipped = shutil.ignore_patterns("unet", "text_encoder*", "tokenizer")
    shutil.copytree(sdxl_folder, folder, ignore=skipped)
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer_2")
    encoder = CLIPTextModelWithProjection(text_config(tokenizer, hidden_size=48, projection_dim=24))
    encoder.save_pretrained(folder / "text_encoder_2")
    unet = tiny_unet(
        cross_attention_dim=48,
        attention_head_dim=[2, 4],
        transformer_layers_per_block=[2, 1],
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=5 * 8 + 24,
    )
    unet.save_pretrained(folder / "unet")
    index = json.loads((folder / "model_index.json").read_text())
    index |= {"_class_name": "StableDiffusionXLImg2ImgPipeline", "force_zeros_for_empty_prompt": False}
    index |= {"requires_aesthetics_score": True, "text_encoder": [None, None], "tokenizer": [None, None]}
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


@pytest.fixture(scope="session")
def inpainting_folder(tmp_path_factory, demo_folder) -> Path:
    """Stable Diffusion 1.5's inpainting model: a U-Net with nine channels (latents, mask, masked image)."""
    torch.manual_seed(3)
    unet = tiny_unet(cross_attention_dim=128, in_channels=9)
    folder = tmp_path_factory.mktemp("inpainting") / "model"
    return save_model(folder, demo_folder, "StableDiffusionInpaintPipeline", {"unet": unet})


@pytest.fixture(scope="session")
def lcm_folder(tmp_path_factory, demo_folder) -> Path:
    """A latent consistency model: a U-Net with a guidance embedding, and the LCM scheduler."""
    torch.manual_seed(4)
    folder = tmp_path_factory.mktemp("lcm") / "model"
    shutil.copytree(demo_folder, folder, ignore=shutil.ignore_patterns("unet", "scheduler"))
    tiny_unet(cross_attention_dim=128, time_cond_proj_dim=16).save_pretrained(folder / "unet")
    config = diffusers.DDIMScheduler.load_config(demo_folder / "scheduler")
    scheduler = diffusers.LCMScheduler.from_config(config, clip_sample=False, timestep_spacing="leading")
    scheduler.save_pretrained(folder / "scheduler")
    index = json.loads((folder / "model_index.json").read_text()) | {"_class_name": "LatentConsistencyModelPipeline"}
    index["scheduler"] = ["diffusers", "LCMScheduler"]
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


PRELUDE = """
import os, signal, sys, time
from pathlib import Path
from calotype.errors import CalotypeError
from calotype.export.store.store import ENTRY, STORE, fetch
from calotype.export.store.gc import gc, remove

entries = STORE.entries
HOME = Path(os.environ["CALOTYPE_HOME"])

def maker(folder):  # two files, one in a folder; the content depends on the key
    (folder / "deep").mkdir()
    (folder / "model.onnx").write_bytes(folder.name.removeprefix(".making-").encode() * 1000)
    (folder / "deep" / "w.bin").write_bytes(bytes(2000))
    return {"figure": 1}

def put(key, make=maker):
    return fetch(key, make, label={"component": "unet", "precision": "fp16", "model": key})[0]

def right(folder):
    matches = (folder / "model.onnx").read_bytes() == folder.name.encode() * 1000
    return matches and (folder / "deep" / "w.bin").read_bytes() == bytes(2000)

def emit(word):
    print(word, flush=True)

def wait_for(path, seconds=60):
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"{path} did not come"
        time.sleep(0.005)
"""


class Store:
    """A store's folders, and child processes that run `PRELUDE` and more Python code."""

    def __init__(self, home: Path):
        self.home, self.root, self.started = home, home / "store", []

    def start(self, code: str, **popen) -> subprocess.Popen:
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE) | popen
        self.started.append(ForkedPopen([sys.executable, "-c", PRELUDE + code], text=True, **pipes))
        return self.started[-1]

    def run(self, code: str) -> str:
        done = self.start(code)
        out, err = done.communicate(timeout=120)
        assert done.returncode == 0, err
        return out

    def names(self) -> list[str]:
        return sorted(path.name for path in self.root.iterdir())

    def put(self, *keys: str) -> None:
        self.run(f"for key in {keys!r}:\n    put(key)\n    time.sleep(0.01)")


@pytest.fixture
def store_at(monkeypatch):
    """A function that returns the store of a folder, and ends its processes after the test."""
    stores = []

    def at(home: Path) -> Store:
        monkeypatch.setenv("CALOTYPE_HOME", str(home))
        stores.append(Store(home))
        return stores[-1]

    yield at
    for process in [process for store in stores for process in store.started]:
        process.kill()
        with process:  # closes its pipes and waits
            pass


@pytest.fixture
def store(store_at, tmp_path) -> Store:
    return store_at(tmp_path / "home")


@pytest.fixture
def disk(tmp_path):
    """A folder that is a disk of a megabyte; skipped if this user may not mount."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m,mode=755", "tmpfs", folder]
    if os.getuid() or not shutil.which("mount") or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this user may not mount a file system")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)  # this process may still use entries of it

"""Stores of a test's own; and models of other families than the demonstration's, tiny and of random weights.

What need not differ is the demonstration model's, file by file, so that a test session traces it once.
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
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from tests.helpers import original_layout

SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}


def text_config(tokenizer, **settings) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        hidden_act="gelu",
        eos_token_id=tokenizer.eos_token_id,
        **settings,
    )


def tiny_unet(**settings) -> diffusers.UNet2DConditionModel:
    return diffusers.UNet2DConditionModel(
        sample_size=16,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(32, 64),
        layers_per_block=1,
        **settings,
    )


def made_controlnet(unet_folder: Path, folder: Path, seed: int) -> Path:
    """A ControlNet whose zero convolutions are not zero: else it would add nothing, and all would agree."""
    torch.manual_seed(seed)
    unet = diffusers.UNet2DConditionModel.from_pretrained(unet_folder, low_cpu_mem_usage=False)
    net = diffusers.ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(8, 8, 8, 16))
    for weight in net.parameters():
        if not weight.detach().any():
            torch.nn.init.normal_(weight, std=0.2)
    net.save_pretrained(folder)
    return folder


def assembled(folder: Path, demo_folder: Path, kind: str, parts: dict) -> Path:
    """A model's folder: `parts` by name, and the rest of the demonstration's."""
    libraries = {"tokenizer": "transformers", "text_encoder": "transformers", "unet": "diffusers"}
    for name in ("tokenizer", "text_encoder", "vae", "scheduler"):
        if name not in parts:
            shutil.copytree(demo_folder / name, folder / name)
    index = json.loads((demo_folder / "model_index.json").read_text()) | {"_class_name": kind}
    for name, part in parts.items():
        part.save_pretrained(folder / name)
        index[name] = [libraries.get(name.removesuffix("_2"), "diffusers"), type(part).__name__]
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


RANK = 3
# Attention and more of the U-Net; of a text encoder what kohya trains, all of it: diffusers knows it by that.
TRAINED = ("to_q", "to_k", "to_out.0", "ff.net.0.proj", "conv1", "proj_in")
TRAINED += ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
IN_KOHYAS = {"unet": "lora_unet", "text_encoder": "lora_te1", "text_encoder_2": "lora_te2"}


def trained_layers(folder: Path) -> dict[str, tuple[int, ...]]:
    """Layer -> the shape of its weight, of those that a LoRA of ours changes."""
    shapes = {n: tuple(t.shape) for n, t in load_file(next(folder.glob("*.safetensors"))).items()}
    return {n.removesuffix(".weight"): s for n, s in shapes.items() if n.removesuffix(".weight").endswith(TRAINED)}


def lora_tensors(layout: str, component: str, layer: str, down: torch.Tensor, up: torch.Tensor) -> dict:
    """One layer's pair in one of the layouts."""
    if layout == "diffusers":
        stem, named = f"{component}.{layer}", ("lora_A", "lora_B")
    elif layout == "older":
        stem, named = f"{component}.{layer}", ("lora.down", "lora.up")
        if component != "unet":
            named = ("lora_linear_layer.down", "lora_linear_layer.up")
    else:  # kohya's are the names of older transformers, whose text models lay one level deeper
        deeper = "text_model." if component == "text_encoder" and not layer.startswith("text_model.") else ""
        stem, named = f"{IN_KOHYAS[component]}_{(deeper + layer).replace('.', '_')}", ("lora_down", "lora_up")
    pair = {f"{stem}.{named[0]}.weight": down, f"{stem}.{named[1]}.weight": up}
    return pair | ({f"{stem}.alpha": torch.tensor(2.0)} if layout == "kohya" else {})


def made_lora(folder: Path, path: Path, components=("unet",), layout="diffusers", seed=0, strength=0.3) -> Path:
    """A LoRA file of random numbers for a model; kohya's with an alpha, which scales by alpha / rank."""
    generator, tensors = torch.Generator().manual_seed(seed), {}
    for component in components:
        for layer, (out, into, *kernel) in trained_layers(folder / component).items():
            down = torch.randn(RANK, into, *kernel, generator=generator) / into**0.5
            up = torch.randn(out, RANK, *(1 for _ in kernel), generator=generator) * strength
            tensors |= lora_tensors(layout, component, layer, down, up)
    save_file(tensors, path)
    return path


@pytest.fixture(scope="session")
def lora_file():
    """`made_lora`, for tests that want one."""
    return made_lora


@pytest.fixture(scope="session")
def made():
    """`made_controlnet`, for tests that want one."""
    return made_controlnet


@pytest.fixture(scope="session")
def layout():
    """`original_layout`, for tests that want it."""
    return original_layout


@pytest.fixture(scope="session")
def text():
    """`text_config`, for tests that want one."""
    return text_config


@pytest.fixture(scope="session")
def tiny():
    """`tiny_unet`, for tests that want one."""
    return tiny_unet


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
    return assembled(tmp_path_factory.mktemp("sd21") / "model", demo_folder, "StableDiffusionPipeline", parts)


@pytest.fixture(scope="session")
def sdxl_folder(tmp_path_factory, demo_folder) -> Path:
    """SDXL base: two text encoders of different widths and paddings, pooled text and sizes beside the timestep."""
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
    return assembled(tmp_path_factory.mktemp("sdxl") / "model", demo_folder, "StableDiffusionXLPipeline", parts)


@pytest.fixture(scope="session")
def refiner_folder(tmp_path_factory, sdxl_folder) -> Path:
    """SDXL's refiner: the second text encoder alone, and an aesthetic score in place of the size wanted."""
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
    """Stable Diffusion 1.5's inpainting model: a U-Net of nine channels, latents, mask, and masked picture."""
    torch.manual_seed(3)
    unet = tiny_unet(cross_attention_dim=128, in_channels=9)
    folder = tmp_path_factory.mktemp("inpainting") / "model"
    return assembled(folder, demo_folder, "StableDiffusionInpaintPipeline", {"unet": unet})


@pytest.fixture(scope="session")
def lcm_folder(tmp_path_factory, demo_folder) -> Path:
    """A latent consistency model: it is told its guidance, and has a scheduler of its own."""
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

def maker(folder):  # two files, one in a folder, that say which key they are of
    (folder / "deep").mkdir()
    (folder / "model.onnx").write_bytes(folder.name.removeprefix(".making-").encode() * 1000)
    (folder / "deep" / "w.bin").write_bytes(bytes(2000))
    return {"figure": 1}

def put(key, make=maker):
    return fetch(key, make, label={"component": "unet", "precision": "fp16", "model": key})[0]

def right(folder):
    told = (folder / "model.onnx").read_bytes() == folder.name.encode() * 1000
    return told and (folder / "deep" / "w.bin").read_bytes() == bytes(2000)

def say(word):
    print(word, flush=True)

def wait_for(path, seconds=60):
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"{path} did not come"
        time.sleep(0.005)
"""


class Store:
    """The store's home, and Python that runs beside us with `PRELUDE` before it."""

    def __init__(self, home: Path):
        self.home, self.root, self.started = home, home / "store", []

    def start(self, code: str, **popen) -> subprocess.Popen:
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE) | popen
        self.started.append(subprocess.Popen([sys.executable, "-c", PRELUDE + code], text=True, **pipes))
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
    """A store in a folder of the test's choice."""
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
    """A disk of a megabyte, as a folder, and a function that remounts it; skipped where this user may not mount."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(*options: str) -> bool:
        command = ["mount", "-t", "tmpfs", *options, "tmpfs", folder]
        try:
            return subprocess.run(command, capture_output=True, check=False).returncode == 0
        except OSError:
            return False

    if os.getuid() or not mount("-o", "size=1m,mode=755"):
        pytest.skip("this user may not mount a file system")
    yield folder, mount
    subprocess.run(["umount", "--lazy", folder], check=True)  # this process may still use what it was handed

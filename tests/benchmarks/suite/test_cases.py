"""Tests of cases and contenders as data: presets, words, names."""

from dataclasses import replace

import pytest

from calotype import InputError
from calotype.backends.openvino.rewrites import PIECES
from calotype.benchmarks.suite.cases import Case, case_from, chosen, prompts_of
from calotype.benchmarks.suite.contenders import PEERS, contender, contenders
from calotype.benchmarks.suite.presets import PRESETS, usual
from calotype.export.judge.judge import parse
from calotype.export.judge.scenes import caption
from calotype.text.tokenizer import ClipTokenizer


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_name_each_row_once(preset):
    rows = [(case.id, c.name) for case in PRESETS[preset] for c in case.contenders]
    assert rows
    assert len(rows) == len(set(rows))


def test_every_peer_is_in_a_preset():
    named = {c.maker for case in PRESETS["full"] for c in case.contenders}
    assert set(PEERS) <= named


def test_a_case_is_parsed_from_words():
    case = case_from("model=sd15 size=512 steps=4 guidance=1 sampler=ddim backend=openvino,diffusers precision=bf16")
    assert (case.model, case.height, case.width, case.steps, case.guided) == ("sd15", 512, 512, 4, False)
    assert [c.name for c in case.contenders] == ["calotype:openvino:bf16", "diffusers:bf16"]


def test_a_case_without_contenders_gets_the_defaults():
    assert {c.maker for c in usual(Case())} > {"calotype", "diffusers"}
    assert "calotype:openvino:auto" not in {c.name for c in usual(Case(model="sd15"))}  # nothing to calibrate on
    assert {c.backend for c in usual(Case(device="cuda"))} > {"cuda", "tensorrt"}


@pytest.mark.parametrize(
    ("words", "keyword"),
    [
        ("steps=four", "four"),
        ("step=4", "step=4"),
        ("steps=0", "steps"),
        ("task=animation", "animation"),
        ("device=tpu", "tpu"),
        ("guidance=nan", "nan"),
        ("sampler=foo", "foo"),
        ('model="x', "No closing quotation"),
        ("model=", "model"),
        ("rounds=3", "6 rounds"),
        ("precision=bf16", "backend="),
        ("backend=openvin", "openvino"),
        ("backend=diffusers precision=int3", "diffusers:int3"),
    ],
)
def test_a_wrong_case_is_refused(words, keyword):
    with pytest.raises(InputError, match=keyword):
        case_from(words)


def test_backend_and_filter_choose_rows():
    (case,) = chosen(PRESETS["quick"], ("openvino", "diffusers:fp32"), "")
    assert [c.name for c in case.contenders] == [
        *(f"calotype:openvino:{p}" for p in ("fp32", "bf16", "auto")),
        "diffusers:fp32",
    ]
    (case,) = chosen(PRESETS["quick"], (), "bf16")
    assert {c.precision for c in case.contenders} == {"bf16"}
    with pytest.raises(InputError, match="nobody"):
        chosen(PRESETS["quick"], (), "nobody")


def test_a_contender_with_two_names_runs_once():
    (case,) = chosen((Case(),), ("diffusers", "diffusers:fp32"), "")
    assert len(case.contenders) == len({c.name for c in case.contenders}) == 3


def test_two_cases_of_the_same_work_are_refused():
    with pytest.raises(InputError, match="same work"):
        chosen((Case(), Case(prompts=8)), ("eager",), "")


def test_models_of_one_name_have_different_ids():
    one, other = (Case(model=f"{place}/model") for place in ("a", "b"))
    assert one.id != other.id
    assert one.id.startswith("model-")


def test_a_contender_has_the_name_that_it_is_parsed_from():
    for name in ("calotype:openvino:bf16", "torch-compile:bf16", "stable-diffusion.cpp:fp16"):
        assert contender(name).name == name
    assert contenders("torch-compile")[0].settings == {"compile": True}
    with pytest.raises(InputError, match="calotype:openvino:bf16"):
        contender("calotype:openvin:bf16")


@pytest.mark.parametrize(
    ("variant", "settings"),
    [
        (f"without={PIECES[0]}", {"without": [PIECES[0]]}),
        (f"without={PIECES[0]}+{PIECES[-1]}", {"without": [PIECES[0], PIECES[-1]]}),
        ("without=all", {"without": list(PIECES)}),
        ("cache_interval=3", {"arguments": {"cache_interval": 3}}),
        ("calls=10", {"arguments": {"calls": 10}}),
        ("guidance_interval=0.2-0.8", {"arguments": {"guidance_interval": [0.2, 0.8]}}),
    ],
)
def test_a_variant_changes_the_settings_of_the_worker(variant, settings):
    result = contender(f"calotype:openvino:bf16:{variant}")
    assert (result.name, result.settings) == (f"calotype:openvino:bf16:{variant}", settings)


@pytest.mark.parametrize(
    "variant", ["without=luck", "cache_interval=x", "calls=x", "guidance_interval=0.2", "steps=3", "without="]
)
def test_an_unknown_variant_is_refused(variant):
    with pytest.raises(InputError, match="variant"):
        contender(f"calotype:openvino:bf16:{variant}")


def test_the_judge_can_read_the_prompts_of_the_demonstration_model():
    prompts = prompts_of(Case(prompts=6))
    assert len(set(prompts)) == 6
    for words in prompts:
        assert caption(parse(words)) == words


def test_prompts_of_other_models_are_letters_with_one_token_each(demo_folder):
    prompts = prompts_of(Case(model="sd15", prompts=8))
    assert len(set(prompts)) == 8
    ids = ClipTokenizer(demo_folder / "tokenizer", 77)(prompts).ids
    counted = [len(words.split()) + 2 for words in prompts]  # a token for each letter, a start and an end
    end = ids[0].max()
    assert [int((row == end).argmax()) + 1 for row in ids] == counted


def test_the_same_work_has_the_same_name():
    case = Case()
    assert case.id == replace(case, rounds=30, prompts=8, budget_s=1).id
    others = [replace(case, **{n: v}) for n, v in (("batch", 2), ("steps", 4), ("guidance", 1.0), ("width", 256))]
    others += [replace(case, controlnets=("random",)), replace(case, device="cuda"), replace(case, sampler="ddim")]
    assert len({case.id, *(other.id for other in others)}) == len(others) + 1

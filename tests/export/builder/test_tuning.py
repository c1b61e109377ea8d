"""The search for the fastest precisions inside the bounds, on simulated networks; and one real build in int8."""

from dataclasses import replace
from pathlib import Path

import pytest

import calotype
from calotype.errors import BuildError
from calotype.export import BuildSpec, build
from calotype.export.builder.spec import PRECISIONS
from calotype.export.builder.tuning import PlanEvaluator, Tuning
from calotype.export.onnx.capture import ImageSet
from calotype.export.precision.variants import Calibration, Group, check_precision, form_for, not_tried, tuned_as
from calotype.export.quality.bounds import parse_bounds
from calotype.export.steps.progress import Display, Progress, Stage
from calotype.export.store.store import STORE
from calotype.plan.plan import Artifact, read_plan
from tests.helpers.backends import change_backend
from tests.helpers.small_builds import small_spec

GROUPS = [Group(name=f"g{i}", nodes=(f"n{i}",), loss=8.0 - i) for i in range(8)]  # the most sensitive first
CALIBRATION = Calibration(ranges=Path("ranges.json"), groups=GROUPS)


class World:
    """Simulated error and speed of each artifact: PSNR starts at 50 dB and falls by `cost` for every group in int8."""

    def __init__(
        self,
        monkeypatch,
        plan,
        *,
        cost=4.0,
        speeds=None,
        together=0.0,
        bound="psnr>=30",
        backend="openvino",
        precision="fp32",
    ):
        self.cost, self.together = cost, together
        self.speeds = {"bf16": 1.5, "int8": 2.0, "int8+bf16": 2.5, **(speeds or {})}
        self.notes = []
        home = "calotype.export.builder.tuning"
        monkeypatch.setattr(f"{home}.calibrated", lambda *_: CALIBRATION)
        monkeypatch.setattr(f"{home}.half", lambda part, precision, _: artifact(precision))
        monkeypatch.setattr(f"{home}.quantized", lambda part, ranges, keep, *_: artifact("int8", len(keep)))
        monkeypatch.setattr(Tuning, "_speed", lambda _, plan, name: self.speed(plan.components[name].artifacts[0]))
        monkeypatch.setattr(PlanEvaluator, "evaluate", lambda _, plan, **__: self.evaluate(plan))
        spec = BuildSpec(
            model="demo", output=Path("p"), backend=backend, precision=precision, max_loss=parse_bounds([bound])
        )
        images = ImageSet(prompts=(), steps=1, height=8, width=8)
        evaluator = PlanEvaluator(spec=spec, images=images, reference=Path("r"))
        names = ("unet", "vae_decoder", "text_encoder")
        stages = [Stage(name=f"tune {n}", guess_s=1) for n in (*names, "together")]
        display = Display()
        display.show = lambda state: self.notes.append(state.text)
        progress = Progress(stages, display)
        self.tuning = Tuning(plan, dict.fromkeys(plan.components, Path("x.npz")), evaluator, progress)

    def speed(self, artifact):
        return self.speeds[artifact.precision] - 0.1 * artifact.check.get("kept", 0)

    def evaluate(self, plan):
        low = {n: c.artifacts[0] for n, c in plan.components.items() if c.artifacts[0].precision != "fp32"}
        psnr = 50.0 - self.together * (len(low) > 1) * len(low)
        for lowered in low.values():
            psnr -= self.cost * (8 - lowered.check["kept"]) if "kept" in lowered.check else 2.0
        return {"psnr": psnr}


def artifact(precision, kept=None):
    check = {} if kept is None else {"kept": kept}
    return Artifact(form="onnx", path=Path(f"{precision}-{kept}.onnx"), precision=precision, check=check)


@pytest.fixture
def plan(saved_plan):
    return read_plan(saved_plan)


def chosen(plan):
    return {n: c.artifacts[0].precision for n, c in plan.components.items() if c.artifacts[0].precision != "fp32"}


def test_the_smallest_number_of_groups_stays_in_float32(monkeypatch, plan):
    world = World(monkeypatch, plan)
    world.tuning.run(("int8",))
    trials = [row for row in world.tuning.table if (row.component, row.precision) == ("unet", "int8")]
    # Each of eight groups costs 4 dB, and the bound allows 20.
    assert [(row.kept, row.passed) for row in trials] == [(0, False), (4, True), (2, False), (3, True)]
    assert [row.kept for row in trials if row.chosen] == [3]
    assert trials[0].speed is None  # a trial that misses the bounds is not timed
    assert "psnr is 18" in trials[0].why


def test_the_fastest_that_passes_is_chosen(monkeypatch, plan):
    world = World(monkeypatch, plan, cost=0.5)
    best = world.tuning.run(("bf16", "int8", "int8+bf16"))
    assert chosen(best) == dict.fromkeys(("unet", "vae_decoder", "text_encoder"), "int8+bf16")
    assert best.components["unet"].artifacts[1].precision == "fp32"  # to fall back to
    world = World(monkeypatch, plan, cost=20)
    assert set(chosen(world.tuning.run(("bf16", "int8"))).values()) == {"bf16"}
    assert sum(row.component == "unet" and row.precision == "int8" for row in world.tuning.table) >= 3


def test_the_component_that_gains_least_is_dropped_until_they_pass_together(monkeypatch, plan):
    world = World(monkeypatch, plan, cost=0.5, together=8.0)
    best = world.tuning.run(("bf16",))
    assert chosen(best).keys() == {"unet", "text_encoder"}  # of two with equal gain, the first is dropped
    assert any("stays in float32" in note for note in world.notes)
    rows = [row for row in world.tuning.table if row.precision == "chosen mix"]
    assert [row.passed for row in rows] == [False, True]


def test_nothing_is_chosen_if_nothing_passes_or_is_faster(monkeypatch, plan):
    world = World(monkeypatch, plan, bound="psnr>=60")
    assert chosen(world.tuning.run(("bf16", "int8"))) == {}
    assert not any(row.chosen for row in world.tuning.table)
    world = World(monkeypatch, plan, speeds={"bf16": 1.01})
    assert chosen(world.tuning.run(("bf16",))) == {}
    assert any(row.passed and not row.chosen for row in world.tuning.table)


def test_the_table_lists_what_was_not_tried_and_why(monkeypatch, plan):
    for backend in ("onnxruntime", "openvino"):
        reasons = not_tried(backend)
        assert {*(p.split("+")[0] for p in tuned_as("auto", backend)), *reasons} == {*PRECISIONS} - {"fp32", "auto"}
        world = World(monkeypatch, plan, backend=backend, precision="auto")
        world.tuning.run()
        rows = [row for row in world.tuning.table if row.component == "all"]
        assert {row.precision: row.why for row in rows} == {p: f"not tried: {why}" for p, why in reasons.items()}
        tried = {row.precision for row in world.tuning.table if row.component == "unet"} - {"chosen mix"}
        assert tried == {*tuned_as("auto", backend)}
    with pytest.raises(BuildError, match="bf16"):
        check_precision("onnxruntime", "bf16")
    with pytest.raises(BuildError, match="fp8"):
        check_precision("openvino", "fp8")
    assert (form_for("int8", "onnxruntime"), form_for("int8", "openvino")) == ("uint8", "int8")


def test_precisions_that_this_machine_cannot_compute_in_are_not_tried(monkeypatch):
    change_backend(monkeypatch, "openvino", unsupported=lambda precision: "no" if "bf16" in precision else None)
    assert tuned_as("auto", "openvino") == ("int8",)
    assert not_tried("openvino")["bf16"] == "no"
    with pytest.raises(BuildError) as raised:
        check_precision("openvino", "bf16")
    assert raised.value.data == {"backend": "openvino", "hint": "--precision auto"}
    change_backend(monkeypatch, "openvino", unsupported=lambda precision: None)
    check_precision("openvino", "bf16")
    assert "bf16" in tuned_as("auto", "openvino")


def test_a_real_build_in_int8_passes_its_bounds_and_lists_its_trials(saved_plan, tmp_path):
    bounds = parse_bounds(["psnr>=25,judge-drop<=0.5"])
    more = {"calibration": 1, "proof": 1, "proof_steps": 4, "fallback": True}
    spec = small_spec("onnxruntime", tmp_path / "plan", precision="int8", max_loss=bounds, **more)
    plan = build(spec).plan
    proof, table = plan.build["proof"], plan.build["table"]
    assert proof["psnr"] >= 25
    assert "judge" in proof
    trials = [row for row in table if row["component"] in ("unet", "vae_decoder")]
    assert {row["component"] for row in trials if row["passed"]} == {"unet", "vae_decoder"}
    assert all(row["speed"] > 0 for row in trials if row["passed"] and row["precision"] == "int8")
    for component in plan.components.values():
        assert component.artifacts[-1].precision == "fp32"
    result = calotype.load(tmp_path / "plan")("a red ring on a white background", steps=2, seed=1)
    used = {c.name: c.precision for c in result.report.components}
    assert {n for n, p in used.items() if p == "int8"} == {r["component"] for r in table if r["chosen"]}
    cached = calotype.load("demo", backend="onnxruntime", precision="int8").component("unet")
    assert cached.artifact.path.parent.parent == STORE.root
    assert cached.runner.precision == plan.components["unet"].artifacts[0].precision
    assert replace(plan, model="") == replace(read_plan(tmp_path / "plan"), model="")

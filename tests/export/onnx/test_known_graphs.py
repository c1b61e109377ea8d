"""Graphs that come with Calotype: those of the demonstration model are there, are its traces, and replace them."""

from types import SimpleNamespace
from zipfile import ZipFile

import onnx
import pytest

from calotype.export.onnx import known_graphs, trace_step
from calotype.export.onnx.known_graphs import known_graph, pack
from calotype.export.onnx.trace_step import known_key
from calotype.export.sources.source import read_source
from calotype.plan.family import family_of


@pytest.fixture(scope="module")
def demo():
    source = read_source("demo")
    return SimpleNamespace(source=source, family=family_of(source.configs))


def test_every_network_of_the_demonstration_model_has_a_graph(demo):
    missing = [n for n, c in demo.family.components.items() if not known_graphs.archive_of(known_key(c)).exists()]
    assert not missing, "run `make graphs` after a change of TRACER"


def test_archives_hold_graphs_without_weights_and_no_others():
    archives = sorted(known_graphs.FOLDER.glob("*"))
    assert archives
    for path in archives:
        with ZipFile(path) as archive:
            assert set(archive.namelist()) == {known_graphs.MODEL, known_graphs.WEIGHTS}
            graph = onnx.load_from_string(archive.read(known_graphs.MODEL))
        assert path.stat().st_size < 200_000
        assert max(len(tensor.raw_data) for tensor in graph.graph.initializer) < 100_000


@pytest.mark.slow
@pytest.mark.parametrize("name", ["text_encoder", "unet"])
def test_a_known_graph_is_that_of_a_trace(name, demo, tmp_path, monkeypatch):
    """The graph is used instead of a trace, and has its bytes."""
    traced = []
    run = trace_step.run_in_subprocess

    def counted(task, function, *args, **arguments):
        outcome = run(task, function, *args, **arguments)
        if "trace_component" in function:
            traced.append(outcome.value)  # whether a template was filled
        return outcome

    monkeypatch.setattr(trace_step, "run_in_subprocess", counted)
    component, files = demo.family.components[name], []
    for folder in (known_graphs.FOLDER, tmp_path / "none"):
        monkeypatch.setattr(known_graphs, "FOLDER", folder)
        monkeypatch.setenv("CALOTYPE_HOME", str(tmp_path / folder.name))
        artifact = trace_step.traced(component, demo.source, demo.family.profile)
        files.append([artifact.path.read_bytes(), (artifact.path.parent / "model.onnx.data").read_bytes()])
    assert traced == [True, False]
    assert files[0] == files[1]


@pytest.mark.parametrize("damage", ["missing", "empty", "no archive", "other bytes"])
def test_a_damaged_archive_is_not_used(damage, demo, tmp_path, monkeypatch):
    content = bytearray(known_graphs.archive_of(known_key(demo.family.components["unet"])).read_bytes())
    content[len(content) // 3 : len(content) // 2] = b"x" * (len(content) // 2 - len(content) // 3)
    monkeypatch.setattr(known_graphs, "FOLDER", tmp_path)
    path = known_graphs.archive_of({"a": 1})
    if damage != "missing":
        path.write_bytes({"empty": b"", "no archive": b"PK not really", "other bytes": content}[damage])
    with known_graph({"a": 1}) as folder:
        assert folder is None


def test_packing_twice_gives_the_same_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(known_graphs, "FOLDER", tmp_path / "graphs")
    template = tmp_path / "template"
    template.mkdir()
    (template / known_graphs.MODEL).write_bytes(b"graph")
    (template / known_graphs.WEIGHTS).write_text("{}")
    path = known_graphs.archive_of({"a": 1})
    pack(template, path)
    first = path.read_bytes()
    (template / "entry.json").write_text("of the store")
    pack(template, path)
    assert path.read_bytes() == first
    with known_graph({"a": 1}) as folder:
        assert (folder / known_graphs.MODEL).read_bytes() == b"graph"
    assert not folder.exists()

"""A plan opens only regular files of its own folder that are listed and verified."""

import os
import shutil

import onnx
import pytest

import calotype
from calotype.errors import SourceError
from calotype.files.digest import file_digest
from calotype.plan.plan import read_plan
from calotype.weights.onnx import external_files


def refused(editable, word):
    folder = editable.seal()
    with pytest.raises(SourceError, match=word) as caught:
        calotype.load(folder)
    assert "calotype build" in str(caught.value)


@pytest.fixture
def outside(editable):
    """A copy of the plan outside of its folder."""
    return shutil.copytree(editable.folder, editable.folder.parent / "outside", copy_function=os.link)


def set_path(editable, which, path):
    if which == "artifact":
        editable.data["components"]["unet"]["artifacts"][0]["path"] = path
    elif which == "tokenizer":
        editable.data["tokenizers"]["text_encoder"] = path
    else:
        editable.data["samplers"] = path


INSIDE = {"artifact": "unet/model.onnx", "tokenizer": "tokenizer", "samplers": "samplers"}


@pytest.mark.parametrize("which", INSIDE)
@pytest.mark.parametrize("how", ["../outside/{}", "{root}/outside/{}", "./{}", "a/../{}", "{}/", "", ".", "~/x", "\0"])
def test_paths_out_of_the_folder_are_refused(which, how, editable, outside):
    set_path(editable, which, how.format(INSIDE[which], root=editable.folder.parent))
    refused(editable, which if which == "samplers" else "tokenizers" if which == "tokenizer" else "components.unet")


@pytest.mark.parametrize("name", ["unet", "tokenizer", "samplers"])
def test_a_folder_that_is_a_link_is_refused(name, editable, outside):
    shutil.rmtree(editable.folder / name)
    (editable.folder / name).symlink_to(outside / name)
    refused(editable, "link")


@pytest.mark.parametrize("name", ["unet/model.onnx", "unet/model.onnx.data", "tokenizer/vocab.json"])
def test_a_file_that_is_a_link_or_a_pipe_is_refused(name, editable, outside):
    (editable.folder / name).unlink()
    (editable.folder / name).symlink_to(outside / name)
    refused(editable, "regular")
    (editable.folder / name).unlink()
    os.mkfifo(editable.folder / name)
    refused(editable, "regular")


def test_every_opened_file_is_listed(editable):
    files = editable.data["files"]
    editable.data["files"] = {}
    refused(editable, "files is empty")
    for name in ("unet/model.onnx", "unet/model.onnx.data", "tokenizer/vocab.json", "samplers/index.json"):
        editable.data["files"] = {n: stamp for n, stamp in files.items() if n != name}
        refused(editable, name)


@pytest.mark.parametrize("name", ["unet/other.onnx", "tokenizer/added_tokens.json", "samplers/more.npz"])
def test_an_unlisted_file_next_to_listed_ones_is_refused(name, editable):
    (editable.folder / name).write_text("{}")
    refused(editable, name)


def test_other_files_of_the_folder_are_ignored(editable):
    (editable.folder / "README").write_text("mine")
    (editable.folder / "unet" / ".DS_Store").write_text("a file manager's")
    read_plan(editable.seal())


def test_the_folder_itself_may_be_reached_through_a_link(editable):
    link = editable.folder.parent / "link"
    link.symlink_to(editable.seal())
    read_plan(link)


@pytest.mark.parametrize(
    "name", ["../outside.bin", "{root}/outside.bin", "../unet/model.onnx.data", "x.data", "*/_ORT_MEM_ADDR_/*"]
)
@pytest.mark.parametrize("place", ["initializer", "attribute", "function"])
def test_external_data_must_be_in_the_same_folder_and_listed(name, place, editable):
    (editable.folder.parent / "outside.bin").write_bytes(b"\0" * 64)
    graph = graph_with(name.format(root=editable.folder.parent), place)
    editable.put("vae_encoder/model.onnx", graph)
    refused(editable, "vae_encoder/model.onnx, which reads")


def graph_with(location, place, count=16):
    """An ONNX model whose only tensor is read from a file."""
    tensor = onnx.TensorProto(name="w", data_type=1, dims=[count], data_location=1)
    tensor.external_data.add(key="offset", value="0")
    tensor.external_data.add(key="location", value=location)
    constant = onnx.helper.make_node("Constant", [], ["w"], value=tensor)
    inner = onnx.helper.make_graph([constant], "inner", [], [onnx.helper.make_tensor_value_info("w", 1, [count])])
    model = onnx.helper.make_model(onnx.helper.make_graph([], "graph", [], []))
    if place == "initializer":
        model.graph.initializer.append(tensor)
    elif place == "attribute":
        model.graph.node.append(onnx.helper.make_node("If", ["c"], ["w"], then_branch=inner, else_branch=inner))
    else:
        model.functions.append(onnx.helper.make_function("d", "f", [], ["w"], [constant], []))
    return model.SerializeToString()


def test_names_are_read_in_any_encoding(tmp_path):
    path = tmp_path / "model.onnx"
    # An entry with its value before its key, and one whose key is repeated: the last one counts.
    swapped = b"\x12\x06../bad\x0a\x08location"
    repeated = b"\x0a\x06offset\x0a\x08location\x12\x04good\x12\x06../bad"
    for entry in (swapped, repeated):
        tensor = b"\x6a" + bytes([len(entry)]) + entry
        graph = b"\x2a" + bytes([len(tensor)]) + tensor
        path.write_bytes(b"\x3a" + bytes([len(graph)]) + graph)
        assert external_files(path) == {"../bad"}


@pytest.mark.parametrize(
    "data",
    [b"", b"x", b"\x3a\x05abc", b"\x3b", b"\x3a\x02\x2a\x80", b"\xff" * 64, b"\xba\x80\x80\x80\x10\x00"],
    ids=["empty", "short", "cut", "group", "cut length", "long number", "more than 32 bits of a field"],
)
def test_invalid_onnx_is_refused(data, tmp_path, editable):
    path = tmp_path / "model.onnx"
    path.write_bytes(data)
    with pytest.raises(ValueError):  # noqa: PT011 - of any wording
        external_files(path)
    editable.put("unet/model.onnx", data)
    refused(editable, "unet/model.onnx")


def test_nested_graphs_end(tmp_path):
    data = b"location"
    for _ in range(2000):
        for tag in (b"\x32", b"\x2a", b"\x0a"):  # a graph in an attribute of a node
            data = tag + varint(len(data)) + data
    (tmp_path / "model.onnx").write_bytes(b"\x3a" + varint(len(data)) + data)
    with pytest.raises(ValueError, match="deep"):
        external_files(tmp_path / "model.onnx")


def varint(number):
    out = b""
    while number >= 0x80:
        out += bytes([number & 0x7F | 0x80])
        number >>= 7
    return out + bytes([number])


def test_a_graph_of_another_suffix_is_refused(editable):
    for name in ("model.onnx", "model.onnx.data"):
        (editable.folder / "unet" / name).rename(editable.folder / "unet" / name.replace("onnx", "ort"))
        path = f"unet/{name}".replace("onnx", "ort")
        editable.data["files"][path] = editable.data["files"].pop(f"unet/{name}")
        assert file_digest(editable.folder / path) == editable.data["files"][path][1]
    set_path(editable, "artifact", "unet/model.ort")
    refused(editable, "components.unet.*onnx")

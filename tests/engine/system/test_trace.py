"""`pipe.profile`: the image of a call, and its Chrome trace."""

import json

import pytest

import calotype

PROMPT, SMALL = "a red star that is traced", {"steps": 2, "seed": 1, "width": 64, "height": 64}


@pytest.mark.parametrize("backend", ["onnxruntime", "eager"])
def test_stages_and_networks_are_in_the_trace(backend, pipes, tmp_path):
    pipe = pipes[backend]
    pipe("a blue star", **SMALL)  # caches the encoded empty negative prompt
    result = pipe.profile(tmp_path / "trace.json", PROMPT, **SMALL)
    assert result.images[0].tobytes() == pipe(PROMPT, **SMALL).images[0].tobytes()
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    spans = [e for e in events if e.get("ph") == "X"]
    counts = {n: sum(e["name"] == n for e in spans) for n in ("text", "steps", "decode", "text_encoder", "unet")}
    assert counts == {"text": 1, "steps": 2, "decode": 1, "text_encoder": 1, "unet": 2}
    first = next(e for e in spans if e["name"] == "steps")
    inside = next(e for e in spans if e["name"] == "unet")
    assert first["ts"] <= inside["ts"]
    assert inside["ts"] + inside["dur"] <= first["ts"] + first["dur"] + 1
    if backend == "eager":  # and torch's operators
        assert any(e["name"].startswith("aten::") for e in spans)


def test_a_file_that_cannot_be_written_raises(fake, tmp_path):
    with pytest.raises(calotype.InputError, match="no folder"):
        fake.profile(tmp_path / "none" / "trace.json", PROMPT)
    with pytest.raises(calotype.InputError, match="Cannot write"):
        fake.profile(tmp_path, PROMPT, **SMALL)
    assert fake(PROMPT, **SMALL).images  # a later call works

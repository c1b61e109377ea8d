"""What the service tells those who run it: lines of JSON, traces, and what it tells clients of its own files."""

import io
import json
import logging
import sys

import httpx
import numpy as np
import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from PIL import Image

from calotype.errors import BackendError, InputError, SourceError
from calotype.images.png import image_from_pixels
from calotype.serve import Engine
from calotype.serve.web.app import create_app
from calotype.serve.web.service.errors import describe_error
from calotype.serve.web.service.images import encoded_image, public_name
from calotype.serve.web.service.logs import JSONLines, log
from calotype.serve.web.service.traces import Traces
from tests.helpers.server import serving

BODY = {"prompt": "a red ring", "steps": 2}


def test_a_line_is_one_json_object():
    record = logging.LogRecord("calotype.serve", logging.INFO, "", 0, "job", (), None)
    record.fields = {"path": "/x\n\x1b[31m", "seconds": 0.5}
    line = JSONLines().format(record)
    assert "\n" not in line
    assert "\x1b" not in line
    assert json.loads(line) | {"time": ""} == {
        "time": "",
        "level": "info",
        "logger": "calotype.serve",
        "event": "job",
        **record.fields,
    }


def test_requests_and_jobs_are_logged_with_one_id(fake_pipe, caplog):
    caplog.set_level(logging.INFO, "calotype.serve")
    with serving(Engine(fake_pipe)) as address:
        headers = {"X-Request-Id": "mine"}
        httpx.post(f"{address}/v1/images/generations", json=BODY, headers=headers, timeout=60).raise_for_status()
    entries = {record.getMessage(): record.fields for record in caplog.records if record.fields.get("request_id")}
    assert entries["request"] | {"seconds": 0.0, "owner": ""} == {
        "request_id": "mine",
        "owner": "",
        "method": "POST",
        "path": "/v1/images/generations",
        "status": 200,
        "seconds": 0.0,
    }
    assert entries["job"]["request_id"] == "mine"
    assert entries["job"]["state"] == "done"


def test_fields_without_a_value_are_left_out(caplog):
    caplog.set_level(logging.INFO, "calotype.serve")
    log("x", {"a": None, "b": 0})
    assert caplog.records[0].fields == {"b": 0}


def test_a_job_is_a_span_in_the_trace_of_its_client(fake_pipe):
    exporter, app = InMemorySpanExporter(), create_app(Engine(fake_pipe))
    app.state.service.traces = Traces(exporter)
    trace = "0af7651916cd43dd8448eb211c80319c"
    headers = {"traceparent": f"00-{trace}-b7ad6b7169203331-01"}
    with serving(None, app=app) as address:
        httpx.post(f"{address}/v1/images/generations", json=BODY, headers=headers, timeout=60).raise_for_status()
    spans = {span.name: span for span in exporter.get_finished_spans()}
    assert set(spans) == {"job", "wait", "text", "steps", "decode"}
    assert {f"{span.context.trace_id:032x}" for span in spans.values()} == {trace}
    assert spans["steps"].parent.span_id == spans["job"].context.span_id
    assert spans["job"].attributes["steps"] == 2
    assert spans["job"].start_time <= spans["steps"].start_time <= spans["job"].end_time


def test_traces_need_their_packages(monkeypatch):
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    assert Traces.to(None) is None
    with pytest.raises(InputError) as caught:
        Traces.to("http://localhost:4318/v1/traces")
    assert caught.value.argument == "traces_endpoint"


def test_errors_of_the_server_keep_its_paths():
    for error in (SourceError("cannot read /srv/models/x"), BackendError("/srv/x.so failed")):
        assert "/srv" not in json.dumps(describe_error(error))


def test_files_have_names_of_models_without_folders():
    pixels = np.zeros((8, 8, 3), np.uint8)
    settings = {"model": "/srv/models/ink.safetensors", "loras": json.dumps([["/srv/loras/a.safetensors", 0.5, "00"]])}
    image = image_from_pixels(pixels, settings)
    for kind in ("png", "jpeg", "webp"):
        data = encoded_image(image, kind)
        assert b"/srv" not in data
    with Image.open(io.BytesIO(encoded_image(image))) as saved:
        assert saved.text["model"] == "ink.safetensors"
    assert image.info == settings
    assert public_name("stabilityai/sd-turbo") == "stabilityai/sd-turbo"


def test_internal_errors_are_answered_and_logged(fake_pipe, caplog, monkeypatch):
    app = create_app(Engine(fake_pipe))

    async def broken(*_):
        raise RuntimeError("/srv/secret")

    monkeypatch.setattr(app.state.service, "json_body", broken)
    with serving(None, app=app) as address:
        answer = httpx.post(f"{address}/jobs", json=BODY)
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert answer.headers["x-request-id"]
    assert any(record.exc_info for record in caplog.records)

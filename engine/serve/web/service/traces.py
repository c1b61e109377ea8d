"""OpenTelemetry traces: a span for each job, with its wait and its stages, in the trace of the client's request.

The packages are optional (extra `traces`), and imported if traces are configured.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ....errors import InputError
from ...job import Job

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

_NS = 1_000_000_000


class Traces:
    """Sends spans to a collector, in batches from a thread of its own."""

    def __init__(self, exporter: SpanExporter) -> None:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = TracerProvider(resource=Resource.create({"service.name": "calotype"}), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("calotype.serve")
        self._propagator = TraceContextTextMapPropagator()

    @classmethod
    def to(cls, endpoint: str | None) -> Traces | None:
        """Return traces that go to a collector; None for no endpoint. Raises `InputError` without the packages."""
        if endpoint is None:
            return None
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

            return cls(OTLPSpanExporter(endpoint=endpoint))
        except ImportError as missing:
            message = f"traces_endpoint needs {missing.name}. Install it: pip install 'calotype[traces]'"
            raise InputError(message, argument="traces_endpoint", got=endpoint) from None

    def ended(self, job: Job, headers: Mapping[str, str], waited_s: float, attributes: Mapping[str, Any]) -> None:
        """Record a job that has ended now.

        Args:
            job: The job.
            headers: Of the request that submitted it; `traceparent` has the client's span.
            waited_s: Seconds from its submission to its start.
            attributes: What else the span has.
        """
        from opentelemetry.trace import StatusCode, set_span_in_context

        begin, status = round(job.submitted_at * _NS), job.status
        context = self._propagator.extract(headers)
        span = self._tracer.start_span("job", context, attributes=dict(attributes), start_time=begin)
        inside, at = set_span_in_context(span), begin + round(waited_s * _NS)
        self._tracer.start_span("wait", inside, start_time=begin).end(at)
        for stage, seconds in status.result.report.seconds.items() if status.result else ():
            stage_span = self._tracer.start_span(stage, inside, start_time=at)
            at += round(seconds * _NS)
            stage_span.end(at)
        if status.error is not None:
            span.set_status(StatusCode.ERROR, type(status.error).__name__)
        span.end(max(at, time.time_ns()))

    def close(self) -> None:
        """Send what is left."""
        self._provider.shutdown()

"""Settings of the web service: what a client may ask for, who may ask, and what is kept."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class ServiceSettings:
    """Limits and rights of the web service.

    Attributes:
        preload: The models that are opened before the service is ready; by default the first.
        key_file: A TOML file of API keys; without one, everybody who reaches the port may use the service.
        allowed_hosts: Host names by which clients may reach the service, besides localhost and IP addresses.
        cors_origins: Web pages of these origins may use the service, such as https://example.org; by default none.
        public_url: The address that clients use, for the addresses of images; by default that of the request.
        files_folder: The folder of the images; by default a temporary one, which is removed at the end.
        files_expire_s: Seconds after which an image is removed.
        max_files_bytes: The largest size of all images together; the oldest are removed first.
        max_side: The largest width and height of an image, in pixels.
        max_steps: The largest number of steps of a job.
        max_images: The largest number of images of a job.
        max_prompt_length: The largest number of characters of a prompt.
        max_body_bytes: The largest size of a request's body.
        max_upload_pixels: The largest number of pixels of an input image.
        max_job_s: Seconds from its submission after which a job ends, if it does not say fewer.
        body_timeout_s: Seconds within which a request's body must arrive.
        stream_idle_s: Seconds without an event after which a stream of events sends a comment, to stay open.
        interrupt_everybody: AUTOMATIC1111's interrupt without a task's id ends the jobs of all clients.
        traces_endpoint: The address of an OpenTelemetry collector (OTLP over HTTP), for traces.
    """

    preload: tuple[str, ...] = ()
    key_file: Path | None = None
    allowed_hosts: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    public_url: str | None = None
    files_folder: Path | None = None
    files_expire_s: float = 3600.0
    max_files_bytes: int = 1 << 30
    max_side: int = 2048
    max_steps: int = 150
    max_images: int = 16
    max_prompt_length: int = 10_000
    max_body_bytes: int = 64 << 20
    max_upload_pixels: int = 1 << 25
    max_job_s: float = 600.0
    body_timeout_s: float = 60.0
    stream_idle_s: float = 15.0
    interrupt_everybody: bool = False
    traces_endpoint: str | None = None

"""Requests to AUTOMATIC1111's API, and what is in its answers."""

import base64
import io
import json

import numpy as np
from PIL import Image


def encoded(image):
    """Return an image as base64 of a PNG."""
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode()


def decoded(text):
    """Return the image in base64."""
    return Image.open(io.BytesIO(base64.b64decode(text)))


def generated(client, route, **body):
    """Return the images and the `info` of an answer."""
    answer = client.post(f"/sdapi/v1/{route}", json=body)
    assert answer.status_code == 200, answer.text
    data = answer.json()
    return [decoded(text) for text in data["images"]], json.loads(data["info"])


def scene(width=128, height=128):
    """Return an image of two colors, and a mask of its left half."""
    pixels = np.full((height, width, 3), (30, 60, 200), np.uint8)
    pixels[height // 4 : height // 2] = 255
    mask = np.zeros((height, width), np.uint8)
    mask[:, : width // 2] = 255
    return Image.fromarray(pixels), Image.fromarray(mask)

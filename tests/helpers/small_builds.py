"""Small builds of the demonstration model, and the distance of their images."""

import numpy as np

from calotype.export import BuildSpec
from calotype.plan.profile import Range


def small_spec(backend, folder, **more) -> BuildSpec:
    """Return the spec of a build for 64 to 128 pixels, judged by one image of two steps."""
    side = Range(min=64, opt=64, max=128)
    quick = {"height": side, "width": side, "batch": Range(min=1, opt=1, max=2), "proof": 1, "proof_steps": 2}
    rest = {"model": "demo", "steps": Range(min=2, opt=2, max=2), **quick, **more}
    return BuildSpec(output=folder, backend=backend, **rest)


def levels(got, expected) -> int:
    """Return the largest difference of the first images of two results, of 255."""
    return int(np.abs(np.asarray(got.images[0]).astype(int) - np.asarray(expected.images[0])).max())

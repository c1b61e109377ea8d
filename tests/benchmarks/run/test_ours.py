"""Calotype as a contender: one with `calls` fits its sampler when it loads, if none is stored."""

import numpy as np
import pytest

from calotype.benchmarks.run.ours import Peer
from calotype.files.cache import FITS
from tests.helpers.fits import fit_for, store

SCHEDULER = {"name": "euler", "class": "EulerDiscreteScheduler", "config": {}}
JOB = {"plan": None, "backend": "fake", "precision": "fp32", "controlnets": [], "control_images": [], "steps": 4}
JOB |= {"height": 64, "width": 64, "guidance": 5.0, "scheduler": SCHEDULER, "judged": False}
JOB |= {"settings": {"arguments": {"calls": 2}}}


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("CALOTYPE_HOME", str(tmp_path / "home"))


def loaded(demo_folder, fake):
    peer = Peer()
    config = {name: value for name, value in fake.plan.scheduler.items() if not name.startswith("_")}
    peer.load(JOB | {"model": str(demo_folder), "scheduler": SCHEDULER | {"config": config}})
    return peer


def stored():
    return sorted(path.name for path in FITS.root.iterdir())


def test_a_contender_with_calls_fits_its_sampler_once(demo_folder, fake):
    peer = loaded(demo_folder, fake)
    first = stored()
    assert len(first) == 1
    assert peer.generate(["a red ring"], None, [1]).shape == (1, 64, 64, 3)
    assert len(peer.parts["unet"]) == 2
    assert loaded(demo_folder, fake)
    assert stored() == first


def test_a_stored_fit_is_kept(demo_folder, fake):
    peer = loaded(demo_folder, fake)
    spec = peer._arguments["scheduler"]
    before = [path.read_bytes() for path in FITS.root.iterdir()]
    store(fit_for(peer._pipe.plan, scheduler=spec))
    (kept,) = (path.read_bytes() for path in FITS.root.iterdir())
    loaded(demo_folder, fake)
    assert [path.read_bytes() for path in FITS.root.iterdir()] == [kept] != before
    assert np.asarray(peer.generate(["a red ring"], None, [1])).dtype == np.uint8

"""A Chromium of the system, and a page in it. Without one, these tests are skipped."""

import shutil

import pytest

import calotype
from calotype.serve import Engine, ModelCatalog
from tests.helpers.server import serving


@pytest.fixture(scope="session")
def chromium():
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    sync_api.expect.set_options(timeout=30_000)  # a busy machine is no failure
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield browser
        browser.close()


@pytest.fixture
def context(chromium):
    """A browser without history, on a desktop's screen."""
    context = chromium.new_context(viewport={"width": 1280, "height": 900})
    yield context
    context.close()


@pytest.fixture(scope="module")
def engine(demo_folder):
    models = {"default": calotype.load("demo", backend="fake", controlnet="demo-canny")}
    return Engine(ModelCatalog(models, {"outline": demo_folder / "outline.safetensors"}))


@pytest.fixture(scope="module")
def address(engine):
    with serving(engine) as address:
        yield address


@pytest.fixture
def page(context, address):
    from tests.helpers.server.chromium import opened

    return opened(context, address)

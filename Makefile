# One command each; every target makes .venv first if it is not there.
PYTHON ?= python3
BIN := .venv/bin
# An editable install in strict mode does not see new files: a folder that gained or lost one installs again.
ROOMS := $(shell find engine export kernels benchmarks -type d ! -name __pycache__ ! -path 'benchmarks/results*')

# Nothing is compiled at the installation: Python keeps what it compiles at the first import.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo gpu-bundle test check fast-tests pooled-tests coverage lint docs format load install train-demo graphs clean

demo: install
	$(BIN)/calotype generate "a large red circle on a blue background" --seed 7 -o demo.png --report

# A file to a worker, the longest first (tests/conftest.py). What measures time has both cores to itself afterwards, and a
# second try where something else kept them busy; only its files are collected.
TIMED := $(shell grep -rl --include='test_*.py' pytest.mark.timed tests)
POOL := OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

# lint, the types and the tests that trace, build and train nothing: five to six minutes on two cores.
check: install
	$(MAKE) -j 2 lint fast-tests

# What CI runs.
test: install
	$(MAKE) -j 2 lint pooled-tests
	$(BIN)/pytest -m timed $(TIMED) || $(BIN)/pytest -m timed --last-failed $(TIMED)

fast-tests: install
	$(POOL) -m "not slow and not timed"

# tests/test_docs.py builds the documentation as `make docs` does.
pooled-tests: install
	$(POOL) -m "not timed"

# Line coverage, child processes included. It takes longer than the tests.
coverage: install
	rm -f .coverage .coverage.*
	$(BIN)/coverage run -m pytest -n 2 --dist loadfile -m "not timed" $(COVERED)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report --skip-covered

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The server under mixed traffic at 0.5, 1 and 2 times its capacity, two minutes each: `make load SECONDS=10` is a short one.
SECONDS ?= 120
load: install
	$(BIN)/python -P -m calotype.benchmarks.load --seconds $(SECONDS) --output load.json

# A folder to carry to a machine with a GPU that has torch, triton and transformers; run.sh in it is the one command.
BUNDLE := gpu-bundle
DIFFUSERS := $(shell sed -n 's/^diffusers==//p' constraints.txt)
gpu-bundle: install
	rm -rf $(BUNDLE) && mkdir -p $(BUNDLE)/site
	cp -r engine $(BUNDLE)/site/calotype
	cp -r export kernels benchmarks $(BUNDLE)/site/calotype/
	rm -rf $(BUNDLE)/site/calotype/benchmarks/results
	mkdir $(BUNDLE)/tests && cp -r tests/gpu tests/helpers $(BUNDLE)/tests/
	cp pyproject.toml $(BUNDLE)/
	find $(BUNDLE) -name __pycache__ -prune -exec rm -rf {} +
	$(BIN)/pip download --quiet --no-deps --only-binary :all: --dest $(BUNDLE)/wheels diffusers==$(DIFFUSERS)
	printf '%s\n' '#!/bin/sh' '# ./run.sh [--deadline SECONDS] [--out DIR]: install the wheel next to the packages, and check the GPU.' \
	  'cd "$$(dirname "$$0")" || exit 1' \
	  'python3 -m pip install -q --no-index --no-deps --target site wheels/*.whl' \
	  'export PYTHONPATH="$$PWD/site" HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1 CALOTYPE_HOME="$${CALOTYPE_HOME:-$$PWD/home}"' \
	  'exec python3 -P -m calotype.benchmarks.gpu_check "$$@"' > $(BUNDLE)/run.sh
	chmod +x $(BUNDLE)/run.sh
	@echo "carry the folder $(BUNDLE), and run there: $(BUNDLE)/run.sh --deadline 570 --out check"

# The theme prints a notice about other tools without this variable.
docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# From nothing, with a fixed seed; it resumes after a stop. Checkpoints, log and sample sheets in .train/.
train-demo: install
	PYTHONPATH=export/tools $(BIN)/python -m demo_training train model
	PYTHONPATH=export/tools $(BIN)/python -m demo_training train control
	PYTHONPATH=export/tools $(BIN)/python -m demo_training train clip

# Graphs without weights, which come with Calotype: after TRACER in export/onnx/trace_step.py is increased.
MODELS ?= demo demo+demo-canny sd15
graphs: install
	$(BIN)/python -P export/tools/known_graphs.py $(MODELS)

# uv installs in a tenth of pip's time. Where it cannot reach what pip is configured to use, pip installs.
PACKAGES := --quiet -c constraints.txt -e '.[build,cpu,dev,docs,ray,serve,tensorrt-rtx,video]'
install: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt $(ROOMS)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet uv && UV_FIND_LINKS="$$PIP_FIND_LINKS" $(BIN)/uv pip install --python $(BIN)/python $(PACKAGES) \
	  || $(BIN)/pip install $(PACKAGES)
	touch $@

clean:
	rm -rf .venv build calotype.egg-info demo.png site

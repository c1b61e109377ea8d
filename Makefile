# One command each; every target makes .venv first if it is not there.
PYTHON ?= python3
BIN := .venv/bin
# An editable install in strict mode does not see new files: a folder that gained or lost one installs again.
ROOMS := $(shell find engine export kernels benchmarks -type d ! -name __pycache__ ! -path 'benchmarks/results*')

.PHONY: demo test check fast-tests pooled-tests coverage lint docs format load install train-demo clean

demo: install
	$(BIN)/calotype generate "a large red circle on a blue background" --seed 7 -o demo.png --report

# A file to a worker, the longest first (tests/conftest.py). What measures time has both cores to itself afterwards, and a
# second try where something else kept them busy; only its files are collected.
TIMED := $(shell grep -rl --include='test_*.py' pytest.mark.timed tests)
POOL := OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

# lint, the types and the tests that trace, build and train nothing: three minutes on two cores.
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

install: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt $(ROOMS)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --no-compile -c constraints.txt -e '.[build,cpu,dev,docs,ray,serve,tensorrt-rtx]'
	-$(BIN)/python -W ignore -m compileall -qq -j 0 .venv/lib  # pip compiles on one core
	touch $@

clean:
	rm -rf .venv build calotype.egg-info demo.png site

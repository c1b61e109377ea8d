# One command each; every target makes .venv first if it is not there.
PYTHON ?= python3
BIN := .venv/bin
# An editable install in strict mode does not see new files: a folder that gained or lost one installs again.
ROOMS := $(shell find engine export kernels benchmarks -type d ! -name __pycache__ ! -path 'benchmarks/results*')

.PHONY: demo test check lint docs format install train-demo clean

demo: install
	$(BIN)/calotype generate "a large red circle on a blue background" --seed 7 -o demo.png --report

# What measures time has both cores to itself, and a second try where something else kept them busy; all else shares them,
# a file to a worker.
TIMED := tests/benchmarks/run/test_instrument.py tests/benchmarks/test_cli.py

# Tests that trace, build and train nothing: with lint, under three minutes on two cores.
FAST := tests/test_rooms.py tests/test_words.py tests/engine/test_pipeline.py \
	$(addprefix tests/engine/,errors files graph images request sampling stages system text weights)

check: lint
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile $(FAST)

test: lint docs
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile $(TIMED:%=--ignore=%)
	$(BIN)/pytest $(TIMED) || $(BIN)/pytest --last-failed $(TIMED)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

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
	$(BIN)/pip install --quiet -c constraints.txt -e '.[build,cpu,dev,docs,tensorrt-rtx]'
	touch $@

clean:
	rm -rf .venv build calotype.egg-info demo.png site

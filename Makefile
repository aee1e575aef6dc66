# `make up` serves the family on http://127.0.0.1:8000; `make test` runs the tests. Each sets up what it needs.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
VLLM := .venv-vllm
PIP := $(BIN)/python -m pip install --disable-pip-version-check

.PHONY: up test test-vllm system check format bench clean test-gpu kind-e2e dashboards architecture
.DEFAULT_GOAL := up

up: $(VENV)/runtime.done
	@$(BIN)/moray up

# Two processes: one begins with live servers, which wait most of their time, the other with all other tests.
test: system $(VENV)/dev.done
	@$(BIN)/python -m pytest --numprocesses 2 --no-loadscope-reorder

# vLLM itself, on this CPU, in an environment of its own: 3.5 GB. It leaves a ZeroMQ context to the interpreter's end.
test-vllm: $(VLLM)/vllm.done
	@$(VLLM)/bin/python -m pytest -W 'ignore:Unclosed context:ResourceWarning' tests/vllm_engine

# On a machine with GPUs and a CUDA build of torch; figures go to gpu.json.
test-gpu: $(VENV)/dev.done
	@$(BIN)/python -m pytest tests/gpu --gpu-record gpu.json --gpu-date "$$(date -I)"

# The Debian packages that tests use, where they may be installed.
system:
	@.ci/system

check: $(VENV)/dev.done
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

format: $(VENV)/dev.done
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

# Grafana's JSON beside the dashboards' modules, made anew of them.
dashboards: $(VENV)/dev.done
	@$(BIN)/python -W ignore -c 'from pathlib import Path; from monitoring.dashboards import BOARDS; from monitoring.dashboards.render import text; [Path(f"monitoring/dashboards/{each.uid}.json").write_text(text(each)) for each in BOARDS]'

# The picture of the layers, of the imports that are there.
architecture: $(VENV)/dev.done
	@$(BIN)/python tests/architecture_picture.py

# On a machine with docker, kind, helm and kubectl. Never run.
kind-e2e: $(VENV)/runtime.done
	@k8s/kind-e2e.sh

# make bench NAME=gateway
bench: $(VENV)/dev.done
	@$(BIN)/python tests/bench/run.py $(NAME) --json

$(BIN)/python:
	@echo "== making $(VENV) with $(PYTHON)"
	@$(PYTHON) -c 'import sys; assert (3, 11) <= sys.version_info < (3, 13), "Python 3.11 or 3.12 is needed; name it: make PYTHON=..."'
	@$(PYTHON) -m venv $(VENV)

# torch first and alone: a CPU build that pip can find then satisfies every later requirement.
$(VENV)/runtime.done: pyproject.toml constraints.txt | $(BIN)/python
	@echo "== installing Moray (about 1.5 GB of packages, a minute or two)"
	@$(PIP) -c constraints.txt torch==2.13.0
	@$(PIP) -c constraints.txt --editable .
	@touch $@

$(VENV)/dev.done: $(VENV)/runtime.done
	@echo "== installing the tools of the tests"
	@$(PIP) -c constraints.txt --editable '.[dev]'
	@touch $@

$(VLLM)/packages.done: constraints-vllm.txt
	@echo "== installing vLLM for CPUs into $(VLLM) (a few minutes)"
	@$(PYTHON) -m venv --clear $(VLLM)
	@$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r constraints-vllm.txt
	@touch $@

$(VLLM)/vllm.done: pyproject.toml $(VLLM)/packages.done
	@$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

clean:
	rm -rf $(VENV) $(VLLM)

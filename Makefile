# make demo: the whole pipeline on an embedded data set.   make test: every test.   make lint: format and lint.
PYTHON ?= python3.11
BIN := .venv/bin

.PHONY: demo test lint lock env
.DEFAULT_GOAL := demo

env: .venv/.installed

# uv itself comes from the lock, then installs the rest several times faster than pip would; pip does it where uv cannot.
# Both compile what they install: a Ray cluster is many processes, and where PYTHONDONTWRITEBYTECODE is set each would compile it again.
.venv/.installed: requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv
	sed -n '/^uv==/,/[^\\]$$/p' requirements.lock > .venv/uv.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r .venv/uv.txt
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --require-hashes -r requirements.lock \
	  || $(BIN)/pip install --quiet --require-hashes -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

demo: env
	$(BIN)/python -m ray_jobs demo

test: env
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder tests/ray_jobs tests

lint: env
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .

lock: env
	$(BIN)/uv pip compile pyproject.toml --extra dev --python-version 3.11 --python-platform x86_64-manylinux_2_28 \
	  --generate-hashes --no-header --no-annotate --no-emit-index-url --quiet -o requirements.lock

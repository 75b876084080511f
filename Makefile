# Needs make and a Python of at least 3.11; everything else goes into .venv.

PYTHONS ?= python3.13 python3.12 python3.11 python3 python
VENV := .venv
BIN := $(VENV)/bin
# Its date says when .venv was last made complete.
READY := $(VENV)/.ready
TESTS ?= tests
WORKERS ?= 2
FUZZ_SECONDS ?= 600
FUZZ_SEED ?= 0

.DEFAULT_GOAL := help
.PHONY: help install demo test test-all fuzz certify situations pages site dist lint typed format bench clean

help:
	@echo "make demo     train, align and plot small models (under 3 minutes)"
	@echo "make test     run the tests (7 minutes on two cores)"
	@echo "make test-all run them and the long ones: a browser, Ray, real data, every packaged experiment"
	@echo "make fuzz     damaged inputs for FUZZ_SECONDS=600, other ones with another FUZZ_SEED"
	@echo "make certify  measure that every family's groups are exact (10 minutes); prints the table of docs/certify.md"
	@echo "make situations every verb on every family, stored form and head (an hour); prints the table of docs/situations.md"
	@echo "make pages    write docs/families.md, docs/choices.md and docs/experiments.md"
	@echo "make site     the documentation as a site, in build/site"
	@echo "make dist     what would be published, in dist, as twine checks it"
	@echo "make lint     ruff, pyright, import-linter, and mypy on the wheel"
	@echo "make format   let ruff rewrite what it can"
	@echo "make bench    run the benchmarks"
	@echo "make install  only make .venv, as every target above does first"
	@echo "make clean    delete caches, build and demo output; .venv stays"

install: $(READY)

# A pyenv shim may be there without its Python, so each candidate has to run.
$(READY): requirements.lock pyproject.toml
	@if ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
	  for candidate in $(PYTHONS); do \
	    if $$candidate -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	      echo "$$candidate -m venv $(VENV)"; \
	      $$candidate -m venv $(VENV) && break; \
	    fi; \
	  done; \
	fi
	@if ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
	  echo "isobasin needs Python >= 3.11 with venv, and none of these is one: $(PYTHONS)." >&2; \
	  echo "Install one (on Debian and Ubuntu: python3 and python3-venv), or name it: make PYTHONS=/path/to/python" >&2; \
	  exit 1; \
	fi
	$(BIN)/python -m pip install --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

demo: $(READY)
	$(BIN)/isobasin demo

test: $(READY)
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup -m "not long" $(TESTS)

test-all: $(READY)
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup --hypothesis-profile thorough $(TESTS)

fuzz: $(READY)
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz --seconds $(FUZZ_SECONDS) --seed $(FUZZ_SEED)

certify: $(READY)
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python benchmarks/certificates.py

situations: $(READY)
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m tests.situations

pages: $(READY)
	$(BIN)/python -m isobasin.verbs.families > docs/families.md
	$(BIN)/python -m isobasin.choices > docs/choices.md
	$(BIN)/python -m isobasin.experiments.keys > docs/experiments.md

site: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

dist: $(READY)
	rm -rf dist
	$(BIN)/python -m build --no-isolation
	$(BIN)/twine check --strict dist/*

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports
	$(MAKE) typed

# As a user's mypy sees the wheel: an environment of it alone, with the packages of this one behind it.
TYPED := build/typed
typed: $(READY)
	rm -rf $(TYPED)
	$(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir $(TYPED) .
	$(BIN)/python -m venv --without-pip $(TYPED)/venv
	$(BIN)/python -m pip --python $(TYPED)/venv/bin/python install --quiet --no-index --no-deps $(TYPED)/*.whl
	$(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))" \
	  > $$($(TYPED)/venv/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/behind.pth
	$(BIN)/mypy --python-executable $(TYPED)/venv/bin/python tests/typed

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY)
	$(BIN)/python benchmarks/solvers.py
	$(BIN)/python benchmarks/checkpoints.py time
	$(BIN)/python benchmarks/checkpoints.py memory
	$(BIN)/python benchmarks/start.py

clean:
	rm -rf build dist demo-output fuzz-failures .pytest_cache .ruff_cache .hypothesis .import_linter_cache .mypy_cache
	find src tests benchmarks examples -name __pycache__ -type d -prune -exec rm -rf {} +

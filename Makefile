# make demo              install, train the custom CNN on generated phantoms, evaluate it
# make test              install, then lint, types and quick tests
# make test-integration  tests that start processes, export, run the notebook or a benchmark
# make test-all          every test, the slow ones too
# make test-cpus         quick tests with other CPU instructions and threads, and on a busy machine
# make test-oldest       quick tests with the oldest packages that requirements.txt allows
# Another Python: make demo PYTHON=python3.12

PYTHON ?= python3
BIN := .venv/bin
DEMO := demo-$(shell date +%Y%m%d-%H%M%S)

QUICK := -m pytest -n auto -m "not slow and not integration"

.PHONY: demo test test-integration test-all test-cpus test-oldest lint format clean

demo: .venv/installed
	$(BIN)/python prepare.py --phantom 900
	$(BIN)/python main.py --phantom --model net --image-size 96 --batch-size 16 --epochs 20 --name $(DEMO)

test: .venv/installed-dev lint
	$(BIN)/python $(QUICK)

test-integration: .venv/installed-dev
	$(BIN)/python -m pytest -n auto -m "integration and not slow"

test-all: .venv/installed-dev lint
	$(BIN)/python -m pytest -n auto

test-cpus: .venv/installed-dev
	ATEN_CPU_CAPABILITY=default OMP_NUM_THREADS=1 $(BIN)/python $(QUICK)
	ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 OMP_NUM_THREADS=2 $(BIN)/python $(QUICK)
	yes > /dev/null & first=$$!; yes > /dev/null & second=$$!; \
	  trap "kill $$first $$second" EXIT; $(BIN)/python $(QUICK)

test-oldest: .venv-oldest/installed
	.venv-oldest/bin/python $(QUICK) -W ignore

lint: .venv/installed-dev
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy

format: .venv/installed-dev
	$(BIN)/python -m ruff check --fix .
	$(BIN)/python -m ruff format .

clean:
	rm -rf .venv .venv-oldest .mypy_cache .pytest_cache .ruff_cache

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: $(PYTHON) is older than Python 3.11; run make with PYTHON=python3.11"; exit 1; }
	$(PYTHON) -m venv .venv

.venv/installed: requirements.txt | .venv/bin/python
	$(BIN)/python -m pip install --quiet -r requirements.txt
	touch $@

.venv/installed-dev: requirements-dev.txt requirements-app.txt requirements-export.txt requirements-timm.txt requirements.txt | .venv/bin/python
	$(BIN)/python -m pip install --quiet -r requirements-dev.txt
	touch $@

.venv-oldest/installed: requirements-dev.txt requirements-app.txt requirements-export.txt requirements-timm.txt requirements.txt
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet uv
	.venv-oldest/bin/python -m uv pip install --quiet --python .venv-oldest/bin/python \
	  --resolution lowest-direct -r requirements-dev.txt
	touch $@

# Each target bootstraps its own virtual environment; nothing global is touched.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check
JOBS ?= 2

.PHONY: demo test test-web test-wheel parity docs docs-test check format bench clean

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "sfumato needs Python 3.11 or newer; say make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -q -c constraints.txt -e ".[offline]"
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(PIP) install -q -c constraints.txt -e ".[all,clients,dev]"
	touch $@

demo: $(VENV)/installed  ## the whole paper small: both stages on the toy world, samples, a report page
	$(BIN)/sfumato demo --out runs/demo

test: $(VENV)/installed-dev  ## the tests (under ten minutes on two cores)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist worksteal --durations=15

$(VENV)/installed-web: $(VENV)/installed-dev
	$(PIP) install -q -c constraints.txt -e ".[all,clients,dev,browser]"
	touch $@

test-web: $(VENV)/installed-web  ## the studio in Chromium (skipped where there is none), under two minutes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -rs -m web tests/web

test-wheel: $(VENV)/installed-dev  ## the packages built and the wheel run in an empty environment, under a minute
	$(BIN)/python .ci/wheel.py

$(VENV)/parity/installed: tests/parity.txt $(VENV)/installed-dev
	$(PIP) install -q --no-deps --target $(VENV)/parity -r tests/parity.txt
	touch $@

parity: $(VENV)/parity/installed  ## metrics against torch-fidelity, torchmetrics, clean-fid, lpips, prdc
	PYTHONPATH=$(VENV)/parity OMP_NUM_THREADS=1 $(BIN)/python -m pytest -rs tests/evaluation/test_parity.py

$(VENV)/installed-docs: $(VENV)/installed-dev
	$(PIP) install -q -c constraints.txt -e ".[all,clients,dev,docs]"
	touch $@

docs: $(VENV)/installed-docs  ## the documentation site, in build/site; a broken link is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "open build/site/index.html"

docs-test: $(VENV)/installed-docs  ## the commands of every tutorial at small size, and the site's checks
	NO_MKDOCS_2_WARNING=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -rs -m docs tests/docs

check: $(VENV)/installed-dev  ## format, lint, types, import rules
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_imports.py

format: $(VENV)/installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/installed-dev  ## side-by-side timing against diffusers
	$(BIN)/python -m benchmarks

clean:
	rm -rf $(VENV) build dist

# `make demo` runs everything on this machine. `make lint test` must pass before a change is merged.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
PINS_VENV := build/pins-venv
# Two processes; each one runs whole files.
PARALLEL := -n 2 --dist loadfile --no-loadscope-reorder
# The torch that pip installs first, in a separate call: otherwise the resolver would pick the largest build it finds.
# On a GPU machine, name the build and its index: make install TORCH="torch==2.13.0+cu130 --index-url URL_OF_PYTORCH_WHEELS".
TORCH ?= torch==2.13.0
PIP_LOG := build/install.log
# Installs quietly; if that fails, shows the end of the log.
pip_install = $(BIN)/python -m pip --disable-pip-version-check install --progress-bar off $(1) >> $(PIP_LOG) 2>&1 \
	|| { tail -n 30 $(PIP_LOG); exit 1; }

.PHONY: install install-dev dist demo test test-slow test-nightly coverage mutations chaos lint docs messages pictures bench pins clean

install: $(VENV)/.installed

install-dev: $(VENV)/.installed-dev

$(VENV)/.installed: pyproject.toml requirements.txt
	@test -x $(BIN)/python || { echo "Creating $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@mkdir -p build
	@echo "Installing torch (details: $(PIP_LOG))"
	@$(call pip_install,$(TORCH))
	@echo "Installing the packages that raypipe needs"
	@$(call pip_install,-r requirements.txt)
	@echo "Installing raypipe"
	@$(call pip_install,--no-deps -e .)
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed requirements-dev.txt
	@echo "Installing the packages for tests and lint"
	@$(call pip_install,-r requirements-dev.txt)
	@touch $@

# Build the wheel and the source distribution in dist/.
dist: install-dev
	rm -rf dist
	$(BIN)/python -m build --outdir dist

demo: install
	$(BIN)/raypipe demo $(ARGS)

# Takes minutes: every unit and property test, and one real run of every job.
test: install-dev
	$(BIN)/python -m pytest -m "not slow and not nightly" $(PARALLEL) $(ARGS)

# The other tests that start real processes: faults, kills, the endpoint as a command, the browser.
test-slow: install-dev
	$(BIN)/python -m pytest -m "slow and not nightly" $(ARGS)

# Takes hours: several nodes (skipped unless root), random killers, search grids, long chaos runs. Prints a summary table.
test-nightly: install-dev
	cd tests && ../$(BIN)/python -m support.nightly $(ARGS)

# Line coverage of raypipe/ by `make test`, including subprocesses and Ray workers. Details: build/coverage/html.
coverage: install-dev
	rm -rf build/coverage
	$(BIN)/coverage run -m pytest -m "not slow and not nightly" $(PARALLEL)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage html --quiet
	$(BIN)/coverage report

# Apply each patch of tests/mutations/ to a copy of the tree. The tests that it names must fail there.
mutations: install-dev
	cd tests && ../$(BIN)/python -m mutations.run $(ARGS)

# Try to break raypipe, at length: ARGS="--seed 7 --only hostile". --record writes the table to tests/chaos/RESULTS.md.
chaos: install-dev
	cd tests && ../$(BIN)/python -m chaos.run $(ARGS)

# Run the demo, and take the pictures of the README and the docs from it. Needs Chromium.
pictures: install-dev
	cd tests && ../$(BIN)/python -m support.take_pictures

lint: install-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	cd tests && ../$(BIN)/python -m support.english

# Build the documentation site in build/docs. Warnings, such as links without a target, are errors.
docs: install-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --site-dir build/docs

# Rewrite the golden file with every sentence that raypipe prints.
messages: install-dev
	cd tests && ../$(BIN)/python -m support.messages

# The quick form of every benchmark, about a minute each; missing requirements are reported. Full: benchmarks/RESULTS.md.
bench: install-dev
	set -e; for script in benchmarks/[!_]*.py; do echo "== $$script"; $(BIN)/python "$$script" --quick; done

# Rewrite both files of pins: the newest versions that pyproject.toml allows with this torch, without a +cpu suffix.
pins:
	rm -rf $(PINS_VENV)
	$(PYTHON) -m venv $(PINS_VENV)
	$(PINS_VENV)/bin/python -m pip install $(TORCH)
	$(PINS_VENV)/bin/python -m pip freeze | grep '^torch==' > build/torch.txt
	$(PINS_VENV)/bin/python -m pip install --constraint build/torch.txt ".[demo,openvino]"
	$(PINS_VENV)/bin/python -m pip freeze --exclude raypipe | sed 's/+[a-z0-9.]*$$//' > build/requirements.txt
	$(PINS_VENV)/bin/python -m pip install --constraint build/torch.txt ".[dev]"
	$(PINS_VENV)/bin/python -m pip freeze --exclude raypipe | sed 's/+[a-z0-9.]*$$//' > build/requirements-dev.txt
	{ echo "# Exact versions of what raypipe and its demo need. Written by 'make pins'."; cat build/requirements.txt; } > requirements.txt
	{ echo "# Exact versions of what tests and lint also need. Written by 'make pins'."; echo "-r requirements.txt"; \
		grep -vxFf build/requirements.txt build/requirements-dev.txt; } > requirements-dev.txt

clean:
	rm -rf $(VENV) build dist demo-output .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache *.egg-info
	find raypipe tests benchmarks jobs -name __pycache__ -type d -prune -exec rm -rf {} +

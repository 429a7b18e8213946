# `make` or `make help` lists the targets. Each one sets up what it needs: the virtual environment, then the package.
#
#   make test PYTHON=python3.12 VENV=.venv312    another interpreter, another environment
#   make test PYTEST_ARGS="-k gae"               some of the tests

PYTHON ?= python3
VENV ?= .venv
PYTEST_ARGS ?=
EXTRAS ?= tests
CONSTRAINTS ?= constraints.txt
TEST_WORKERS ?= 2
METAWORLD_VENV ?= .venv-metaworld

VENV_PYTHON := $(VENV)/bin/python
# A new version of one of these installs again. What is in place already stays, so that this takes seconds.
INSTALL_INPUTS := setup.py constraints.txt sb3_trmrl/version.txt
PACKAGE_STAMP := $(VENV)/.sb3_trmrl
TESTS_STAMP := $(VENV)/.sb3_trmrl-tests

SOURCES := $(wildcard setup.py sb3_trmrl tests examples benchmarks docs/*.py)

.DEFAULT_GOAL := help
# What Meta-World's environment is for: its own tests, and MuJoCo's older version
METAWORLD_TESTS := $(wildcard tests/test_metaworld*.py) tests/test_process_vec_env.py tests/test_evaluation.py \
  tests/test_mujoco_envs.py tests/test_mujoco_vec_env.py

.PHONY: help quickstart install test test-metaworld docs lint format type check clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

quickstart: $(PACKAGE_STAMP) ## Train a small agent, evaluate it on unseen tasks, save a picture
	$(VENV_PYTHON) examples/quickstart.py

install: $(TESTS_STAMP) ## Only set up the environment, with the tools for development

# One thread for each of the workers: torch would give every worker all cores.
test: $(TESTS_STAMP) ## Run the tests
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(VENV_PYTHON) -m pytest -n $(TEST_WORKERS) --dist worksteal $(PYTEST_ARGS)

# Meta-World pins mujoco 3.3.0, so our pins of mujoco are left out.
test-metaworld: ## Run the tests that need Meta-World, in an environment of their own with its version of MuJoCo
	@mkdir -p build && grep -v '^mujoco' constraints.txt > build/constraints-metaworld.txt
	@$(MAKE) --no-print-directory test VENV=$(METAWORLD_VENV) EXTRAS=metaworld,tests \
	  CONSTRAINTS=build/constraints-metaworld.txt PYTEST_ARGS="$(METAWORLD_TESTS) $(PYTEST_ARGS)"

docs: $(PACKAGE_STAMP) ## Build the documentation with its API reference (Sphinx): docs/_build/html/index.html
	$(VENV_PYTHON) -m pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS) -e '.[docs]'
	$(VENV_PYTHON) -m sphinx -W --keep-going -q -b html docs docs/_build/html

lint: $(TESTS_STAMP) ## Check the style (ruff, black)
	$(VENV_PYTHON) -m ruff check $(SOURCES)
	$(VENV_PYTHON) -m black --check $(SOURCES)

format: $(TESTS_STAMP) ## Mend the style (ruff --fix, black)
	$(VENV_PYTHON) -m ruff check --fix $(SOURCES)
	$(VENV_PYTHON) -m black $(SOURCES)

type: $(TESTS_STAMP) ## Check the types (mypy)
	$(VENV_PYTHON) -m mypy

check: ## lint, type and test
	@$(MAKE) --no-print-directory lint
	@$(MAKE) --no-print-directory type
	@$(MAKE) --no-print-directory test

clean: ## Remove what building and testing leave behind; the environment stays
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
	find sb3_trmrl tests examples hyperparams -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

# Made once; an environment that is there already is used as it is.
$(VENV_PYTHON):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "sb3_trmrl needs Python 3.10 or newer, and '$(PYTHON)' is not: $$($(PYTHON) --version 2>&1)."; \
	  echo "Name another one: make $(MAKECMDGOALS) PYTHON=python3.11"; exit 1; }
	@echo "== Creating the virtual environment $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV) || { \
	  echo "'$(PYTHON) -m venv' failed. On Debian and Ubuntu: apt-get install python3-venv. Then remove $(VENV) and try again."; exit 1; }

define install
@$(VENV_PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
  echo "$(VENV) holds $$($(VENV_PYTHON) --version), but sb3_trmrl needs Python 3.10 or newer: remove it and try again."; exit 1; }
@$(VENV_PYTHON) -m pip --version > /dev/null 2>&1 || $(VENV_PYTHON) -m ensurepip
@echo "== Installing sb3_trmrl$(1) into $(VENV) with the versions of $(CONSTRAINTS) (the first time: minutes, 1 GB or more)"
$(VENV_PYTHON) -m pip install --disable-pip-version-check -c $(CONSTRAINTS) -e '.$(1)'
@echo "== Installed"
endef

$(PACKAGE_STAMP): $(INSTALL_INPUTS) | $(VENV_PYTHON)
	$(call install,)
	@touch $@

# Tests need everything that the quickstart needs.
$(TESTS_STAMP): $(INSTALL_INPUTS) | $(VENV_PYTHON)
	$(call install,[$(EXTRAS)])
	@touch $(PACKAGE_STAMP) $@

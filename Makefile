# The two commands to know are `make demo` and `make test`. Each makes its own .venv when it has to.
# `make test PYTHON=python3.12` chooses the interpreter that the .venv is made with.

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo test check format docs site clean

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | while IFS="$$(printf '\t')" read -r name what; do \
	  printf '  make %-8s %s\n' "$$name" "$$what"; done

demo: $(VENV)/.for-demo ## train and compare six recommenders on MovieLens; everything lands in demo-run/
	$(BIN)/graphllmrec demo --out demo-run

# Two workers with one thread each: small tensors gain nothing from more threads, and workers do not fight for cores.
test: $(VENV)/.for-development ## run all tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

check: $(VENV)/.for-development ## lint, formatting, types, spelling
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/codespell src tests benchmarks examples docs .ci *.md *.toml Makefile

format: $(VENV)/.for-development ## let ruff fix what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.for-demo ## write the tables of models, settings and formats, and the pages of the studies, in docs/
	$(BIN)/python docs/settings.py --write
	$(BIN)/python docs/studies.py --write

# Without the variable, mkdocs-material prints an announcement about mkdocs 2 with every build.
site: $(VENV)/.for-site ## build the documentation as a web site in site/; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "The documentation is in site/: open site/index.html in a browser"

clean: ## remove the .venv, the demo's results and all caches
	rm -rf $(VENV) demo-run site build dist .pytest_cache .ruff_cache .mypy_cache .hypothesis src/*.egg-info
	find src tests benchmarks examples docs -name __pycache__ -type d -prune -exec rm -rf {} +

# Python without ensurepip (Debian without python3-venv) gets its pip from the pip that is there.
$(VENV)/.made:
	@found=; for python in $(PYTHON) python3 python3.13 python3.12 python3.11; do \
	  if "$$python" -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
	    found=$$python; break; fi; done; \
	if [ -z "$$found" ]; then \
	  echo "No Python 3.11 or newer found. Install one, or name it: make PYTHON=/path/to/python3.11 ..." >&2; exit 1; fi; \
	echo "Making $(VENV) with $$("$$found" --version)"; \
	"$$found" -m venv $(VENV) >/dev/null 2>&1 \
	  || { "$$found" -m venv --without-pip $(VENV) \
	       && "$$found" -m pip --python $(BIN)/python install --quiet --disable-pip-version-check pip; } \
	  || { echo "Could not make $(VENV). On Debian or Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@touch $@

$(VENV)/.for-demo: pyproject.toml constraints.txt | $(VENV)/.made
	@echo "Installing graphllmrec[llm] into $(VENV); the first time this downloads PyTorch and takes minutes"
	$(PIP) -e '.[llm]'
	@touch $@

$(VENV)/.for-development: pyproject.toml constraints.txt | $(VENV)/.made
	@echo "Installing graphllmrec[llm,dev] into $(VENV); the first time this downloads PyTorch and takes minutes"
	$(PIP) -e '.[llm,dev]'
	@touch $@ $(VENV)/.for-demo

$(VENV)/.for-site: pyproject.toml constraints.txt | $(VENV)/.made
	@echo "Installing graphllmrec[docs] into $(VENV)"
	$(PIP) -e '.[docs]'
	@touch $@

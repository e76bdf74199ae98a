# make demo    draw a small cohort, run the whole loop on it, say what to open
# make test    lint, types, import contracts and tests
# Both create the environment they need in .venv. The CLI's own help: .venv/bin/hnscc-qp --help

PYTHON ?= $(firstword $(foreach name,python3.11 python3.12 python3.13 python3,$(shell command -v $(name) 2>/dev/null)))
VENV ?= .venv
DEMO ?= demo
BIN := $(VENV)/bin

.PHONY: demo test lint clean
.DELETE_ON_ERROR:

demo: $(VENV)/.installed
	@$(BIN)/hnscc-qp demo --out $(DEMO)

# Whole modules go to as many processes as there are cores.
test: lint
	@$(BIN)/pytest --numprocesses auto --maxprocesses 8 --dist loadfile

lint: $(VENV)/.installed
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check .
	@$(BIN)/mypy --no-error-summary
	@$(BIN)/lint-imports --config pyproject.toml > $(VENV)/lint-imports.log 2>&1 || { cat $(VENV)/lint-imports.log; exit 1; }

$(VENV)/.installed: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "no Python found: install Python 3.11 or pass PYTHON=/path/to/python3.11"; exit 1; }
	@echo "installing into $(VENV) (PyTorch is large: a few minutes the first time)"
	@"$(PYTHON)" -m venv $(VENV)
	@$(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt --editable '.[dev]' \
	  > $(VENV)/install.log 2>&1 || { cat $(VENV)/install.log; exit 1; }
	@touch $@

clean:
	rm -rf $(VENV)

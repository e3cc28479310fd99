# Two entry points; each works in a fresh clone with nothing done before.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
INSTALLED = $(VENV)/.installed

.PHONY: demo test

demo: $(INSTALLED)
	$(BIN)/uniformerv2 demo --output demo --overwrite

test: $(INSTALLED)
	$(BIN)/python -m pytest -n 2 --dist worksteal
	$(BIN)/python -m pytest tests/gpu

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	touch $@

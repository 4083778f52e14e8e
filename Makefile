# Every target sets up what it needs. `make demo` and `make test` work on a fresh machine with
# Python 3.11 or newer and make. `make setup` and `make demo` install what users need; targets that
# test or check add EXTRAS.
.PHONY: setup native demo test check fix slow chaos soak fuzz sbom audit baselines triton clean

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
EXTRAS ?= dev
DEV := $(VENV)/.ready-$(EXTRAS)
TOOLS := build/security
SECURITY := $(TOOLS)/.ready
DEFAULT := not slow and not gpu and not baselines and not triton and not chaos and not fuzz
PYTHON := $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)

setup: native

# The native library: nothing to do where it is that of these sources, one line where it cannot be built.
native: $(READY)
	@$(BIN)/python -m engine.native.build --fetch

$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "expertune needs Python 3.11 or newer: install it first"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=24"
	$(BIN)/python -m pip install --quiet "torch>=2.9,<2.14"
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[all]"
	@touch $(READY)

$(DEV): $(READY)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[$(EXTRAS)]"
	@touch $(DEV)

$(SECURITY): $(READY) scripts/security_tools.txt
	$(BIN)/python -m venv $(TOOLS)
	$(TOOLS)/bin/python -m pip install --quiet -r scripts/security_tools.txt
	@touch $(SECURITY)

demo: native
	$(BIN)/tune --definition studies/demo.yaml --output expertune-demo.yaml

# Tests start many processes: none should compile the same sources again.
test slow chaos soak fuzz: export PYTHONDONTWRITEBYTECODE :=

# In three processes, since many tests wait; what watches the clock or the whole machine comes after, alone.
test: $(DEV) native
	$(BIN)/python -m pytest -n 3 --dist worksteal --durations=40 -m "$(DEFAULT) and not alone"
	$(BIN)/python -m pytest -m "$(DEFAULT) and alone"

slow: $(DEV) native
	$(BIN)/python -m pytest -m "slow or chaos"

# Every fault of docs/reliability.md, as often as its table says.
chaos: $(DEV) native
	$(BIN)/python -m pytest -m chaos -s

# `tune deploy` under mixed load: half an hour, or SOAK_S seconds.
SOAK_S ?= 1800
soak: $(DEV) native
	EXPERTUNE_SOAK_S=$(SOAK_S) $(BIN)/python -m pytest -m slow -s tests/chaos/test_soak.py

# Wrong inputs for every reader: FUZZ_S seconds for each of the targets of tests/fuzz/, others each time.
FUZZ_S ?= 60
fuzz: $(DEV) native
	FUZZ_S=$(FUZZ_S) $(BIN)/python -m pytest -m fuzz -s tests/fuzz

# What expertune runs on, as CycloneDX.
sbom: $(SECURITY)
	PATH=$(TOOLS)/bin:$$PATH $(BIN)/python scripts/sbom.py build/sbom.json

# Whether something of that has known vulnerabilities; 3 if nobody could be asked.
audit: $(SECURITY)
	PATH=$(TOOLS)/bin:$$PATH $(BIN)/python scripts/audit.py

baselines: $(DEV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[baselines]"
	$(BIN)/python -m pytest -m baselines

# Compiled kernels without a GPU: triton's interpreter runs them on the CPU.
triton: $(DEV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[gpu]"
	TRITON_INTERPRET=1 $(BIN)/python -m pytest -m triton

check: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

fix: $(DEV)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist *.egg-info
	rm -f engine/native/libexpertune.*

# Two commands from a fresh clone: `make demo` and `make test`. Each makes its own virtual environment.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PROJECTS := pyproject.toml $(wildcard */pyproject.toml)

# CPU build of torch, by exact pin: a bare `torch` brings several GB of CUDA packages. With a CUDA card:
#   make setup TORCH='torch --index-url https://download.pytorch.org/whl/cu130'
TORCH ?= torch==2.13.0
PYTEST_ARGS ?=
# Tests wait more than they compute: on two cores four processes are done in half the time of two.
JOBS ?= 4

.PHONY: help setup demo test slow faults simulate check protos bench clean

help:  ## Show what can be made
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-8s %s\n", $$1, $$2}'

setup: $(STAMP)  ## Make .venv with everything in it

$(STAMP): $(PROJECTS)
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Skerry needs Python 3.11 or newer; call make with PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(TORCH)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	    -e protos -e 'edge[grpc,mqtt,flower,onnx]' -e 'cloud[flower,postgres,objects,litert]' \
	    -e 'devices[examples]' --group dev
	@touch $@

demo: setup  ## Train a real model on four local devices (2 gRPC, 2 MQTT), with live progress
	$(BIN)/skerry demo

test: setup  ## Run the tests (marked slow: not) in JOBS processes at once
	$(BIN)/python -m pytest -m 'not slow' -n $(JOBS) --dist loadgroup $(PYTEST_ARGS)

slow: setup  ## Run the long soak and chaos tests
	$(BIN)/python -m pytest -m slow -n 2 $(PYTEST_ARGS)

faults: setup  ## Break things on purpose, full counts: make faults [ROWS=1,4] [COUNT=20]
	$(BIN)/python -m tests.faults --rows '$(ROWS)' --count '$(or $(COUNT),0)'

SEEDS ?= 10000
SEED ?=

simulate: setup  ## The whole system in virtual time: make simulate SEEDS=10000, or SEED=17 at length
	$(BIN)/python -m tests.simulator $(if $(SEED),--seed $(SEED),--seeds $(SEEDS))

check: setup  ## Lint, types, import contracts, freshness of generated code
	scripts/check

protos: setup  ## Generate the Python of the .proto files
	scripts/protos

bench: setup  ## Run benchmarks/NAME.py: make bench NAME=rounds [QUICK=1]
	@test -n "$(NAME)" || { echo "name one: make bench NAME=<$$(ls benchmarks/*.py | xargs -n1 basename | sed 's/\.py//' | grep -v '^_' | paste -sd'|')>"; exit 2; }
	QUICK=$(QUICK) $(BIN)/python -m benchmarks.$(NAME)

clean:  ## Remove what was made
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis

# The same targets locally and in CI. PYTHON=python3.12 make install picks another interpreter.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
COMPONENTS := build/components/.done
PROTOS := $(wildcard protos/adapterd/v1/*.proto protos/adapterd/oip/v2/*.proto)
PROTOC = $(BIN)/python -m grpc_tools.protoc -Iprotos --python_out=$(1) --pyi_out=$(1) --grpc_python_out=$(1) $(PROTOS)

.PHONY: install format check test test-served test-rest components fuzz matrix demo loadtest image-check dist-check protos dashboards reference clean

install: $(STAMP)

# torch first and by its pin, so that nothing later decides which build of it is taken.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "adapterd needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) --version 2>&1)." \
	  "Name another one: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[demo,dev]'
	@touch $@

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	@stubs=$$(mktemp -d) && trap 'rm -rf "$$stubs"' EXIT && $(call PROTOC,"$$stubs") && \
	  for stub in $$(cd "$$stubs" && find adapterd -type f); do \
	    diff -u "$$stub" "$$stubs/$$stub" || { echo "stubs differ from protos/: run make protos" >&2; exit 1; }; \
	  done

# In two parts of about the same length. `make -j2 test` runs them beside each other: mostly they wait for their children.
test: test-served test-rest

SERVED = tests/docs tests/end_to_end
test-served: install components
	$(BIN)/python -m pytest $(SERVED)

test-rest: install components
	$(BIN)/python -m pytest $(addprefix --ignore=,$(SERVED))

# What tests run beside Python packages, from PATH or Debian's archive, without root.
components: $(COMPONENTS)

$(COMPONENTS): tests/components.py tests/browser.py tests/perf_analyzer.py | install
	for program in components browser perf_analyzer; do $(BIN)/python tests/$$program.py || exit 1; done
	@mkdir -p $(@D) && touch $@

# Coverage-guided, a minute for each kind of bytes that a stranger may send; make fuzz SECONDS=600 takes longer.
SECONDS ?= 60
FUZZED = expression config settings safetensors tenants message
fuzz: install
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[fuzz]'
	for target in $(FUZZED); do $(BIN)/python tests/fuzz/atheris_target.py $$target -max_total_time=$(SECONDS) || exit 1; done

# Other versions of Python and of the libraries, each in an environment of its own; minutes and gigabytes per row.
matrix: install
	$(BIN)/python tests/matrix.py

# make demo ONCE=1 stops after the table.
demo: install
	$(BIN)/adapterd demo $(if $(ONCE),--once)

# Short forms, below ten minutes on two cores; reports land in build/loadtest. loadtest/README.md has the full forms.
loadtest: install
	$(BIN)/python -m loadtest engine --quick --base bert-base --output build/loadtest
	$(BIN)/python -m loadtest serve --quick --output build/loadtest
	$(BIN)/python -m loadtest peers --quick --output build/loadtest
	$(BIN)/python -m loadtest targets build/loadtest

# The steps of the Dockerfile without an engine, and the server that comes of them; on the default ports, which are to be
# free. make image-check PIP_EXTRA_ARGS="--extra-index-url URL" takes torch's build from there, as docker build does.
image-check: install
	$(BIN)/python -m deploy.check_dockerfile --target cpu --build-arg PIP_EXTRA_ARGS="$(PIP_EXTRA_ARGS)"

# Wheel and sdist, and a server from the wheel in an environment that has nothing else.
dist-check: install
	$(BIN)/python -m pytest -m 'not gpu' tests/test_distribution.py

protos: install
	$(call PROTOC,.)

dashboards:
	$(PYTHON) deploy/grafana/generate.py

# docs/reference, from what it describes.
reference: install
	$(BIN)/python docs/generate

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The daily things. `make demo` and `make test` need Python >= 3.11 and make, and nothing else.

.PHONY: help demo test test-rabbitmq test-oldest check chaos bench format clean
.DEFAULT_GOAL := help

BIN := .venv/bin

help:  ## say what there is
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

demo: .venv/ready  ## see it work, in half a minute
	@$(BIN)/regworker demo

test: .venv/ready  ## run all tests
	@$(BIN)/pytest -q -n 3 --dist loadfile

# Not again: what runs without a broker, and what runs on both by itself.
ONCE := ledger ledger_stateful async_ledger deliveries deliveries_stateful gauges alarm_clock cli demo \
  guide readme benchmarks results keys broker_faults broker_outages door_celery queues

test-rabbitmq: .venv/ready  ## what needs a broker once more, on RabbitMQ (REGWORKER_TEST_AMQP_URL)
	@REGWORKER_TEST_BROKER=rabbitmq $(BIN)/pytest -q -n 3 --dist loadfile tests/integration tests/upgrade \
	  $(ONCE:%=--ignore=tests/integration/test_%.py)

test-oldest:  ## run all tests on the oldest dependencies that pyproject.toml allows (needs uv and Python 3.11)
	uv venv --quiet --clear --python 3.11 .venv/oldest
	uv pip install --quiet --python .venv/oldest/bin/python --resolution lowest-direct -e '.[dev]'
	.venv/oldest/bin/pytest -q -n 3 --dist loadfile

check: .venv/ready  ## lint, format, types, layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

DURATION ?= 60
BROKER ?= redis

chaos: .venv/ready  ## break everything, and count: DURATION= (seconds), RATE= (jobs a second), SEED=, BROKER=redis|rabbitmq
	@$(BIN)/python -m tests.chaos --duration $(DURATION) --broker $(BROKER) \
	  $(if $(SEED),--seed $(SEED)) $(if $(RATE),--rate $(RATE))

bench: .venv/bench/ready  ## measure ours beside other task queues: QUICK=1 (a minute, else half an hour)
	@.venv/bench/bin/python -m benchmarks $(if $(QUICK),--quick,--write)

format: .venv/ready  ## put the code into shape
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .

clean:  ## remove what was made here
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

.venv/ready: pyproject.toml constraints.txt setup.sh
	@./setup.sh

.venv/bench/ready: .venv/ready benchmarks/setup.sh benchmarks/arq.txt
	@benchmarks/setup.sh

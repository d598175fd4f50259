# The daily commands. `make demo` and `make test` need only Python >= 3.11 and make.

.PHONY: decisions help demo test test-fast test-rabbitmq test-oldest check chaos bench docs diagrams release format lock clean
.DEFAULT_GOAL := help

BIN := .venv/bin

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

demo: .venv/ready  ## run a demonstration, half a minute
	@$(BIN)/regworker demo

# Tests at a time: more than there are cores, because a test mostly waits for the processes that it started.
TESTS ?= 6

test: .venv/ready  ## run all tests: TESTS= (at a time)
	@$(BIN)/pytest -q -n $(TESTS) --dist loadfile --no-loadscope-reorder

# The unit tests, with few examples each, without those that start programs (type checkers, promtool, npm, pytest, the sandbox).
FAST := tests/unit $(addprefix --ignore=tests/unit/,test_alert_rules.py test_limits.py \
  client/forms/test_types.py client/ledger/test_sync_connections.py contract sandbox)

test-fast: .venv/ready  ## run the unit tests that start no programs, under a minute
	@$(BIN)/pytest -q -n auto --dist loadfile --hypothesis-profile=fast $(FAST)
	@echo 'left out: the model, and all tests that start programs and servers (make test)'

# Tests that run once: they need no broker, or run on both brokers themselves.
ONCE := acts alarm_clock amqp_roles async_ledger async_producer async_results audit bad_records batches benchmarks \
  broker_bombs broker_faults broker_junk broker_outages broker_owner bulk callers calls celery_requests cli \
  cluster connection consuming cookbook deliveries deliveries_stateful delivery_lists demo erased_deliveries \
  guide haproxy host_sentry hosts interrupted junk_in_the_ledger keys ledger ledger_accounts ledger_acts \
  ledger_deliveries ledger_stateful lists managed_service memory_alarm odd_arguments old_reviews \
  operator_commands outbox_refusals outbox_vanished producer queues rabbitmq_cluster rabbitmq_queues readme remote_control \
  replicas requeue results rights roles scans script_globals sentinel sentinel_everywhere settings_files \
  shared_consumers shifted_answers snapshot stopping testing time_limits tls typed_jobs unproved \
  unreadable_records urls vanished_packets wake_reader wake_relay wakeups way_out webhooks

test-rabbitmq: .venv/ready  ## run the tests that need a broker again, on RabbitMQ
	@REGWORKER_TEST_BROKER=rabbitmq $(BIN)/pytest -q -n $(TESTS) --dist loadfile --no-loadscope-reorder tests/integration tests/upgrade \
	  $(ONCE:%=--ignore=tests/integration/test_%.py)

test-oldest:  ## run all tests on the oldest dependencies that pyproject.toml allows (needs uv and Python 3.11)
	uv venv --quiet --clear --python 3.11 .venv/oldest
	uv pip install --quiet --python .venv/oldest/bin/python --resolution lowest-direct -e ./client -e '.[dev]'
	.venv/oldest/bin/pytest -q -n $(TESTS) --dist loadfile

# What `make check` reads for plain English.
ENGLISH := README.md CHANGELOG.md CONTRIBUTING.md SECURITY.md docs examples .github .ci \
  client worker sandbox release benchmarks monitoring deploy tests \
  .env.example Dockerfile Makefile celeryconfig.py docker-compose.yml mkdocs.yml setup.sh

check: .venv/ready  ## lint, format, types, layers, plain English
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell $(ENGLISH)

DURATION ?= 60
BROKER ?= redis

chaos: .venv/ready  ## break everything, and count: DURATION= (seconds), RATE= (jobs a second), SEED=, BROKER=redis|rabbitmq, HA=1 (fail over; LEVEL=replicas|replica|always|everysec|restored)
	@$(BIN)/python -m tests.chaos --duration $(DURATION) --broker $(BROKER) \
	  $(if $(SEED),--seed $(SEED)) $(if $(RATE),--rate $(RATE)) \
	  $(if $(HA)$(LEVEL),--level $(or $(LEVEL),replicas))

bench: .venv/bench/ready  ## compare with other task queues: QUICK=1 (a minute instead of half an hour)
	@.venv/bench/bin/python -m benchmarks $(if $(QUICK),--quick,--write)

docs: diagrams  ## build the documentation's site into site/; links and anchors are checked
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

diagrams: .venv/ready  ## draw docs/images/*.svg from docs/diagrams/*.toml and the table of states
	@$(BIN)/python docs/diagrams/draw.py

decisions: .venv/ready  ## number the records of docs/decisions.md and write its contents
	@$(BIN)/python docs/site/decisions.py

format: .venv/ready  ## format the code
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .

COMPILE := uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
  --no-emit-index-url --no-emit-package regworker --no-annotate --no-header -c constraints.txt

lock:  ## write requirements/ from pyproject.toml and constraints.txt (needs uv)
	$(COMPILE) --group build -o requirements/build.txt
	$(COMPILE) pyproject.toml --extra cli --extra flower --extra otel --extra sandbox --extra serve -o requirements/image.txt
	$(COMPILE) pyproject.toml --extra dev -o requirements/dev.txt
	$(COMPILE) pyproject.toml --extra bench -o requirements/bench.txt

release: .venv/ready  ## build what is published into dist/, twice, and check it: DRAFT=1 (a changelog or commit may be missing)
	@$(BIN)/python -m release $(if $(DRAFT),--draft)

clean:  ## remove everything that make created here
	rm -rf .venv site .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache dist

.venv/ready: pyproject.toml client/pyproject.toml requirements/build.txt requirements/dev.txt setup.sh
	@./setup.sh

.venv/bench/ready: .venv/ready benchmarks/setup.sh benchmarks/arq.txt requirements/bench.txt
	@benchmarks/setup.sh

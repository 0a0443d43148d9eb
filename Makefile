# SPDX-License-Identifier: Apache-2.0
# `make help` lists the targets. Everything made stands under .venv/, build/ and lsm_bpf/*.o.

SHELL := /bin/bash
# Debian's own interpreter: the audit bindings (python3-audit) fit no other.
PYTHON ?= /usr/bin/python3
VENV   := .venv
BIN    := $(VENV)/bin
SUDO   := $(shell [ "$$(id -u)" = 0 ] || echo sudo)
DEBS   := python3-venv python3-audit libbpf1 libbpf-dev linux-libc-dev clang llvm
# What the virtual machine takes; its file server is a package of its own where QEMU is newer than 7.2.
VM_DEBS = qemu-system-x86 qemu-system-common busybox-static zstd kmod cpio $(shell apt-cache search --names-only '^virtiofsd$$' 2>/dev/null | cut -d' ' -f1)
KERNEL ?= 6.1
ARGS   ?=
MISSING = $(shell for p in $(DEBS); do dpkg-query -W -f '$${Status}' $$p 2>/dev/null | grep -q 'ok installed' || echo $$p; done)

.PHONY: help plan plan-vm setup debs debs-vm bpf test test-vm vm-shell lint demo demo-replay demo-vm bench overhead docs wheel clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## */\1\t/' | expand -t 14

plan:
	@cat demo/plan.txt

plan-vm:
	@cat demo/plan-vm.txt

debs:
	@if [ -n "$(strip $(MISSING))" ]; then \
	  command -v apt-get >/dev/null || { echo "no apt-get here; install yourself: $(MISSING)" >&2; exit 1; }; \
	  echo "installing: $(MISSING)"; \
	  $(SUDO) apt-get update -qq && $(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(MISSING) >/dev/null; \
	fi

debs-vm:
	@$(MAKE) --no-print-directory debs DEBS="$(VM_DEBS)"

# The stamp is newer than what it was made of; a failed install leaves none.
$(VENV)/.installed: pyproject.toml hatch_build.py
	@echo "setting up $(VENV)"
	@$(PYTHON) -m venv --system-site-packages $(VENV)
	@$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[test,lint]'
	@touch $@

setup: debs $(VENV)/.installed bpf  ## packages, virtual environment, BPF object

bpf: debs  ## compile lsm_bpf/*.bpf.c
	@$(PYTHON) hatch_build.py

test: setup  ## run the tests; fails on a skip that tests/skips.txt doesn't know
	$(BIN)/python -m pytest --known-skips tests/skips.txt

# Serving the whole of / needs root. Only build/ is written to then; what the guest imports is compiled before, by the checkout's owner.
test-vm: setup debs-vm  ## run tests/vm/guest under another kernel [KERNEL=6.1|6.12] [ARGS="-k ... -x"] (root or sudo)
	@$(BIN)/python -m compileall -q ksentinel tests/vm/results.py
	$(SUDO) env PYTHONDONTWRITEBYTECODE=1 $(BIN)/python -m pytest -p no:cacheprovider tests/vm --kernel $(KERNEL) --known-skips tests/skips.txt $(ARGS)

vm-shell: setup debs-vm  ## a shell as root under that kernel; exit ends it
	@$(SUDO) env PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=tests $(BIN)/python -m vm --kernel $(KERNEL)

lint: setup  ## ruff and mypy --strict
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

demo: plan setup  ## watch an attack on this machine being caught and explained (root or sudo)
	@$(BIN)/python demo/demo.py --live

demo-replay: setup  ## the same walk on recordings that ship here (no root for the walk)
	@$(BIN)/python demo/demo.py --replay

# As for test-vm: root serves / to the machine, and what is imported in there is compiled before.
demo-vm: plan-vm setup debs-vm  ## the same server guarded, in a virtual machine: attacks refused, and why [KERNEL=6.1|6.12] (root or sudo)
	@$(BIN)/python -m compileall -q ksentinel demo tests/vm
	@$(SUDO) env PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=tests $(BIN)/python demo/guarded.py --kernel $(KERNEL)

bench: setup  ## run the benchmarks
	$(BIN)/python bench/throughput.py
	$(BIN)/python bench/rules.py

overhead: setup  ## measure what watching costs, against today's tools (root or sudo; writes docs/overhead.*)
	$(SUDO) $(BIN)/python bench/overhead.py --docs docs

wheel: setup  ## build the wheel into dist/
	$(BIN)/python -m pip wheel -q --no-deps -w dist .

clean:  ## remove everything made
	@[ ! -d build ] || rm -rf build 2>/dev/null || $(SUDO) rm -rf build  # with sudo, the demonstration's files are root's
	rm -rf $(VENV) dist lsm_bpf/*.o .pytest_cache .mypy_cache .ruff_cache .hypothesis

# `make demo` and `make test` do all their own set-up on a fresh machine.
.PHONY: help venv demo test test-slow test-optimum test-harnesses test-signing test-wheel wheel \
  wheelhouse lint tel-nano clean

# What needs no more than pip.
PYTHON_HERE = $(or $(wildcard .venv/bin/python),python3)

help:
	@echo "make demo          train, export, score and report on the embedded default"
	@echo "make test          lint, type check and the test suite"
	@echo "make test-slow     the tests that take minutes"
	@echo "make test-optimum  ONNX to and from optimum, in an environment of its own"
	@echo "make test-harnesses  lm-evaluation-harness and Inspect, unchanged, against tel-serve"
	@echo "make test-signing  signatures of bundles there and back with OpenSSF model signing"
	@echo "make test-wheel    the wheel alone answers a question, and a wheelhouse without a network"
	@echo "make wheel         dist/tel_edge-*.whl, to install without this folder"
	@echo "make wheelhouse PLATFORM=manylinux_2_28_aarch64   a folder that installs without a network"
	@echo "make tel-nano      pretrain the embedded backbone again (about an hour on two idle cores)"

venv:
	@scripts/install.sh llama,train,export,report,dev

# Neither linter nor browser are needed for it.
demo:
	@scripts/install.sh
	.venv/bin/tel-demo $(ARGS)

test: lint
	.venv/bin/pytest -m "not slow" $(ARGS)

test-slow: venv
	.venv/bin/pytest -m slow $(ARGS)

test-optimum: venv
	@scripts/install_apart.sh optimum
	TEL_EXPORT=.venv/bin/tel-export .venv-optimum/bin/pytest -q -p no:cacheprovider \
	  --disable-warnings --confcutdir tests/with_optimum tests/with_optimum $(ARGS)

test-harnesses: venv
	@set -e; for name in lm-eval inspect; do scripts/install_apart.sh $$name; \
	  .venv-$$name/bin/pytest -q -p no:cacheprovider --disable-warnings \
	  --confcutdir tests/with_harnesses tests/with_harnesses $(ARGS); done

test-signing: venv
	@scripts/install_apart.sh signing
	TEL_BIN=.venv/bin .venv-signing/bin/pytest -q -p no:cacheprovider --disable-warnings \
	  --confcutdir tests/with_signing tests/with_signing $(ARGS)

wheel:
	rm -rf build dist
	$(PYTHON_HERE) -m pip wheel --quiet --no-deps --wheel-dir dist .
	@ls dist

# Of another machine, or with --compile in ARGS of one like this.
wheelhouse:
	$(PYTHON_HERE) scripts/wheelhouse.py $(or $(PLATFORM),linux_$(shell uname -m)) $(ARGS)

test-wheel: venv
	.venv/bin/pytest -m slow tests/test_wheel.py tests/test_wheelhouse.py $(ARGS)

lint: venv
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	@# Scripts have no tests: what they call has to be there.
	cd scripts && ../.venv/bin/mypy --config-file= --ignore-missing-imports --follow-imports silent \
	  $(foreach code,arg-type assignment index misc operator type-var union-attr var-annotated,\
	  --disable-error-code $(code)) *.py

tel-nano: venv
	cd scripts && ../.venv/bin/python pretrain_tel_nano.py --out ../src/tel_edge/tel_nano

clean:
	rm -rf .venv .venv-* tel-workspace build dist wheelhouse src/*.egg-info

# Everything a contributor runs. `make test` and `make check` set up what they need.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: test test-aarch64 check format schema operators build wheel digits bench fuzz clean

## Build the extension into the source tree and install what tests need.
build: $(STAMP)
	$(BIN)/maturin develop --release --quiet --skip-install

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[dev,verify]"
	touch $(STAMP)

## All tests: Rust, then Python (peers that are installed take part).
test: build
	cargo test --workspace --quiet
	$(BIN)/python -m pytest

## The kernels and the wheel on emulated aarch64 CPUs; sets up a cross tool chain (Debian on x86-64) in target/a64-tools.
test-aarch64:
	tools/aarch64/test.sh target/a64-tools
	tools/aarch64/wheel.sh target/a64-tools

## Formatting, lints, types, stubs, generated files.
check: build
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --quiet -- -D warnings
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m mypy.stubtest --mypy-config-file pyproject.toml mnnq._native
	$(BIN)/python tools/generate_schema.py --check
	$(BIN)/python tools/list_operators.py --check

format:
	cargo fmt --all
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

## Regenerate code from schema/mnn.fbs.
schema: $(STAMP)
	$(BIN)/python tools/generate_schema.py

## Regenerate docs/operators.md from the converter.
operators: build
	$(BIN)/python tools/list_operators.py

wheel: $(STAMP)
	$(BIN)/maturin build --release --strip --out dist

## Retrain the example model.
digits: $(STAMP)
	$(BIN)/pip install --quiet scikit-learn
	$(BIN)/python examples/digits/train.py

bench: build
	cargo bench --package mnnq-bench
	$(BIN)/python -m benches.quantize_speed

## Ten minutes of fuzzing per target (needs nightly and cargo-fuzz).
fuzz:
	cd fuzz && for target in model_reader weight_blob bitpack session; do \
		cargo +nightly fuzz run $$target -- -max_total_time=600 || exit 1; done

clean:
	rm -rf $(VENV) target dist fuzz/target

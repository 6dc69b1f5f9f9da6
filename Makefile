# The one list of commands; CI runs the same. Every target installs what it needs first (scripts/setup.sh).
#
# Settings: SECONDS (soak), FUZZ_SECONDS (fuzz, per target), BENCH_ARGS (bench), STEPS (test: only these steps),
#           SCENARIOS (e2e: only these).

SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help demo test check lint bench soak fuzz e2e cluster cluster-down conformance image chart

SETUP := scripts/setup.sh
SECONDS ?= 600
FUZZ_SECONDS ?= 20
BENCH_ARGS ?=
STEPS ?=
SCENARIOS ?=

help: ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: ## the whole life of a volume on this machine, through CSI (root)
	@$(SETUP) build run
	@cargo build --quiet --release -p coppice
	@"$${CARGO_TARGET_DIR:-target}/release/coppice" demo

test: ## everything (root; about 70 minutes on two cores); STEPS="a b" runs only these, see scripts/test.sh --list
	@$(SETUP) build run test fuzz cluster conformance
	@scripts/test.sh $(STEPS)

check: ## the fast part of test, for working
	@$(SETUP) build
	@scripts/test.sh --fast

lint: ## rustfmt, clippy, cargo deny, shellcheck, tidy
	@$(SETUP) build lint
	@scripts/lint.sh

bench: ## raw device against lvol, and nbdcopy against hydration, in one run (root)
	@$(SETUP) build run test
	@cargo build --quiet --release -p coppice
	@"$${CARGO_TARGET_DIR:-target}/release/coppice" bench $(BENCH_ARGS)

soak: ## the simulator, for SECONDS=600 seconds
	@$(SETUP) build
	@scripts/soak.sh $(SECONDS)

fuzz: ## every parser of bytes from outside, FUZZ_SECONDS=20 seconds each
	@$(SETUP) build fuzz
	@scripts/fuzz.sh $(FUZZ_SECONDS)

e2e: ## scenarios on a Kubernetes cluster, up and down again (root); SCENARIOS="a b" runs only these
	@$(SETUP) build cluster
	@scripts/e2e.sh $(SCENARIOS)

cluster: ## a Kubernetes cluster on this machine, left running (root)
	@e2e/up.sh

cluster-down: ## take that cluster away
	@e2e/down.sh

conformance: ## Kubernetes' own external storage suite on such a cluster, up and down again (root)
	@$(SETUP) build cluster conformance
	@scripts/conformance.sh

image: ## the container image, without a container engine: target/coppice-image.tar
	@$(SETUP) build run
	@cargo build --quiet --release -p coppice
	@e2e/build/coppice-image.sh "$${CARGO_TARGET_DIR:-target}/coppice-image.tar" \
		"$${CARGO_TARGET_DIR:-target}/release/coppice" "docker.io/library/coppice:$$(sed -n 's/^appVersion: //p' charts/coppice/Chart.yaml)"

chart: ## the Helm chart: lint, schema, its kinds against coppice crds
	@$(SETUP) build cluster
	@scripts/chart.sh

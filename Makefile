# Batchyard. `make help` lists the targets; it is made from the comments beside them.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# Of a tag; without one, the program says what version.go says.
VERSION ?= $(shell git describe --tags --dirty 2>/dev/null)
BIN ?= bin/batchyard
FILE ?= examples/mixed.jsonl
OUT ?= dist/results.jsonl
FUZZTIME ?= 30s
BENCH ?= .
PKG ?= ./...
CHAOS_SECONDS ?= 60
CHAOS_SEED ?= 7
CHAOS_CLUSTER ?=
SOAK_SECONDS ?= 450
SOAK_SEED ?= 1

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

.PHONY: build
build: ## build bin/batchyard
	CGO_ENABLED=0 go build -trimpath -ldflags "-s -w -X main.version=$(VERSION)" -o $(BIN) ./cmd/batchyard

.PHONY: run
run: build ## run FILE (examples/mixed.jsonl) through everything, inside one process
	@mkdir -p $(dir $(OUT))
	bin/batchyard run $(FILE) -o $(OUT)

.PHONY: test
test: ## test all, embedded and on real services; installs and starts what it needs
	scripts/test

.PHONY: test-short
test-short: ## test PKG (all) on the embedded services, without the race detector
	go test $(PKG)
	$(if $(filter ./...,$(PKG)),go test -C test/chaos ./...)

.PHONY: lint
lint: ## golangci-lint (go vet is in it), go mod tidy, the size of bin/batchyard, shellcheck and govulncheck
	scripts/lint

.PHONY: fuzz
fuzz: ## fuzz every decoder of outside bytes for FUZZTIME (30s) each
	scripts/fuzz $(FUZZTIME)

.PHONY: test-clusters
test-clusters: ## lose brokers, masters and primaries of real clusters; needs Java, Redis and Postgres
	BATCHYARD_TEST_CLUSTERS=1 go test -count=1 -timeout 30m -v ./test/clusters

.PHONY: chaos
chaos: ## break everything for CHAOS_SECONDS (60) as CHAOS_SEED (7) says, heal it, and check every promise; CHAOS_CLUSTER=1: on clusters
	CGO_ENABLED=0 go test -C test/chaos -vet=off -ldflags=-w -count=1 -timeout 60m . -run TestChaos -v -args -chaos.seconds=$(CHAOS_SECONDS) -chaos.seed=$(CHAOS_SEED) $(if $(CHAOS_CLUSTER),-chaos.cluster)

.PHONY: soak
soak: ## compress a month of operation into SOAK_SECONDS (450) as SOAK_SEED (1) says, and check every promise
	CGO_ENABLED=0 go test -C test/chaos -vet=off -ldflags=-w -count=1 -timeout 60m . -run TestSoak -v -args -soak.seconds=$(SOAK_SECONDS) -chaos.seed=$(SOAK_SEED)

.PHONY: engines
engines: ## test with a real llama.cpp and LiteLLM, which scripts/engines builds once; half an hour the first time
	BATCHYARD_ENGINES=$$(scripts/engines) go test -vet=off -count=1 -timeout 30m -v -bench . -benchtime 1x ./test/engines

.PHONY: devices
devices: ## long tests and benchmarks of fleets that misbehave, killed workers, cancels, memory and batching
	BATCHYARD_TEST_LONG=1 go test -vet=off -count=1 -timeout 120m -v ./test -run 'TestMisbehavingDevices|TestWorkerKilledOften'
	go test -vet=off -count=1 -timeout 60m -run '^$$' -bench 'Cancelling|WorkerMemory|BatchingAtLightLoad|BatchedEmbeddings' -benchtime 1x ./workers ./test

.PHONY: bench
bench: ## run the Go benchmarks that match BENCH (all) in PKG (all)
	go test -run '^$$' -bench '$(BENCH)' -benchmem $(PKG)

.PHONY: interop
interop: ## test with OpenAI's SDK, unmodified; needs Python with venv
	scripts/interop

.PHONY: config
config: build ## write config.yaml, docs/configuration.md and docs/actions.md again, from the code
	@mkdir -p docs dist
	bin/batchyard config print --commented >dist/config && mv dist/config config.yaml
	bin/batchyard config print --markdown >dist/config && mv dist/config docs/configuration.md
	bin/batchyard audit actions --markdown >dist/config && mv dist/config docs/actions.md

.PHONY: compose-check
compose-check: ## check docker-compose.yml
	@if docker compose version >/dev/null 2>&1; then docker compose --profile all config -q; \
	else echo "compose-check: left out, there is no docker compose here"; fi

.PHONY: clean
clean: ## remove what was built, and the data of scripts/services
	scripts/services down --wipe
	rm -rf bin dist coverage.out

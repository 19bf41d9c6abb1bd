# Every target with a comment behind ## is listed by `make help`.

GO              ?= go
GOLANGCI        ?= v2.15.0
# The version of the file VERSION and, where git can tell it, the commit as build metadata: 0.1.0+g1234567.
RELEASE         := $(shell cat VERSION)
COMMIT          := $(shell git describe --always --dirty --exclude '*' 2>/dev/null)
VERSION         ?= $(RELEASE)$(if $(COMMIT),+g$(COMMIT))
LDFLAGS         := -s -w -X main.version=$(VERSION)
# This leaves out gRPC's trace pages, which nothing here serves, and the template packages behind them. The program
# starts in nine tenths of the time.
TAGS            := grpcnotrace
# With this tag a test panics when a lock is taken out of order (internal/lockorder).
TESTTAGS        ?= lockorder
FUZZTIME        ?= 30s
TESTFLAGS       ?=
INTEGRATION_TIMEOUT ?= 20m
MATRIX          ?= .
BENCHFLAGS      ?=
BENCH           ?= Transactions|Operations|Start|Read|Writer?|Commit|Extract|Tar|Decoder|Command|Again
BENCHDIR        ?= /dev/shm
BENCHSTAT       ?= v0.0.0-20260908200009-22c9c6c9d4da
PREFIX          ?= /usr/local
UNITDIR         ?= $(PREFIX)/lib/systemd/system
DESTDIR         ?=
IMAGE           ?=
RANGE           ?=
DURATION        ?=
FS              ?=

# Go's own tarball installs it there without adding it to the PATH. The tests start go as well.
export PATH := $(PATH):/usr/local/go/bin

.DEFAULT_GOAL := help
.PHONY: build install test unit integration matrix stall kubelet race fuzz model compare linear states crashpoints bench bench-crane bench-pull bench-all lint fmt demo clean help

build: ## build bin/tank-snapshotter, one static binary
	CGO_ENABLED=0 $(GO) build -trimpath -buildvcs=false -tags '$(TAGS)' -ldflags '$(LDFLAGS)' -o bin/tank-snapshotter ./cmd/tank-snapshotter

# UNITDIR is where systemd looks for units of PREFIX. An existing config is not overwritten.
install: build ## install the program, its units for systemd and its default config below DESTDIR
	install -D -m 0755 bin/tank-snapshotter '$(DESTDIR)$(PREFIX)/bin/tank-snapshotter'
	install -d '$(DESTDIR)$(UNITDIR)' '$(DESTDIR)/etc/tank-snapshotter'
	sed 's|/usr/local/bin/|$(PREFIX)/bin/|' contrib/systemd/tank-snapshotter.service > '$(DESTDIR)$(UNITDIR)/tank-snapshotter.service'
	install -m 0644 contrib/systemd/tank-snapshotter.socket '$(DESTDIR)$(UNITDIR)/tank-snapshotter.socket'
	test -e '$(DESTDIR)/etc/tank-snapshotter/config.toml' || \
		bin/tank-snapshotter config default > '$(DESTDIR)/etc/tank-snapshotter/config.toml'

test: ## run every test that this machine can run; those that need root or mounts skip otherwise, with a reason
	@status=0; \
	$(MAKE) --no-print-directory unit || status=1; \
	$(MAKE) --no-print-directory integration || status=1; \
	exit $$status

unit: ## run the tests of the packages
	$(GO) test -tags '$(TESTTAGS)' $(TESTFLAGS) ./...

integration: build ## run the tests with a real containerd, runc and registry (the first run builds them)
	cd integration && TANK_BINARY=$(CURDIR)/bin/tank-snapshotter $(GO) test -timeout $(INTEGRATION_TIMEOUT) $(TESTFLAGS) ./...

matrix: build ## run every operation under each containerd, install and mode (some: MATRIX=2.3.7/second); writes docs/compatibility.md
	cd integration && TANK_BINARY=$(CURDIR)/bin/tank-snapshotter TANK_MATRIX='$(MATRIX)' $(GO) test -count=1 -timeout 40m -parallel 3 \
		-run '^TestMatrix$$' $(TESTFLAGS) .

stall: build ## have every call answered while the disk below the root stands still (for 10 minutes, or DURATION)
	cd integration && $(LEDGER) TANK_BINARY=$(CURDIR)/bin/tank-snapshotter TANK_TEST_STALL=$(or $(DURATION),10m) $(GO) test -count=1 -timeout 60m \
		-run '^TestStalledDisk$$' -v $(TESTFLAGS) .

kubelet: build ## follow docs/kubernetes.md with a real kubelet, whose build takes minutes
	cd integration/kubelet && CGO_ENABLED=0 $(GO) build -trimpath -o ../.bin/kubelet k8s.io/kubernetes/cmd/kubelet
	cd integration && TANK_KUBELET=$(CURDIR)/integration/.bin/kubelet $(GO) test -count=1 -timeout $(INTEGRATION_TIMEOUT) -run '^TestDocs$$' $(TESTFLAGS) .

race: ## run the tests of the packages under the race detector (needs cgo)
	CGO_ENABLED=1 $(GO) test -race -tags '$(TESTTAGS)' $(TESTFLAGS) ./...

# Executions of fuzz targets add up in the ledger. FUZZ selects targets by a regular expression, as FUZZ=idmap.
fuzz: ## run each fuzz target, and the model of layers with new images, for FUZZTIME each (FUZZ)
	TANK_MODEL_SEEDS=$$(date +%s)000,1000000 TANK_MODEL_TIME=$(FUZZTIME) $(GO) test -count=1 -timeout 0 -run '^TestModel$$' -v $(MODEL)
	$(GO) run ./internal/reliability fuzz '$(FUZZTIME)' '$(FUZZ)'

# The package of the comparison with the model of layers.
MODEL = $$(grep -rlE '^func TestModel\(' --include='*_test.go' --exclude-dir=integration . | xargs -n1 dirname)

# TANK_MODEL_SEEDS and TANK_COMPARE have the form FIRST,COUNT; each seed makes one image.
model: ## compare 20,000 random images with the model of layers (takes half an hour)
	TANK_MODEL_SEEDS=$${TANK_MODEL_SEEDS:-1,20000} TANK_MODEL_TIME=6h $(GO) test -count=1 -timeout 0 -run '^TestModel$$' -v $(MODEL)

.PHONY: damage
damage: ## damage roots at random, and find and mend it all (some: SEEDS=FIRST,COUNT)
	TANK_DAMAGE=$${SEEDS:-1,1000} $(GO) test -count=1 -timeout 0 -run '^TestDamage$$' -v .

compare: build ## compare 500 random images with umoci and containerd's overlayfs (takes minutes)
	cd integration && TANK_BINARY=$(CURDIR)/bin/tank-snapshotter TANK_COMPARE=$${TANK_COMPARE:-1,500} \
		$(GO) test -count=1 -timeout 2h -run '^TestCompare$$' -v .

# Before the command of a proof: the run is recorded in the ledger, with the code that the proof begins with.
LEDGER = TANK_LEDGER='$(CURDIR)/docs/reliability.jsonl' TANK_LEDGER_CODE="$$(cd $(CURDIR) && $(GO) run ./internal/reliability code)"

.PHONY: reliability cuts cut-histories kills restarts clients soak

# A proof runs the seeds or numbers RANGE=FIRST-LAST, for DURATION at most, on the file system FS (both, if it is empty).
# After a SIGINT or SIGTERM it records what has run. TANK_PROOF_SYNC=N repeats one cut of a history.
PROOF = cd integration && $(LEDGER) TANK_BINARY=$(CURDIR)/bin/tank-snapshotter TANK_PROOF_RANGE='$(RANGE)' TANK_PROOF_TIME='$(DURATION)' \
	TANK_PROOF_FS='$(FS)' $(GO) test -count=1 -timeout 0 -v $(TESTFLAGS)

cuts: RANGE := $(or $(RANGE),1-1000)
cuts: build ## cut the power at random moments of random work, on ext4 and XFS (RANGE, DURATION, FS)
	$(PROOF) -run '^TestPowerCuts$$' ./proof

cut-histories: RANGE := $(or $(RANGE),1-1000)
cut-histories: build ## cut the power at every sync of short histories, on ext4 and XFS (RANGE, DURATION, FS)
	$(PROOF) -run '^TestCutHistories$$' ./proof

kills: RANGE := $(or $(RANGE),1-1000)
kills: build ## kill commands, the daemon and containerd at random moments (RANGE, DURATION)
	$(PROOF) -run '^TestRandomKills$$' ./proof

restarts: RANGE := $(or $(RANGE),1-500)
restarts: build ## restart the daemon under 100 running containers (RANGE, DURATION)
	$(PROOF) -run '^TestRestarts$$' ./proof

clients: RANGE := $(or $(RANGE),1-1)
clients: build ## pull 10 images by 500 clients at once (RANGE: how often)
	$(PROOF) -run '^TestClients$$' ./proof

soak: DURATION := $(or $(DURATION),2h)
soak: build ## pull, run and collect for DURATION; in the end nothing has grown
	$(PROOF) -run '^TestSoak$$' ./proof

# Each seed makes one history for each service.
linear: build ## compare 3,000 histories of 16 clients with what one client at a time could see (RANGE, DURATION)
	$(LEDGER) TANK_BINARY='$(CURDIR)/bin/tank-snapshotter' TANK_LINEAR='$(or $(RANGE),1-1000)' TANK_PROOF_TIME='$(DURATION)' \
		$(GO) -C integration test -count=1 -timeout 3h -run '^TestLinear$$' -v .

# TANK_STATES has the form FIRST,COUNT. Each 1000 states belong to one history. -parallel is the number of workers.
TANK_STATES ?= 0,1000000
states: ## check random states that a power cut may leave of recorded histories (a million take hours; some: TANK_STATES=0,20000)
	$(LEDGER) TANK_STATES='$(TANK_STATES)' $(GO) test -count=1 -timeout 0 -parallel 8 -run '^TestCrashStates$$' -v .

crashpoints: ## end the process at every operation of the listed workloads, and check what is left (takes minutes)
	$(LEDGER) TANK_CRASHPOINTS=all $(GO) test -count=1 -timeout 0 -parallel 8 -run '^TestCrashPoints$$' -v .

reliability: ## write the table of docs/reliability.md from the recorded runs of the proofs
	$(GO) run ./internal/reliability table

bench: bin/benchstat-$(BENCHSTAT) ## run the micro-benchmarks on BENCHDIR and compare them with docs/bench/baseline.txt
	TMPDIR='$(BENCHDIR)' $(GO) test -run '^$$' -bench '^Benchmark($(BENCH))$$' -benchtime 0.3s -count 6 -timeout 30m $(TESTFLAGS) \
		$$(grep -rlE '^func Benchmark' --include='*_test.go' --exclude-dir=integration . | xargs -n1 dirname | sort -u) > bin/bench.txt || \
		{ cat bin/bench.txt; exit 1; }
	bin/benchstat-$(BENCHSTAT) docs/bench/baseline.txt bin/bench.txt

# These run as root and build the peers at the first run. BENCHFLAGS=-help explains the flags.
PULLS := cd integration && TANK_BINARY=$(CURDIR)/bin/tank-snapshotter $(GO) run ./bench

bench-crane: build ## pull a generated image of 300 MB with Tank and with crane export, tar x, in turns
	$(PULLS) -scenario crane -image '' $(BENCHFLAGS)

bench-pull: build ## pull an image (IMAGE=oci:DIR:TAG, or a generated one of 700 MB) with Tank and every peer, in turns
	$(PULLS) -scenario pull -image '$(IMAGE)' $(BENCHFLAGS)

bench-all: build ## pull in every scenario on BENCHDIR; writes the tables and charts of docs/performance.md
	$(PULLS) -scenario all -image '' -backing '$(BENCHDIR)' -write ../docs/performance.md $(BENCHFLAGS)

lint: bin/golangci-lint-$(GOLANGCI) ## run the linters (imports between packages included) and check widths and references
	$(GO) run ./internal/sourcecheck
	bin/golangci-lint-$(GOLANGCI) run --allow-parallel-runners ./...
	cd integration && ../bin/golangci-lint-$(GOLANGCI) run --allow-parallel-runners ./...

fmt: ## format the code
	$(GO) fmt ./... && cd integration && $(GO) fmt ./...

# The tools are installed from the Go module proxy into bin/. They are not tools of go.mod, so that they add nothing to the
# dependencies of the product.
bin/golangci-lint-$(GOLANGCI):
	GOBIN=$(CURDIR)/bin $(GO) install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI)
	mv bin/golangci-lint $@

bin/benchstat-$(BENCHSTAT):
	GOBIN=$(CURDIR)/bin $(GO) install golang.org/x/perf/cmd/benchstat@$(BENCHSTAT)
	mv bin/benchstat $@

demo: ## pull and run an image alone and under containerd, on private paths; leaves nothing running
	@demo/demo.sh

clean: ## remove what was built
	rm -rf bin integration/.bin

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## */\1\t/' | awk -F'\t' '{ printf "  %-12s %s\n", $$1, $$2 }'

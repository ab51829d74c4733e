# flowrun. `make demo` and `make test` need Go, gcc and make, nothing else.
GO ?= go
PYTHON ?= python3
FUZZTIME ?= 30s
ROUNDS ?= 200

.PHONY: build demo test race lint fuzz chaos bench generate generated fixtures clean

build: ## the program, in bin/
	$(GO) build -trimpath -o bin/flowrun ./cmd/flowrun

demo: build ## train on generated scans for about five minutes, end with a picture
	rm -rf runs/demo
	bin/flowrun demo runs/demo

test: ## every test
	$(GO) vet ./...
	$(GO) test ./...
	$(GO) test -race ./stages/... ./flows/...

lint: ## golangci-lint, see .golangci.yml
	golangci-lint run ./...

fuzz: ## each fuzz target for FUZZTIME
	@set -e; grep -rl --include='*_test.go' '^func Fuzz' . | xargs -n1 dirname | sort -u | while read -r dir; do \
		for f in $$(grep -rhoE '^func Fuzz[A-Za-z0-9_]*' $$dir/*_test.go | cut -c6-); do \
			echo "== $$dir $$f"; $(GO) test -run '^$$' -fuzz "^$$f$$" -fuzztime $(FUZZTIME) $$dir; \
		done; done

chaos: ## kill a run at random moments, resume it, compare every bit; ROUNDS runs
	$(GO) test ./integration -run '^TestKilledAtRandomMoments$$' -count 1 -timeout 12h -v -rounds $(ROUNDS) -seed $$(date +%s)

bench: ## every benchmark, ten times, for benchstat
	$(GO) test -run '^$$' -bench . -count 10 ./...

generate: ## the assembly kernels, from their avo generator
	$(GO) generate ./gpu/cpu/...

generated: generate ## fails where a generated file is stale
	git diff --exit-code -- gpu/cpu

fixtures: ## what PyTorch and scikit-image say, for tests; needs Debian's python3-torch and python3-skimage
	mkdir -p bin
	$(PYTHON) integration/reference/ssim_fixture.py > bin/reference.json
	mv bin/reference.json stages/metrics/testdata/reference.json
	$(PYTHON) integration/reference/generator.py gpu/vqgan/testdata
	$(PYTHON) integration/reference/gan.py gpu/vqgan/testdata
	$(PYTHON) integration/reference/weights.py write flows/testdata

clean:
	rm -rf bin runs/demo

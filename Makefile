# flowrun. `make demo` and `make test` need Go, gcc, g++ and make, nothing else.
GO ?= go
PYTHON ?= python3
FUZZTIME ?= 30s
ROUNDS ?= 200
DURATION ?= 1h
CHECKS ?= 50

# The CUDA engine wants a C compiler (and no CUDA toolkit); without one the program computes on the CPU alone.
ifneq ($(shell command -v $(CC)),)
CUDA = CGO_ENABLED=1 CGO_CFLAGS="-O2 -I$(CURDIR)/gpu/cuda/include" CGO_LDFLAGS="-L$(CURDIR)/gpu/cuda/nolib"
TAGS = -tags cuda
endif

.PHONY: build demo test race lint vuln fuzz chaos soak bench generate generated gpu-programs test-gpu rehearse-gpu ptxcheck cuda-api kernels kernels-resources fixtures clean

build: ## the program, in bin/
	$(CUDA) $(GO) build $(TAGS) -trimpath -o bin/flowrun ./cmd/flowrun

demo: build ## train on generated scans for about five minutes, end with a picture
	rm -rf runs/demo
	bin/flowrun demo runs/demo

test: ## every test
	$(GO) vet ./...
	$(GO) test ./...
	$(GO) test -race ./stages/... ./flows/...
ifdef CUDA
	$(CUDA) $(GO) vet $(TAGS) ./gpu/cuda
	$(CUDA) $(GO) test $(TAGS) ./gpu/cuda
endif

lint: ## golangci-lint, see .golangci.yml
	golangci-lint run ./...
ifdef CUDA
	$(CUDA) golangci-lint run --build-tags cuda ./gpu/cuda/...
endif

vuln: ## known vulnerabilities that the program reaches; asks https://vuln.go.dev or VULNDB=file:///a/copy
	$(GO) run golang.org/x/vuln/cmd/govulncheck@v1.9.0 $(if $(VULNDB),-db $(VULNDB)) ./cmd/flowrun

fuzz: ## each fuzz target for FUZZTIME
	@set -e; grep -rl --include='*_test.go' '^func Fuzz' . | xargs -n1 dirname | sort -u | while read -r dir; do \
		for f in $$(grep -rhoE '^func Fuzz[A-Za-z0-9_]*' $$dir/*_test.go | cut -c6-); do \
			echo "== $$dir $$f"; $(GO) test -run '^$$' -fuzz "^$$f$$" -fuzztime $(FUZZTIME) $$dir; \
		done; done

chaos: ## kill, stop, freeze and starve runs and those over NATS, at random moments; ROUNDS runs of each
	$(GO) test ./integration -run '^(TestNothingIsLost|TestScansChange)$$' -count 1 -timeout 12h -v -rounds $(ROUNDS) -seed $$(date +%s)
	$(GO) test ./integration -run '^TestKilledAtRandomMoments$$' -count 1 -timeout 12h -v -rounds $(ROUNDS) -seed $$(date +%s)
	$(GO) test ./integration -run '^TestQueueKilledAtRandomMoments$$' -count 1 -timeout 12h -v -rounds $$((2 * $(ROUNDS))) -seed $$(date +%s)

soak: ## an hour of steps: memory, goroutines and open files must not grow; DURATION=8h for a night
	$(GO) test ./integration -run '^TestSoak$$' -count 1 -timeout 0 -v -soak $(DURATION)

bench: ## every benchmark, ten times, for benchstat
	$(GO) test -run '^$$' -bench . -count 10 ./...

generate: ## the assembly kernels, from their avo generator
	$(GO) generate ./gpu/cpu/...

generated: generate ## fails where a generated file is stale
	git diff --exit-code -- gpu/cpu

gpu-programs: ## what make test-gpu runs, for a machine with a card and no compiler
	$(CUDA) $(GO) build $(TAGS) -trimpath -ldflags "-s -w" -o bin/gpu/flowrun ./cmd/flowrun
	$(CUDA) $(GO) test $(TAGS) -trimpath -ldflags "-s -w" -c -o bin/gpu/gpu.test ./gpu/cuda

test-gpu: gpu-programs ## on a machine with a card: right, the same twice, killed and gone on with, memory, speed; half an hour
	integration/gpu.sh bin/gpu runs/gpu

bin/standin.so: $(wildcard gpu/cuda/standin/* gpu/cuda/kernels/*.cu gpu/cuda/kernels/*.h gpu/cuda/include/*)
	mkdir -p bin
	g++ -Igpu/cuda/standin -std=c++17 -O3 -fno-strict-aliasing -shared -fPIC -o $@ gpu/cuda/standin/*.cc -ldl

rehearse-gpu: gpu-programs bin/standin.so ## make test-gpu with tiny sizes, on the stand-in for a driver
	rm -rf runs/rehearsal
	SIZES=tiny FLOWRUN_LIBCUDA=$(CURDIR)/bin/standin.so integration/gpu.sh bin/gpu runs/rehearsal

cuda-api: ## our cuda.h beside NVIDIA's: CUDA_H=a toolkit's cuda.h, DRIVER=a driver's libcuda.so.1; no card is needed
	FLOWRUN_CUDA_H=$(CUDA_H) FLOWRUN_DRIVER=$(DRIVER) $(CUDA) $(GO) test $(TAGS) ./gpu/cuda -run '^(TestHeader|TestLibrary)$$' -count 1 -v

ptxcheck: ## every test of the CUDA engine on the kernels' PTX, checked as compute-sanitizer would; CHECKS random shapes of each op
	FLOWRUN_STANDIN_PTX=1 $(CUDA) $(GO) test $(TAGS) ./gpu/cuda -count 1 -timeout 2h -rapid.checks $(CHECKS)
	FLOWRUN_STANDIN_PTX=1 $(CUDA) $(GO) test $(TAGS) ./integration -run '^TestCard$$' -count 1

kernels: ## the CUDA kernels' PTX; needs clang++-19
	cd gpu/cuda && $(GO) run ./internal/compile

kernels-resources: ## what NVIDIA's assembler says of them: PTXAS=ptxas, of a CUDA toolkit from 12.0 on
	$(CUDA) $(GO) test $(TAGS) ./gpu/cuda -run '^TestResources$$' -count 1 -update

fixtures: ## what PyTorch and scikit-image say, for tests; needs Debian's python3-torch and python3-skimage
	mkdir -p bin
	$(PYTHON) integration/reference/ssim_fixture.py > bin/reference.json
	mv bin/reference.json stages/metrics/testdata/reference.json
	$(PYTHON) integration/reference/generator.py gpu/vqgan/testdata
	$(PYTHON) integration/reference/quantisers.py gpu/vqgan/testdata
	$(PYTHON) integration/reference/gan.py gpu/vqgan/testdata
	$(PYTHON) integration/reference/lpips.py fixture gpu/vqgan/testdata/lpips.safetensors
	$(PYTHON) integration/reference/weights.py write flows/testdata

clean:
	rm -rf bin runs/demo

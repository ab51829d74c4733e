#!/usr/bin/env bash
# What a card has to show. Needs the NVIDIA driver, and BIN/flowrun and BIN/gpu.test of make gpu-programs, which may have been built
# elsewhere; PyTorch is timed too where python3 has it.
#
#     integration/gpu.sh BIN WORK [PART…]
#
# The parts, all of them unless some are named, each of which needs none of the others and ten minutes at most:
#
#     devices  what there is, and how long the driver takes to compile the kernels
#     ops      every op against float64 references, training steps beside the CPU engine's
#     train    the demo's steps beside the CPU's, the same twice, and killed and gone on with: the same bits
#     bench    steps of the presets: speed, share of the ceiling by kernel, memory against the plan
#     common   some of them again on a card that has kernels of its own kind, with those that every card runs
#     whole    a volume of 512 x 512 x 604, there and back
#     torch    the same model in PyTorch, eager and compiled, and what the card does at best
#
# A part that fails doesn't keep the others from running; the exit code is 1 then. WORK/results gets results.md, tables for
# docs/benchmarks.md, and what they are made of: results.jsonl and log.txt. Later calls add to them. The rest of WORK can be deleted.
#
# DEVICE=cuda:N is another device than cuda:0. SIZES=tiny makes everything small enough for the stand-in for a driver: it shows that the
# script runs, nothing else.
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
bin=$(cd "$1" && pwd)
mkdir -p "$2/results"
work=$(cd "$2" && pwd)
shift 2
[ $# -gt 0 ] || set -- devices ops train bench common whole torch
device=${DEVICE:-cuda:0}
results=$work/results
flowrun=$bin/flowrun
export FLOWRUN_LIBCUDA=${FLOWRUN_LIBCUDA:-libcuda.so.1}
cd "$work"

# What is measured, by size. model are words that every model gets; cases are name, preset, patch, micro-batch, more words.
case ${SIZES:-full} in
full)
	limit=570 steps=200 every=50 tail=20 checks=25 tests='TestEngine|TestTraining|TestArguments|TestReplay|TestOwnKernels|TestProof|TestOwnTraining|TestWeightTiles|TestOwnWeightTiles|TestNormOfWholes|TestInstructions|TestManyTransfers|TestClock|TestWaitsSleep' model=()
	scans=96,96,96 patch=64,64,32 seconds=3 large=288,288,160 whole=512,512,604 tile='[256, 256, 128]' stride='[192, 192, 96]' preset=vqgan3d
	cases='vqgan3d [256,256,128] 1
vqgan3d [256,256,128] 1 train.gan.weight=1
vqgan3d [128,128,128] 1
vqgan3d [128,128,128] 1 train.gan.weight=1
vqgan3d [256,256,128] 2
vqgan3d [256,256,128] 2 train.gan.weight=1
vqgan3d [128,128,128] 2
vqgan3d [128,128,128] 2 train.gan.weight=1
vqgan3d [256,256,128] 1 train.gan.weight=1 train.memory=22GiB
lean24g [256,256,128] 1
lean24g [256,256,128] 1 train.gan.weight=1'
	torch=(--seconds 540)
	;;
tiny)
	limit=570 steps=4 every=2 tail=4 checks=1 tests='TestArguments|TestReplay' model=(model.hidden=4 model.downsample=[2,2,1] model.embedding=4 model.codes=16 model.groups=4)
	scans=12,10,8 patch=8,8,4 seconds=0.1 large=12,10,8 whole=20,12,8 tile='[8, 8, 4]' stride='[6, 6, 4]' preset=lean24g
	cases='vqgan3d [8,8,4] 1
vqgan3d [8,8,4] 2 train.gan.weight=1 train.gan.channels=4 train.gan.layers=1'
	torch=(--seconds 300 --preset demo --patch 16 16 8 --batch 1 --steps 1 --channels 4 --layers 1)
	;;
*)
	echo "gpu.sh: SIZES=$SIZES (want full or tiny)" >&2
	exit 2
	;;
esac

say() { echo "== $*"; }
# note PART JSON keeps a measurement.
note() { printf '{"part":"%s","device":"%s",%s}\n' "$1" "$device" "$2" >>"$results/results.jsonl"; }
# since START is the seconds that have passed.
since() { awk -v a="$1" -v b="$(date +%s.%N)" 'BEGIN { printf "%.2f", b - a }'; }
# python with a PyTorch that sees a card, or with any where sizes are tiny; fails where there is none.
python() {
	local p
	for p in ${PYTHON:-python3 /usr/bin/python3}; do
		"$p" -c "import sys, torch; sys.exit(not torch.cuda.is_available() and '${SIZES:-full}' != 'tiny')" 2>/dev/null && echo "$p" && return
	done
	return 1
}

devices() {
	"$flowrun" --version
	! command -v nvidia-smi >/dev/null || nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm,clocks.max.mem --format=csv
	"$flowrun" devices
	"$flowrun" devices | grep -q "^$device " || { echo "there is no $device" >&2; return 1; }
	local name start cold
	name=$("$flowrun" devices | sed -n "s/^$device *//p")
	demo
	start=$(date +%s.%N)
	CUDA_CACHE_DISABLE=1 "$flowrun" --quiet demo.yaml run.dir=cold train.device="$device" train.max_steps=1 "${model[@]}" || return
	cold=$(since "$start")
	"$flowrun" --quiet demo.yaml run.dir=fill train.device="$device" train.max_steps=1 "${model[@]}" || return
	start=$(date +%s.%N)
	"$flowrun" --quiet demo.yaml run.dir=warm train.device="$device" train.max_steps=1 "${model[@]}" || return
	echo "one step of the demo, from start to end: $cold s with all kernels compiled, $(since "$start") s from the driver's cache"
	note devices "\"name\":\"$name\",\"version\":\"$("$flowrun" --version | tr -d '"')\",\"cold_seconds\":$cold,\"warm_seconds\":$(since "$start")"
}

ops() {
	local start
	start=$(date +%s.%N)
	"$bin/gpu.test" -test.run "$tests" -test.timeout 9m -rapid.checks="$checks" -test.v >ops.log 2>&1
	local rc=$?
	grep -E '^(---|    ---|PASS|FAIL|ok|panic)|_test.go:' ops.log | grep -v -- '--- PASS: .*/' | tail -60
	[ $rc = 0 ] && note ops "\"tests\":$(grep -c -- '--- PASS' ops.log),\"checks\":$checks,\"seconds\":$(since "$start")"
	return $rc
}

# demo writes demo.yaml and its scans.
demo() {
	[ -d scans ] || "$flowrun" phantom scans --count 4 --size "$scans" >/dev/null
	cat >demo.yaml <<-YAML
		run: {dir: run, seed: 1234}
		model: {preset: demo}
		flow:
		  - read:       {scans: [scans]}
		  - tile:       {mode: random, patch: [$patch]}
		  - shuffle:    {volumes: 2}
		  - batch:      {size: 2}
		  - train:      {epochs: 1000, max_steps: $steps, lr: 5e-4, warmup: $((steps / 10)), validate: {share: 0.25, every: 100000}}
		  - checkpoint: {every: $every, keep: 3}
	YAML
}

# learn NAME DEVICE trains the demo and leaves its raw weights.
learn() {
	"$flowrun" --quiet demo.yaml run.dir="$1" train.device="$2" "${model[@]}" 2>"$1.log" || { tail -3 "$1.log"; return 1; }
	"$flowrun" export "$1/checkpoints/last.safetensors" "$1.safetensors" --weights raw >/dev/null
}

# loss NAME is the mean of the last steps' reconstruction loss.
loss() { awk -F, -v n="$tail" 'NR > 1 && $3 != "" { l[k++] = $3 } END { for (i = k > n ? k - n : 0; i < k; i++) { s += l[i]; m++ } print s / m }' "$1/metrics.csv"; }

train() {
	rm -rf a b c d ./*.safetensors
	demo
	local start took run
	start=$(date +%s.%N)
	learn a "$device" || return
	took=$(since "$start")
	learn b "$device" || return
	cmp a.safetensors b.safetensors || { echo "a second run has other bits"; return 1; }
	echo "$steps steps in $took s, with start and validation; the same again: the same bits"

	"$flowrun" --quiet demo.yaml run.dir=c train.device="$device" "${model[@]}" 2>c.log &
	run=$!
	until ls c/checkpoints/step-*.safetensors >/dev/null 2>&1 || ! kill -0 $run 2>/dev/null; do sleep 0.01; done
	kill -9 $run 2>/dev/null || { echo "the run was over before it could be killed"; return 1; }
	wait $run 2>/dev/null || true
	learn c "$device" || return
	grep -q '"event":"resume"' c/log.jsonl && cmp a.safetensors c.safetensors || { echo "killed and gone on with, it has other bits"; return 1; }
	echo "killed and gone on with: the same bits"

	learn d cpu || return
	echo "mean loss of the last $tail steps: $(loss a) on $device, $(loss d) on the CPU"
	note train "\"steps\":$steps,\"seconds\":$took,\"loss\":$(loss a),\"cpu_loss\":$(loss d),\"same_again\":true,\"same_resumed\":true"
	awk -v a="$(loss a)" -v d="$(loss d)" 'BEGIN { exit !(a < 1.1 * d + 0.01 && d < 1.1 * a + 0.01) }' || { echo "they differ"; return 1; }
}

# config NAME PRESET PATCH BATCH writes NAME.yaml.
config() {
	[ -d large ] || "$flowrun" phantom large --count 2 --size "$large" >/dev/null
	cat >"$1.yaml" <<-YAML
		run: {dir: $1-run}
		model: {preset: $2}
		flow:
		  - read:       {scans: [large]}
		  - tile:       {mode: random, patch: $3}
		  - batch:      {size: $4}
		  - train:      {device: "$device", epochs: 1000, max_steps: 1, validate: {share: 0}, gan: {start: 0}}
		  - checkpoint: {every: 1}
	YAML
}

# measure NAME WORDS… keeps what flowrun bench finds, and shows it.
measure() {
	"$flowrun" bench "$1.yaml" "${@:2}" "${model[@]}" --json --seconds "$seconds" >bench.json || return
	local words="${*:2}"
	note bench "\"name\":\"$1\",\"words\":\"${words}${FLOWRUN_OWN_KERNELS:+ FLOWRUN_OWN_KERNELS=$FLOWRUN_OWN_KERNELS}\",\"figures\":$(tr -d '\n' <bench.json)"
}

bench() {
	local p size n words failed=0
	while read -r p size n words; do
		echo "-- $p, patches of $size, micro-batch $n $words"
		config "$p" "$p" "$size" "$n"
		# shellcheck disable=SC2086 # words are several
		measure "$p" $words || failed=1
	done <<<"$cases"
	return $failed
}

common() {
	"$flowrun" devices | grep "^$device " | grep -q 'capability 9\.0' || { echo "$device has no kernels of its own: left out"; return 0; }
	export FLOWRUN_OWN_KERNELS=off
	cases=$(head -n 4 <<<"$cases")
	bench
}

whole() {
	[ -d whole ] || "$flowrun" phantom whole --count 1 --size "$whole" --gz >/dev/null
	rm -rf "$preset-run" whole-out
	config $preset $preset "$tile" 1
	"$flowrun" --quiet $preset.yaml "${model[@]}" || return
	cat >whole.yaml <<-YAML
		run: {dir: whole-run}
		flow:
		  - read:  {scans: [whole]}
		  - tile:  {patch: $tile, stride: $stride}
		  - batch: {size: 1}
		  - infer: {checkpoint: $preset-run/checkpoints/last.safetensors, device: "$device"}
		  - merge
		  - write: {dir: whole-out}
	YAML
	local start took
	start=$(date +%s.%N)
	"$flowrun" --quiet whole.yaml || return
	took=$(since "$start")
	echo "one volume of $whole, from .nii.gz to .nii.gz: $took s"
	"$flowrun" bench whole.yaml --json --seconds "$seconds" >bench.json || return
	note whole "\"size\":[$whole],\"seconds\":$took,\"figures\":$(tr -d '\n' <bench.json)"
}

torch() {
	local p on=cuda
	p=$(python) || { echo "no PyTorch that sees the card: left out"; return 0; }
	"$p" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' || on=cpu
	"$p" -u "$here/reference/bench_torch.py" --device $on "${torch[@]}" | tee torch.jsonl
	local rc=$?
	while read -r line; do note torch "\"torch\":$line"; done <torch.jsonl
	return $rc
}

# A part runs in a process group of its own, so that it can be ended.
if [ -n "${GPU_PART:-}" ]; then
	set -e
	"$GPU_PART"
	exit
fi
failed=0
for part in "$@"; do
	say "$part" | tee -a "$results/log.txt"
	start=$(date +%s.%N)
	GPU_PART=$part timeout -k 10 "$limit" "$here/$(basename "$0")" "$bin" "$work" 2>&1 | tee -a "$results/log.txt"
	rc=${PIPESTATUS[0]}
	[ "$rc" = 0 ] || { failed=1 && say "$part FAILED, exit $rc (124: its $limit s were over)" | tee -a "$results/log.txt"; }
	note "$part" "\"exit\":$rc,\"took\":$(since "$start")"
done
for p in ${PYTHON:-python3 /usr/bin/python3}; do
	"$p" "$here/reference/card_report.py" "$results/results.jsonl" >"$results/results.md" && break
done
say "results are in $results"
exit $failed

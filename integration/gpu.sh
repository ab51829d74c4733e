#!/usr/bin/env bash
# What a card has to show: run in a folder of its own on the machine that has it. Takes bin/flowrun and bin/gpu.test of make gpu-programs, which may
# have been built elsewhere, and needs the NVIDIA driver alone; PyTorch is timed too where python3 has it with CUDA.
#
#     integration/gpu.sh BIN WORK [cuda:N]
#
# It stops at the first thing that is wrong. Timings go to WORK/results.txt; the rest of WORK can be deleted.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
bin=$(cd "$1" && pwd)
mkdir -p "$2"
work=$(cd "$2" && pwd)
device=${3:-cuda:0}
results=$work/results.txt
flowrun=$bin/flowrun
driver=${FLOWRUN_LIBCUDA:-libcuda.so.1}
steps=${STEPS:-200}
checks=${CHECKS:-100}
cd "$work"
: >"$results"
say() { echo "== $*" | tee -a "$results"; }

say "devices"
"$flowrun" devices | tee -a "$results"
"$flowrun" devices | grep -q "^$device " || { echo "there is no $device" >&2; exit 1; }

say "every op against float64 references, training steps beside the CPU engine's"
FLOWRUN_LIBCUDA=$driver "$bin/gpu.test" -test.run 'TestEngine|TestTraining|TestArguments' -rapid.checks="$checks" | tail -3 | tee -a "$results"

# train NAME DEVICE trains the demo for $steps steps and leaves its raw weights.
train() {
	"$flowrun" --quiet demo.yaml run.dir="$1" train.device="$2" 2>"$1.log"
	"$flowrun" export "$1/checkpoints/last.safetensors" "$1.safetensors" --weights raw >/dev/null
}
# loss NAME is the mean of the last 20 steps' reconstruction loss.
loss() { awk -F, 'NR > 1 && $3 != "" { l[n++] = $3 } END { s = 0; for (i = n - 20 > 0 ? n - 20 : 0; i < n; i++) { s += l[i]; k++ } print s / k }' "$1/metrics.csv"; }

rm -rf scans a b c d *.safetensors
"$flowrun" phantom scans --count 4 --size 96,96,96 >/dev/null
cat >demo.yaml <<YAML
run: {dir: run, seed: 1234}
model: {preset: demo}
flow:
  - read:       {scans: [scans]}
  - tile:       {mode: random, patch: [64, 64, 32]}
  - shuffle:    {volumes: 2}
  - batch:      {size: 2}
  - train:      {epochs: 1000, max_steps: $steps, lr: 5e-4, warmup: 20, validate: {share: 0.25, every: 100000}}
  - checkpoint: {every: 50, keep: 3}
YAML

say "$steps steps on $device and on the CPU"
train a "$device"
train d cpu
echo "loss $(loss a) on $device, $(loss d) on the CPU" | tee -a "$results"
awk -v a="$(loss a)" -v d="$(loss d)" 'BEGIN { exit !(a < 1.1 * d + 0.01 && d < 1.1 * a + 0.01) }' || { echo "they differ" >&2; exit 1; }

say "the same run again: the same bits"
train b "$device"
cmp a.safetensors b.safetensors

say "killed in the middle and gone on with: the same bits"
"$flowrun" --quiet demo.yaml run.dir=c train.device="$device" 2>c.log &
run=$!
until [ -n "$(ls c/checkpoints/step-*.safetensors 2>/dev/null)" ] || ! kill -0 $run 2>/dev/null; do sleep 0.05; done
kill -9 $run 2>/dev/null || true
wait $run 2>/dev/null || true
train c "$device"
cmp a.safetensors c.safetensors

say "memory: what the card shows against the plan"
"$flowrun" phantom large --count 2 --size 288,288,160 >/dev/null
cat >large.yaml <<YAML
run: {dir: large-run, memory: ${MEMORY:-24GiB}}
model: {preset: lean24g}
flow:
  - read:  {scans: [large]}
  - tile:  {mode: random, patch: ${PATCH:-[256, 256, 128]}}
  - batch: {size: 1}
  - train: {device: "$device", epochs: 1000, max_steps: 20, validate: {share: 0}}
YAML
"$flowrun" plan large.yaml >plan.txt 2>&1 || { cat plan.txt >&2; exit 1; }
grep '^arena' plan.txt | tee -a "$results"
if command -v nvidia-smi >/dev/null; then
	before=$(nvidia-smi --query-gpu=memory.used --format=csv,noheader,nounits -i "${device#cuda:}")
	"$flowrun" --quiet large.yaml 2>large.log &
	run=$!
	peak=0
	while kill -0 $run 2>/dev/null; do
		now=$(nvidia-smi --query-gpu=memory.used --format=csv,noheader,nounits -i "${device#cuda:}")
		[ "$now" -gt "$peak" ] && peak=$now
		sleep 0.2
	done
	wait $run
	echo "peak $((peak - before)) MiB, with the driver's context and 40 MiB for copies and tables" | tee -a "$results"
fi

say "speed"
for preset in ${PRESETS:-vqgan3d lean24g}; do
	for patch in ${PATCHES:-[256,256,128] [128,128,128]}; do
		for n in 1 2; do
			for gan in 0 1; do
				echo "$preset, patches of $patch, micro-batch $n, gan $gan" | tee -a "$results"
				"$flowrun" bench large.yaml model.preset=$preset tile.patch="$patch" batch.size=$n train.gan.weight=$gan train.gan.start=0 2>&1 | tee -a "$results" || true # it may not fit
			done
		done
	done
done

say "whole volumes of 512 x 512 x 604"
if [ -z "${SMALL:-}" ]; then
	"$flowrun" phantom whole --count 1 --size 512,512,604 >/dev/null
	cat >whole.yaml <<YAML
run: {dir: whole-run}
flow:
  - read:  {scans: [whole]}
  - tile:  {patch: [256, 256, 128], stride: [192, 192, 96]}
  - batch: {size: 1}
  - infer: {checkpoint: large-run/checkpoints/last.safetensors, device: "$device"}
  - merge
  - write: {dir: whole-out}
YAML
	[ -e large-run/checkpoints/last.safetensors ] || "$flowrun" --quiet large.yaml 2>large.log
	time "$flowrun" --quiet whole.yaml 2>&1 | tee -a "$results"
fi

if [ -z "${SMALL:-}" ] && python3 -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null; then
	say "PyTorch on the same card"
	python3 "$here/reference/bench_torch.py" | tee -a "$results"
fi
say "all as it should be; timings in $results"

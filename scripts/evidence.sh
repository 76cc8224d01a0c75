#!/usr/bin/env bash
# Makes the reports under docs/reports, the first two with tel-nano:
#   scripts/evidence.sh ot-mini WORKSPACE              the whole ladder; half an hour on two cores
#   scripts/evidence.sh ot-full WORKSPACE DATASET      the real benchmark in a folder; an hour
#   scripts/evidence.sh smollm2-135m WORKSPACE DATASET the same with a real model; three hours
# Resumable: finished stages are reused. For times worth reading nothing else may run.
set -euo pipefail
cd "$(dirname "$0")/.."
name=${1:?ot-mini, ot-full or smollm2-135m} home=${2:?a workspace} dataset=${3:-ot-mini}
bin=.venv/bin
there=(--workspace "$home" --dataset "$dataset" --quiet)

if [ "$name" = ot-mini ]; then
  # Every type of both formats, merged models, importance matrices, adapters of other types.
  $bin/tel-train "${there[@]}" --category all
  $bin/tel-export "${there[@]}" --adapter all --quant F16,Q8_0,Q6_K,Q5_K_M,Q4_K_M,Q3_K_M,Q2_K
  $bin/tel-export "${there[@]}" --adapter all --format onnx --quant fp32,int8,int4,dynamic-int8
  $bin/tel-export "${there[@]}" --adapter all --merge --quant Q8_0,Q4_K_M
  $bin/tel-export "${there[@]}" --adapter all --imatrix pooled --quant Q4_K_M,Q3_K_M,Q2_K \
    --out "$home/bundles/tel-nano-imatrix"
  for type in F32 Q8_0; do
    $bin/tel-export "${there[@]}" --adapter all --adapter-quant $type --quant Q4_K_M \
      --out "$home/bundles/tel-nano-adapters"
  done
  $bin/tel-eval "${there[@]}" --ladder --baselines
  $bin/tel-eval "${there[@]}" --ladder --bundle "$home/bundles/tel-nano-imatrix"
  $bin/tel-eval "${there[@]}" --ladder --bundle "$home/bundles/tel-nano-adapters"
  $bin/tel-eval "${there[@]}" --quant F16,Q4_K_M --rotations
  $bin/tel-eval "${there[@]}" --quant F16,Q4_K_M --part train
elif [ "$name" = smollm2-135m ]; then
  # Few questions are trained on, and few are asked, of the long prompts fewer still: a model of
  # 135M parameters answers four a second here, and there are eight files of it.
  there+=(--backbone smollm2-135m)
  train() { $bin/tel-train "${there[@]}" --recipe paper --category "$1" --max-train "$2" --epochs "$3"; }
  train oranbench,srsranbench,teletables 300 3
  train teleqna 300 1
  train sixg_bench 100 2
  train 3gpp_tsg 150 2
  # Q4_1 is the published file itself.
  $bin/tel-export "${there[@]}" --adapter all --quant F16,Q8_0,Q4_0,Q4_K_M,Q4_1
  $bin/tel-export "${there[@]}" --adapter all --format onnx --quant int8,dynamic-int8,int4
  short=oranbench,srsranbench,teleqna,sixg_bench,teletables
  $bin/tel-eval "${there[@]}" --category $short --limit 100 --no-rotations --baselines
  $bin/tel-eval "${there[@]}" --category 3gpp_tsg --limit 20 --no-rotations
  $bin/tel-eval "${there[@]}" --category $short --limit 100 --quant F16 --part train
  $bin/tel-eval "${there[@]}" --category $short --limit 60 --quant F16 --rotations
else
  # tel-nano learns little from real questions whatever it is given, so the training is capped,
  # and each question is shown in its own order only: prompts here are up to ten times as long.
  $bin/tel-train "${there[@]}" --category all --recipe paper --max-train 1000 --epochs 2
  $bin/tel-export "${there[@]}" --adapter all --quant F16,Q8_0,Q4_K_M
  $bin/tel-eval "${there[@]}" --baselines
  $bin/tel-eval "${there[@]}" --quant F16 --part train
  $bin/tel-eval "${there[@]}" --quant F16 --rotations
fi

# The questions of a data set and their answers are their owners'; those of ot-mini are ours.
hidden=()
[ "$name" = ot-mini ] || hidden=(--no-texts --no-questions)
$bin/tel-report "${there[@]}" --published "${hidden[@]}" --out "docs/reports/$name"

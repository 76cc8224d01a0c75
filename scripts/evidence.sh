#!/usr/bin/env bash
# Makes docs/reports/NAME: `scripts/evidence.sh NAME WORKSPACE [DATASET] [tel-train options]`.
# The whole ladder of tel-nano on a data set: every type of both formats, bare and adapted, merged
# models, adapters of other types, importance matrices, other orders of the options, the seen part.
# Resumable. For times worth reading nothing else may run; half an hour for ot-mini on two cores.
set -euo pipefail
cd "$(dirname "$0")/.."
name=${1:?NAME} home=${2:?WORKSPACE} dataset=${3:-ot-mini}
shift $(($# < 3 ? $# : 3))
bin=.venv/bin
there=(--workspace "$home" --dataset "$dataset" --quiet)
bundles=$home/bundles
gguf=F16,Q8_0,Q6_K,Q5_K_M,Q4_K_M,Q3_K_M,Q2_K

$bin/tel-train "${there[@]}" --category all "$@"
$bin/tel-export "${there[@]}" --adapter all --quant $gguf
$bin/tel-export "${there[@]}" --adapter all --format onnx --quant fp32,int8,int4,dynamic-int8
$bin/tel-export "${there[@]}" --adapter all --merge --quant Q8_0,Q4_K_M
$bin/tel-export "${there[@]}" --adapter all --imatrix pooled --quant Q4_K_M,Q3_K_M,Q2_K \
  --out "$bundles/tel-nano-imatrix"
for type in F32 Q8_0; do
  $bin/tel-export "${there[@]}" --adapter all --adapter-quant $type --quant Q4_K_M \
    --out "$bundles/tel-nano-adapters"
done

$bin/tel-eval "${there[@]}" --ladder --baselines
$bin/tel-eval "${there[@]}" --ladder --bundle "$bundles/tel-nano-imatrix"
$bin/tel-eval "${there[@]}" --ladder --bundle "$bundles/tel-nano-adapters"
$bin/tel-eval "${there[@]}" --quant F16,Q4_K_M --rotations
$bin/tel-eval "${there[@]}" --quant F16,Q4_K_M --part train

# Without texts: the questions of a data set are their owners'.
$bin/tel-report "${there[@]}" --published --no-texts --out "docs/reports/$name"

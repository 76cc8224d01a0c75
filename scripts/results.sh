#!/usr/bin/env bash
# Makes the tables of docs/results.md and docs/onnx.md: `scripts/results.sh [ot-full folder]`.
# Resumable: finished stages are reused. About 10 minutes for ot-mini, 30 for the real benchmark.
set -euo pipefail
cd "$(dirname "$0")/.."
bin=.venv/bin

$bin/tel-demo --category all --workspace results-workspace/ot-mini
# The ONNX types beside the GGUF types of docs/results.md: the table of docs/onnx.md.
$bin/tel-export --workspace results-workspace/ot-mini --adapter all \
  --format onnx --quant fp32,int8,int4,dynamic-int8
$bin/tel-eval --workspace results-workspace/ot-mini
$bin/tel-report --workspace results-workspace/ot-mini

if [ $# -gt 0 ]; then
  # tel-nano learns little from real questions whatever it is given, so the training is capped,
  # and each question is shown in its own order only: prompts here are up to ten times as long.
  $bin/tel-demo --category all --workspace results-workspace/ot-full \
    --dataset "$1" --recipe paper --max-train 1000 --epochs 2
fi

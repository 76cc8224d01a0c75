#!/usr/bin/env bash
# Everything for the reference paper's Tables 1 and 2 and Figures 1 to 3, on a GPU machine with
# access to the hub: scripts/reproduce_paper.sh [--dry-run] [--rehearse DATASET_FOLDER] [WORKSPACE]
#
# Resumable: every step reuses what is finished. --rehearse does the same steps on tel-nano in place
# of the three backbones, capped, so that the path can be tried on two CPU cores.
set -euo pipefail
cd "$(dirname "$0")/.."

dry= rehearse= home=paper-workspace
while [ $# -gt 0 ]; do
  case $1 in
    --dry-run) dry=1 ;;
    --rehearse) rehearse=${2:?--rehearse needs the folder of a data set}; shift ;;
    -*) echo "reproduce_paper.sh: no option $1" >&2; exit 2 ;;
    *) home=$1 ;;
  esac
  shift
done

bin=.venv/bin
backbones=(llama-3.2-1b qwen3-0.6b exaone-4.0-1.2b)
dataset=ot-full
train=(--score) sweep=(--preset rank)
if [ -n "$rehearse" ]; then
  backbones=(tel-nano) dataset=$rehearse
  train+=(--recipe paper --max-train 200 --epochs 1)
  sweep+=(--set recipe=paper --set max-train=100 --set epochs=1)
fi

step=0
run() { # what it is for, hours, command
  step=$((step + 1))
  printf '%2d. %-52s %6s h  %s\n' "$step" "$1" "$2" "${*:3}"
  [ -n "$dry" ] || "${@:3}"
}

# Hours at most. Training: 2.22 M tokens of ot-full's train part and 4 floating-point operations a
# weight and token (forward, and backward to the activations), ten epochs, at TFLOPS sustained. Scoring:
# tokens of the part (0.74 M unseen, 2.22 M seen) at RATE tokens/s (tel-bench) for each variant.
tflops=${TFLOPS:-100} rate=${RATE:-1000}
# The large models beside them; EXAONE-3.5's code is in its own repository, which is never run: score
# it at an endpoint or from a GGUF file (tel-eval --reference).
large() { case $1 in llama*) echo meta-llama/Llama-3.1-8B-Instruct ;; qwen*) echo Qwen/Qwen3-8B ;; esac; }
weights() { case $1 in llama*) echo 1.24 ;; qwen*) echo 0.60 ;; exaone*) echo 1.28 ;; *) echo 0.004 ;; esac; }
train_hours() { # backbone, million tokens an epoch
  awk "BEGIN { printf \"%.1f\", 10 * $2e6 * 4 * $(weights "$1")e9 / ($tflops * 1e12) / 3600 + 0.05 }"
}
score_hours() { # million tokens, variants
  awk "BEGIN { printf \"%.1f\", $1e6 * $2 / $rate / 3600 }"
}

for backbone in "${backbones[@]}"; do
  there=(--workspace "$home" --backbone "$backbone" --dataset "$dataset")
  run "$backbone: six adapters (Table 2, Figures 1, 2)" "$(train_hours "$backbone" 2.22)" \
    $bin/tel-train "${there[@]}" --category all "${train[@]}"
  run "$backbone: bundle" 0.2 \
    $bin/tel-export "${there[@]}" --adapter all --quant F16,Q8_0,Q4_K_M
  run "$backbone: unseen part, before and after" "$(score_hours 0.74 4)" \
    $bin/tel-eval "${there[@]}" --baselines
  if [ -n "$(large "$backbone")" ]; then
    run "$backbone: its large model (Figures 1, 2)" "$(score_hours 0.74 1)" \
      $bin/tel-eval --workspace "$home" --dataset "$dataset" --category all \
      --reference "$(large "$backbone")"
  fi
  run "$backbone: seen part (Table 2)" "$(score_hours 2.22 2)" \
    $bin/tel-eval "${there[@]}" --part train --quant F16
  run "$backbone: report" 0.0 $bin/tel-report "${there[@]}" --out "$home/reports/$backbone"
  run "$backbone: ranks 4 to 32 on 3gpp_tsg (Figure 3)" "$(train_hours "$backbone" 2.56)" \
    $bin/tel-sweep "${there[@]}" --category 3gpp_tsg --name "rank-$backbone" "${sweep[@]}"
done
# The tables and figures are of all backbones; the rest of the report is of one.
run "tables and figures" 0.0 $bin/tel-report --workspace "$home" --backbone "${backbones[0]}" \
  --published --out "$home/paper"

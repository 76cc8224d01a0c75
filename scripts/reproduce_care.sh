#!/usr/bin/env bash
# The customer-support study on a GPU machine with access to the hub: data, sixteen trainings, export,
# evaluation, judges: scripts/reproduce_care.sh [--dry-run] [--rehearse] [--from WHERE]
# [--backbone NAME]... [--panel FILE] [WORKSPACE]
#
# Resumable: every step reuses what is finished. --from is tel-generate's (templates, or the URL of an
# endpoint that writes; add SEND=1 where scenarios may leave this machine). --panel names who judges
# (docs/judging.md; without it two stand-ins). Without --backbone it is
# qwen2.5-3b, the paper's, whose licence allows non-commercial research alone, and after it those that
# may be deployed. --rehearse does the same steps on a tiny model, capped, for two CPU cores.
set -euo pipefail
cd "$(dirname "$0")/.."

dry= rehearse= from=templates home=care-workspace panel= backbones=()
while [ $# -gt 0 ]; do
  case $1 in
    --dry-run) dry=1 ;;
    --rehearse) rehearse=1 ;;
    --from) from=${2:?--from needs templates, a URL or a GGUF file}; shift ;;
    --backbone) backbones+=("${2:?--backbone needs a name}"); shift ;;
    --panel) panel=${2:?--panel needs a file}; shift ;;
    -*) echo "reproduce_care.sh: no option $1" >&2; exit 2 ;;
    *) home=$1 ;;
  esac
  shift
done

bin=.venv/bin
generate=(--from "$from" ${SEND:+--send})
sweep=(--preset care) evaluate=() export=(--quant F16,Q8_0,Q4_K_M)
[ ${#backbones[@]} -gt 0 ] || backbones=(qwen2.5-3b qwen2.5-1.5b qwen3-1.7b smollm2-135m)
if [ -n "$rehearse" ]; then
  # tel-nano has no chat template, so it is the smallest that has one.
  backbones=(smollm2-135m)
  generate+=(--each 1 --limit 60)
  sweep+=(--set max-train=8 --set epochs=1)
  evaluate+=(--limit 3 --max-tokens 24)
  export=(--quant F16,Q4_0)
fi
dataset=$home/care compared=${rehearse:+3}
compared=${compared:-40}

step=0
run() { # what it is for, hours, command
  step=$((step + 1))
  printf '%2d. %-58s %6s h  %s\n' "$step" "$1" "$2" "${*:3}"
  [ -n "$dry" ] || "${@:3}"
}

# Hours at most. Training: sixteen runs over 3 M tokens three times, 6 operations a weight and token, at
# TFLOPS sustained. Evaluation: 2,880 answers of 80 tokens for each of eight variants at RATE tokens/s.
tflops=${TFLOPS:-100} rate=${RATE:-400}
weights() { case $1 in *3b) echo 3.1 ;; *1.5b) echo 1.5 ;; *1.7b) echo 1.7 ;; *) echo 0.14 ;; esac; }
licence() { case $1 in qwen2.5-3b) echo "non-commercial research only" ;; *) echo "may be deployed" ;; esac; }
train_hours() { awk "BEGIN { printf \"%.1f\", 16 * 3 * 3e6 * 6 * $(weights "$1")e9 / ($tflops * 1e12) / 3600 + 0.1 }"; }
eval_hours() { awk "BEGIN { printf \"%.1f\", 2880 * 80 * 8 / $rate / 3600 }"; }

run "dialogues" 0.1 $bin/tel-generate --out "$dataset" "${generate[@]}"
for backbone in "${backbones[@]}"; do
  there=(--workspace "$home" --backbone "$backbone")
  run "$backbone ($(licence "$backbone")): sixteen runs" "$(train_hours "$backbone")" \
    $bin/tel-sweep "${there[@]}" --category care --dataset "$dataset" --name "care-$backbone" \
    "${sweep[@]}"
  made=
  # Of a dry run on a new machine there are no runs to name yet.
  for run in "$home/sweeps/care-$backbone/runs"/*; do
    own=(--workspace "$run" --backbone "$backbone") bundle=$run/bundles/$backbone
    if [ -n "$made" ] && [ -z "$dry" ] && [ ! -e "$bundle" ]; then
      # The backbone's file is the same in all: it is linked, and tel-export makes the adapter alone.
      mkdir -p "$bundle" && cp -rl "$made"/* "$bundle"
    fi
    run "$backbone: bundle of ${run##*/}" 0.1 $bin/tel-export "${own[@]}" --adapter care --quant Q8_0
    made=$bundle
    run "$backbone: its answers" 0.1 $bin/tel-eval "${own[@]}" --category care \
      --dataset "$dataset" --no-bare "${evaluate[@]}"
  done
  run "$backbone: judges" 1 $bin/tel-judge --workspace "$home" --sweep "care-$backbone" \
    --dataset "$dataset" ${panel:+--panel "$panel"} ${SEND:+--send}
  run "$backbone: the study's report" 0.1 $bin/tel-report --workspace "$home" \
    --study "care-$backbone" --dataset "$dataset"
  run "$backbone: the adapter of the recipe" "$(train_hours "$backbone")" \
    $bin/tel-train "${there[@]}" --category care --dataset "$dataset" --recipe care \
    ${rehearse:+--max-train 8 --epochs 1}
  run "$backbone: bundle" 0.2 $bin/tel-export "${there[@]}" --adapter care "${export[@]}"
  run "$backbone: PEFT and the exported file" 0.3 \
    $bin/python scripts/compare_care.py "${there[@]}" --dataset "$dataset" \
    --limit "$compared"
  for part in test unseen; do
    run "$backbone: answers, $part part" "$(eval_hours)" \
      $bin/tel-eval "${there[@]}" --category care --dataset "$dataset" --part "$part" \
      "${evaluate[@]}"
  done
done

#!/usr/bin/env bash
# Everything that waits for a GPU, in one call: scripts/on_gpu.sh [--rehearse] [OUT]
#
# For a machine with one GPU, no network and ten minutes, that has this repository, a usual PyTorch
# image and the folder gpu-pack, which `scripts/on_gpu.sh --pack DATASET` makes beforehand where there
# is a package index: wheels of what the image may lack, the questions as JSONL, and SmolLM2's file in
# pieces of 50 MB. Pieces that were carried apart are found in gpu-pack all the same.
#
# What is finished when the time ends is in OUT: small JSON files, which scripts/gpu_tables.py makes
# tables of. --rehearse does the same steps on a CPU with tiny settings.
set -euo pipefail
cd "$(dirname "$0")/.."
pack=gpu-pack
# Everything of the train extra but torch, without which an image is none for this.
wheels=(transformers==5.23.0 peft==0.21.2 gguf==0.19.0 accelerate tokenizers safetensors
  huggingface_hub hf-xet filelock tqdm regex pyyaml packaging psutil numpy fsspec httpx httpcore
  h11 anyio idna certifi sniffio typer shellingham rich click markdown-it-py mdurl pygments
  typing_extensions requests urllib3 charset-normalizer)

if [ "${1:-}" = --pack ]; then
  dataset=${2:?--pack needs the folder of the data set}
  mkdir -p $pack/wheels
  for wheel in "${wheels[@]}"; do
    .venv/bin/pip download --quiet --no-deps --dest $pack/wheels "$wheel" ||
      echo "on_gpu.sh: $wheel is not in the package index; the image may have it" >&2
  done
  .venv/bin/python scripts/gpu_work.py pack --dataset "$dataset" --out $pack
  du -sh $pack
  exit
fi

rehearse=
[ "${1:-}" = --rehearse ] && rehearse=--rehearse && shift
out=${1:-gpu-out}
mkdir -p "$out"
python=.venv/bin/python
[ -x $python ] || python=python3
if [ -d $pack/wheels ] && ! $python -c "import transformers, peft, gguf" 2>/dev/null; then
  for wheel in $pack/wheels/*.whl; do
    # What does not fit this Python the image has to have itself.
    $python -m pip install --quiet --no-index --no-deps --target $pack/site "$wheel" || true
  done
fi
export PYTHONPATH="src:scripts:$PWD/$pack/site${PYTHONPATH:+:$PYTHONPATH}" HF_HUB_OFFLINE=1
# In the order of what is missed most; each has its share of the ten minutes.
run() { # seconds, name, command
  echo "on_gpu.sh: $2" >&2
  timeout --signal=INT "$1" "${@:3}" || echo "on_gpu.sh: $2 ended early ($?); what was finished is kept" >&2
}
steps=(--rounds 2 --steps 20)
[ -n "$rehearse" ] && steps=(--small)
run 200 "the training step at the real shapes" \
  $python scripts/bench_train.py "${steps[@]}" --work "$out/work" --out "$out/step.md" --quiet
run 340 "SmolLM2 on all categories, both recipes, and the ranks of Figure 3" \
  $python scripts/gpu_work.py train $rehearse --pack $pack --out "$out"
rm -rf "$out/work"

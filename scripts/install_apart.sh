#!/usr/bin/env bash
# Makes .venv-NAME, an environment of its own for tests: `scripts/install_apart.sh NAME`.
# optimum-onnx pins transformers below 4.58, which .venv is beyond; harnesses bring 80 packages each.
set -euo pipefail
cd "$(dirname "$0")/.."

name=${1:-}
first=()
case $name in
  optimum)
    # Torch is installed first and alone: with a range pip would pull gigabytes of CUDA packages.
    first=(torch==2.13.0)
    packages=(
      'optimum-onnx[onnxruntime]==0.1.0' optimum==2.1.0 transformers==4.57.6
      onnx==1.23.2 onnxruntime==1.31.1 'safetensors>=0.8'
    )
    ;;
  # Neither needs torch: the models are behind the service.
  lm-eval) packages=('lm_eval[api]==0.4.13' datasets==5.2.0) ;;
  inspect) packages=(inspect_ai==0.3.285 openai==3.57.0) ;;
  # It imports pyOpenSSL, which it does not declare.
  signing) packages=(model-signing==1.1.1 pyOpenSSL) ;;
  *)
    echo "tel-edge: no environment '$name'; there are: optimum lm-eval inspect signing" >&2
    exit 2
    ;;
esac
python=${PYTHON:-python3}
stamp=.venv-$name/.installed

if [ -e "$stamp" ] && [ ! scripts/install_apart.sh -nt "$stamp" ]; then exit 0; fi

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
  echo "tel-edge: Python 3.11 or newer is needed, $("$python" --version) is here; set PYTHON" >&2
  exit 2
}

[ -x ".venv-$name/bin/python" ] || "$python" -m venv ".venv-$name"
pip="env PIP_DISABLE_PIP_VERSION_CHECK=1 .venv-$name/bin/python -m pip --quiet"

echo "tel-edge: installing ${first[*]:+${first[*]} }${packages[0]} in .venv-$name" >&2
if [ ${#first[@]} -gt 0 ]; then $pip install "${first[@]}"; fi
$pip install "${first[@]}" "${packages[@]}" 'pytest>=8'
touch "$stamp"

#!/usr/bin/env bash
# Makes .venv-optimum, where the tests of tests/with_optimum run: `scripts/install_optimum.sh`.
# It is apart because optimum-onnx pins transformers below 4.58, which .venv is beyond.
set -euo pipefail
cd "$(dirname "$0")/.."

# Torch is installed first and alone: with a range pip would pull gigabytes of CUDA packages.
torch=torch==2.13.0
packages=(
  'optimum-onnx[onnxruntime]==0.1.0' optimum==2.1.0 transformers==4.57.6
  onnx==1.23.2 onnxruntime==1.31.1 'safetensors>=0.8' 'pytest>=8'
)
python=${PYTHON:-python3}
stamp=.venv-optimum/.installed

if [ -e "$stamp" ] && [ ! scripts/install_optimum.sh -nt "$stamp" ]; then exit 0; fi

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
  echo "tel-edge: Python 3.11 or newer is needed, $("$python" --version) is here; set PYTHON" >&2
  exit 2
}

[ -x .venv-optimum/bin/python ] || "$python" -m venv .venv-optimum
pip="env PIP_DISABLE_PIP_VERSION_CHECK=1 .venv-optimum/bin/python -m pip --quiet"

echo "tel-edge: installing $torch and ${packages[0]} in .venv-optimum" >&2
$pip install "$torch"
$pip install "$torch" "${packages[@]}"
touch "$stamp"

#!/usr/bin/env bash
# Makes what bench_peers.py compares tel-edge with: `scripts/install_peers.sh DIR [NAME...]`.
# openvino, ort-genai and ctranslate2 get an environment each, DIR/NAME, with what turns a Hugging
# Face folder into the engine's format. llama.cpp is compiled in DIR/llama.cpp/build from the sources
# of the pinned llama-cpp-python, so that all of llama.cpp is of one version; JOBS=1 uses one core.
set -euo pipefail
cd "$(dirname "$0")/.."

dir=${1:?"usage: scripts/install_peers.sh DIR [NAME...]"}
shift
[ $# -gt 0 ] || set -- llama.cpp openvino ort-genai ctranslate2
python=${PYTHON:-python3}
engine=$(sed -n 's/^llama = \["\([^"]*\)".*/\1/p' pyproject.toml)
torch=$(sed -n 's/^train = \["\(torch==[^"]*\)".*/\1/p' pyproject.toml)
mkdir -p "$dir"
dir=$(cd "$dir" && pwd)
export PIP_DISABLE_PIP_VERSION_CHECK=1

environment() {
  local name=$1
  shift
  if [ -e "$dir/$name/.installed" ]; then return; fi
  echo "tel-edge: installing $1 in $dir/$name" >&2
  [ -x "$dir/$name/bin/python" ] || "$python" -m venv "$dir/$name"
  local pip="$dir/$name/bin/python -m pip --quiet"
  # Torch alone and pinned: a range would pull gigabytes of CUDA packages.
  $pip install "$torch"
  $pip install "$torch" "$@"
  # optimum-intel brings a torchvision for another torch, and openvino reports its use.
  [ "$name" != openvino ] || $pip uninstall --yes torchvision openvino-telemetry
  touch "$dir/$name/.installed"
}

programs() {
  local home=$dir/llama.cpp
  if [ ! -d "$home/source" ]; then
    echo "tel-edge: fetching the sources of $engine" >&2
    mkdir -p "$home/sdist" "$home/.source.partial"
    "$python" -m pip --quiet download --no-binary :all: --no-deps --dest "$home/sdist" "$engine"
    tar -xzf "$home"/sdist/*.tar.gz --strip-components=3 -C "$home/.source.partial" \
      --wildcards '*/vendor/llama.cpp/*'
    mv "$home/.source.partial" "$home/source"
  fi
  if ! command -v cmake >/dev/null || ! command -v ninja >/dev/null; then
    [ -x "$home/tools/bin/cmake" ] || "$python" -m venv "$home/tools"
    "$home/tools/bin/python" -m pip --quiet install cmake ninja
    PATH=$home/tools/bin:$PATH
  fi
  echo "tel-edge: compiling llama-server and llama-perplexity in $home/build" >&2
  cmake -S "$home/source" -B "$home/build" -G Ninja -DCMAKE_BUILD_TYPE=Release \
    -DGGML_NATIVE=ON -DLLAMA_CURL=OFF -DBUILD_SHARED_LIBS=OFF -DLLAMA_BUILD_TESTS=OFF \
    -DLLAMA_BUILD_EXAMPLES=OFF >"$home/build.log"
  cmake --build "$home/build" --parallel "${JOBS:-$(nproc)}" \
    --target llama-server llama-perplexity >>"$home/build.log"
}

for name in "$@"; do
  case $name in
    llama.cpp) programs ;;
    openvino) environment openvino openvino-genai==2026.4.1.0 'optimum-intel[openvino]==2.2.0' ;;
    ort-genai)
      environment ort-genai onnxruntime-genai==0.18.0 onnxruntime==1.32.0 onnx==1.23.2 onnx-ir \
        transformers==5.24.0
      ;;
    ctranslate2) environment ctranslate2 ctranslate2==4.8.5 transformers==5.24.0 ;;
    *)
      echo "tel-edge: no peer '$name'; there are: llama.cpp openvino ort-genai ctranslate2" >&2
      exit 2
      ;;
  esac
done

#!/usr/bin/env bash
# Makes .venv with everything that tel-edge needs: `scripts/install.sh [extras]`.
# Compiled wheels are kept in the user's cache folder, so that the engine is built once.
set -euo pipefail
cd "$(dirname "$0")/.."

extras=${1:-llama,train,export,report}
python=${PYTHON:-python3}
stamp=.venv/.installed-$extras
engine=$(sed -n 's/^llama = \["\([^"]*\)".*/\1/p' pyproject.toml)
torch=$(sed -n 's/^train = \["\(torch==[^"]*\)".*/\1/p' pyproject.toml)

if [ -e "$stamp" ] && [ ! pyproject.toml -nt "$stamp" ]; then exit 0; fi

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
  echo "tel-edge: Python 3.11 or newer is needed, $("$python" --version) is here; set PYTHON" >&2
  exit 2
}
command -v c++ > /dev/null || {
  echo "tel-edge: a C/C++ compiler is needed to build llama.cpp (Debian: apt install g++)" >&2
  exit 2
}

[ -x .venv/bin/python ] || "$python" -m venv .venv
pip="env PIP_DISABLE_PIP_VERSION_CHECK=1 .venv/bin/python -m pip --quiet"

# A build for this processor is wrong for another one that shares the home folder.
cpu=$( { uname -sm; grep -m1 -E '^(flags|Features)' /proc/cpuinfo 2> /dev/null || true; } | cksum | cut -d' ' -f1)
abi=$(.venv/bin/python -c 'import sys; print(sys.implementation.cache_tag)')
wheels=${TEL_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/tel-edge}/wheels/$abi-$cpu
mkdir -p "$wheels"

# Torch alone and pinned: a range would pull gigabytes of CUDA packages.
case ",$extras," in *,train,*)
  echo "tel-edge: installing $torch" >&2
  $pip install "$torch"
  ;;
esac

if ! ls "$wheels"/llama_cpp_python-"${engine#*==}"-*.whl > /dev/null 2>&1; then
  echo "tel-edge: compiling $engine from source; 4 to 8 minutes on two cores, kept in $wheels" >&2
  # No multimodal tools: they are not used and take a third of the time.
  CMAKE_ARGS="${CMAKE_ARGS:-} -DLLAVA_BUILD=OFF" CMAKE_BUILD_PARALLEL_LEVEL=$(nproc 2> /dev/null || echo 2) \
    $pip wheel --no-deps --wheel-dir "$wheels" "$engine"
fi

echo "tel-edge: installing tel-edge[$extras]; some minutes, a gigabyte" >&2
$pip install "$wheels"/llama_cpp_python-"${engine#*==}"-*.whl
$pip install --editable ".[$extras]"
touch "$stamp"

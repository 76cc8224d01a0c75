#!/usr/bin/env bash
# Installs the browser that the tests of pages drive: `scripts/install_chromium.sh`.
# Elsewhere than on Debian or Ubuntu set TEL_CHROMIUM to the path of one that is there.
set -euo pipefail

if [ -x "${TEL_CHROMIUM:-/usr/bin/chromium}" ]; then exit 0; fi

if ! command -v apt-get >/dev/null || [ "$(id -u)" -ne 0 ]; then
  echo "tel-edge: apt-get and root are needed to install chromium;" \
    "install one yourself and set TEL_CHROMIUM to its path" >&2
  exit 2
fi

echo "tel-edge: installing chromium" >&2
apt-get update -qq
DEBIAN_FRONTEND=noninteractive apt-get install -qq --yes --no-install-recommends \
  chromium fonts-dejavu-core >/dev/null

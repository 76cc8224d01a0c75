#!/bin/sh
# Asks the questions of a file or of stdin, a line of JSON each: `ask.sh [FILE]`.
# Answers come in the same order. TEL_URL is where the service is, TEL_KEY its key with --keys.
set -eu
url=${TEL_URL:-http://127.0.0.1:8080}
# Not before the service is ready; curl waits as long as Retry-After says where there is one.
curl -fsS --retry 30 --retry-delay 1 --retry-connrefused -o /dev/null "$url/readyz"
exec curl -sS --fail-with-body --retry 5 -H 'Content-Type: application/x-ndjson' \
  -H "Authorization: Bearer ${TEL_KEY:-}" --data-binary "@${1:--}" "$url/v1/answer"

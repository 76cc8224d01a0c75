#!/usr/bin/env python3
"""An rApp in short: alarms in, as questions from a file that grows or stdin; decisions out.

A line is a question of `/v1/answer`, such as alarms.ndjson has. Where the service is busy (429) or
not there yet (503) it waits as long as `Retry-After` says; TEL_KEY is the key of a service with
`--keys`. Python's standard library only.
"""

import argparse
import contextlib
import json
import os
import sys
import time
import urllib.error
import urllib.request


def lines(file, follow):
    """Yield the lines of a file; with `follow` look each second for more."""
    part = ""
    while (more := file.readline()) or follow:
        part += more
        if part.endswith("\n"):
            yield part
            part = ""
        elif not more:
            time.sleep(1)
    yield part


def ask(url, row, patience):
    """Return the answer, or an error as `{"error": {...}}`; `patience` is in seconds."""
    key = {"Authorization": f"Bearer {os.environ.get('TEL_KEY', '')}"}
    request = urllib.request.Request(f"{url}/v1/answer", json.dumps(row).encode(), key)
    until = time.monotonic() + patience
    while True:
        try:
            with urllib.request.urlopen(request, timeout=patience) as reply:
                return json.load(reply)
        except urllib.error.HTTPError as error:
            wait, told = float(error.headers.get("Retry-After", "inf")), json.load(error)
        except OSError as error:
            wait, told = 1, {"error": {"message": f"{url}: {error}"}}
        if time.monotonic() + wait > until:
            return told
        time.sleep(wait)


def main():
    """Ask for each line, and print what to do."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("file", nargs="?", type=argparse.FileType(), default=sys.stdin)
    options.add_argument("--follow", action="store_true", help="wait for more lines of the file")
    options.add_argument("--url", default="http://127.0.0.1:8080")
    options.add_argument("--category", default="auto", help="whose adapter (the router chooses)")
    options.add_argument("--timeout-ms", type=int, default=5000, help="later is too late")
    options.add_argument("--patience", type=float, default=60, help="seconds with a busy service")
    options.add_argument("--sure", type=float, default=0.5, help="below it a person decides")
    args = options.parse_args()
    for line in filter(str.strip, lines(args.file, args.follow)):
        row = {"category": args.category, "timeout_ms": args.timeout_ms}
        try:
            row |= json.loads(line)
        except (ValueError, TypeError) as error:
            print(f"no decision: {line.strip()[:40]!r} is no question: {error}", flush=True)
            continue
        made = ask(args.url, row, args.patience)
        if "error" in made:
            print(f"{row.get('id')}: no decision: {made['error']['message']}", flush=True)
            continue
        share = made["probabilities"][made["index"]]
        what = made["answer"] if share >= args.sure else f"ask a person ({made['answer']}?)"
        print(f"{row.get('id')}: {what} ({share:.2f} by {made['adapter']})", flush=True)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()

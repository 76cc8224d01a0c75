"""The examples work as they are: against the service, and by what others publish of their forms."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import fake_engine as fake
import pytest
from conftest import ROOT

for name in ("starlette", "uvicorn", "msgspec", "prometheus_client", "httpx"):
    pytest.importorskip(name)
import test_serve  # noqa: E402

from tel_edge.runtime.commands import serve  # noqa: E402

EXAMPLES = ROOT / "examples"
RAPP = [sys.executable, str(EXAMPLES / "rapp.py")]
CHOICES = ["w", "x", "y", "z"]


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A service with an engine that knows the answers with an adapter, and only then."""
    fake.bundle(folder := tmp_path_factory.mktemp("examples") / "bundle")
    process, where = test_serve.started(folder)
    yield where
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)


def row(text: str, **of: Any) -> str:
    return json.dumps({"id": text, "question": text, "choices": CHOICES, **of}) + "\n"


def said(*command: Any, **of: Any) -> list[str]:
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, check=True, timeout=60, **of
    )
    return done.stdout.splitlines()


def fetched(url: str) -> str:
    with urllib.request.urlopen(url, timeout=20) as reply:
        return str(reply.read().decode())


def test_the_rapp_decides_where_it_is_sure(address: str, tmp_path: Path) -> None:
    lines = [row("gold 2"), row("nobody knows"), "\n", row("gold 1", category="none"), "[1]\n"]
    (tmp_path / "alarms").write_text("".join(lines))
    command = [*RAPP, "--url", address, "--category", "oranbench"]
    sure, unsure, none, wrong = said(*command, tmp_path / "alarms")
    assert sure == "gold 2: y (0.70 by oranbench)"
    assert unsure == "nobody knows: ask a person (w?) (0.25 by oranbench)"
    assert none.startswith("gold 1: no decision: no model 'none'")
    assert wrong.startswith("no decision: '[1]' is no question: ")
    # A line without an end, and from stdin.
    assert said(*command, input=lines[0].rstrip()) == [sure]


def test_the_rapp_follows_a_file_that_grows(address: str, tmp_path: Path) -> None:
    file = tmp_path / "alarms"
    file.write_text(row("gold 1") + row("gold 2")[:9])
    command = [*RAPP, "--follow", "--url", address, "--category", "oranbench", str(file)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline().startswith("gold 1: x")
        with file.open("a") as more:
            more.write(row("gold 2")[9:])
        assert process.stdout.readline().startswith("gold 2: y")
        process.kill()


@pytest.mark.parametrize("status", [429, 503])
def test_the_rapp_comes_again_when_it_is_told_to(status: int) -> None:
    answer = {"answer": "x", "index": 1, "probabilities": [0.1, 0.9], "adapter": "oranbench"}
    given: list[dict[str, Any]] = []

    class Busy(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            given.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200 if len(given) == 3 else status)
            if len(given) < 3:
                self.send_header("retry-after", "0" if len(given) == 1 else "1")
            self.end_headers()
            busy = {"error": {"message": "busy"}}
            self.wfile.write(json.dumps(answer if len(given) == 3 else busy).encode())

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Busy) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        command = [*RAPP, "--url", url, "--timeout-ms", "700"]
        assert said(*command, input=row("a")) == ["a: x (0.90 by oranbench)"]
        assert given == [{**json.loads(row("a")), "category": "auto", "timeout_ms": 700}] * 3
        # Who is told to come later than it may wait is not kept waiting.
        given.clear()
        assert said(*command, "--patience", 0.5, input=row("a")) == ["a: no decision: busy"]
        server.shutdown()


@pytest.mark.skipif(not shutil.which("curl"), reason="needs curl")
def test_curl_asks_a_file_or_what_it_is_given(address: str) -> None:
    env = os.environ | {"TEL_URL": address}
    ask = EXAMPLES / "ask.sh"
    found = [json.loads(line) for line in said(ask, EXAMPLES / "alarms.ndjson", env=env)]
    assert [one["id"] for one in found] == ["alarm-1", "alarm-2", "alarm-3"]
    assert all(one["adapter"] == "oranbench" for one in found)
    [one] = said(ask, input=row("gold 3", category="oranbench"), env=env)
    assert json.loads(one)["answer"] == "z"


def test_the_openai_client(address: str) -> None:
    pytest.importorskip("openai")
    env = os.environ | {"TEL_URL": address}
    models, text, choice, _ = said(sys.executable, EXAMPLES / "openai_client.py", env=env)
    assert models == "models: tel-nano oranbench"
    assert text.startswith("completion: ")
    assert choice.split()[1] in "ABC"


def test_prometheus_finds_what_the_rules_ask_for(address: str) -> None:
    yaml = pytest.importorskip("yaml")
    from prometheus_client.parser import text_string_to_metric_families

    said(*RAPP, "--url", address, "--category", "oranbench", input=row("gold 2"))
    config = yaml.safe_load((EXAMPLES / "prometheus.yml").read_text())
    [job] = config["scrape_configs"]
    families = [*text_string_to_metric_families(fetched(address + job["metrics_path"]))]
    there = {sample.name for family in families for sample in family.samples}
    [rules] = [yaml.safe_load((EXAMPLES / file).read_text()) for file in config["rule_files"]]
    asked = {found for group in rules["groups"] for rule in group["rules"]
             for found in re.findall(r"\b(?:tel_\w+|up)\b", rule["expr"])}  # fmt: skip
    assert len(asked) >= 4
    assert asked - {"up"} <= there
    assert job["static_configs"] == [{"targets": ["127.0.0.1:8080"]}]
    assert job["job_name"] in "".join(r["expr"] for g in rules["groups"] for r in g["rules"])


# The xApp onboarder's own schema (o-ran-sc/ric-plt-appmgr, commit
# b8bdc7bd6931461b7a237ab2cad278bc87ba110e, in xapp_orchestrater/dev/xapp_onboarder:
# xapp_onboarder/helm_controller/xapp_schema.py); what it needs without saying so is in
# xApp_builder.py and resources/xapp-std beside it: name, version, containers, messaging.ports.
PROBE = {"exec", "initialDelaySeconds", "periodSeconds"}
XAPP = {"name", "version", "containers", "livenessProbe", "readinessProbe", "messaging"}
SEMVER = r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)"
REGISTRY = r"[A-Za-z0-9.-]+\.[A-Za-z]+(:\d+)?"
# The model management service (o-ran-sc/aiml-fw-awmf-modelmgmtservice, commit
# d9abcc30958806101a7a205a83ffcf0c9d1c1ca8, models/modelInfo.go): its names, and those it validates.
REGISTRATION: Mapping[str, Any] = {
    "modelId": {"modelName": str, "modelVersion": str},
    "description": str,
    "modelInformation": {
        "metadata": {"author": str, "owner": str},
        "inputDataType": str,
        "outputDataType": str,
        "targetEnvironment": [{"platformName": str, "environmentType": str, "dependencyList": str}],
    },
}


def test_the_xapp_descriptor(address: str) -> None:
    made = json.loads((EXAMPLES / "xapp-descriptor.json").read_text())
    assert {*made} == XAPP
    assert re.fullmatch(SEMVER, made["version"])
    for one in made["containers"]:
        assert {*one} == {"name", "image", "command", "args"}
        assert {*one["image"]} == {"registry", "name", "tag"}
        assert re.fullmatch(REGISTRY, one["image"]["registry"])
        # The chart leaves out the comma behind every argument that is as the last one.
        assert one["args"].count(one["args"][-1]) == 1
    # Probes are those of the last container, and its port is on the pod's own loopback.
    assert made["messaging"] == {"ports": []}
    last = made["containers"][-1]
    port = serve.parser().parse_args(last["args"]).port
    assert last["command"] == ["tel-serve"]
    for probe in (made["livenessProbe"], made["readinessProbe"]):
        assert {*probe} == PROBE
        *curl, url = probe["exec"]["command"]
        assert curl == ["curl", "-fsS"]
        where = f"http://127.0.0.1:{port}"
        assert url.startswith(where)
        fetched(url.replace(where, address))
    rapp = made["containers"][0]
    assert Path(rapp["command"][-1]).name == "rapp.py"
    subprocess.run([*RAPP, *rapp["args"][:-1], "--help"], check=True, capture_output=True)


def test_the_model_registration(address: str) -> None:
    from tel_edge.runtime.serving.front import Question

    made = json.loads((EXAMPLES / "aimlfw-model.json").read_text())
    same_form(made, REGISTRATION)
    about = made["modelInformation"]
    assert {*about["inputDataType"].split(",")} <= {*Question.__struct_fields__}
    answer = test_serve.asked(address, "gold 1")
    assert {*about["outputDataType"].split(",")} <= {*answer}


def same_form(value: Any, form: Any) -> None:
    """Every name is there and no other; a text is not empty."""
    if isinstance(form, Mapping):
        assert {*value} == {*form}
        for key, inner in form.items():
            same_form(value[key], inner)
    elif isinstance(form, list):
        assert value
        for one in value:
            same_form(one, form[0])
    else:
        assert isinstance(value, form)
        assert value

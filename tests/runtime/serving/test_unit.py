"""The systemd unit: what is in it, and what systemd says of it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import fake_engine as fake
import fake_machines as fakes
import pytest
from conftest import ROOT

for name in ("starlette", "uvicorn", "msgspec", "prometheus_client"):
    pytest.importorskip(name)

from tel_edge.runtime.commands import serve  # noqa: E402
from tel_edge.runtime.device.needs import FRONT, Need  # noqa: E402
from tel_edge.runtime.serving import unit  # noqa: E402
from tel_edge.runtime.serving.unit import Service  # noqa: E402

Command = Callable[..., tuple[int, str, str]]
# Llama-3.2-1B in Q4_K_M with one adapter, as `needs` has it.
EXAMPLE = Service(
    "llama-3.2-1b Q4_K_M", "/opt/tel-edge/bin/tel-serve", ("--bundle", "/opt/tel-edge/bundle"),
    unit.memory(Need("gguf", "Q4_K_M", 386_910_208, 807_700_000)),
)  # fmt: skip
# The most that `systemd-analyze security` may find exposed, of 10.
EXPOSED = 2.0


def test_the_file_in_the_repository_is_the_one_that_is_made() -> None:
    assert (ROOT / "deploy/tel-serve.service").read_text() == unit.unit(EXAMPLE)


def settings(text: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        name, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            found.setdefault(name, []).append(value)
    return found


def made(run: Command, folder: Path, *argv: str) -> dict[str, list[str]]:
    code, out, _ = run(serve.parser(), serve.work, "--unit", "--bundle", str(folder), *argv)
    assert code == 0
    return settings(out)


def test_the_memory_is_that_of_the_bundle(tmp_path: Path, run_command: Command) -> None:
    fakes.large_bundle(tmp_path / "bundle")
    found = made(run_command, tmp_path / "bundle")
    short = made(run_command, tmp_path / "bundle", "--context", "1024")
    most, less = (int(one["MemoryMax"][0]) for one in (found, short))
    assert most - less == pytest.approx(1.25 * 3072 * 16 * 8 * 128 * 2, abs=2e6)
    assert less > FRONT
    assert found["Type"] == ["notify"]
    assert int(found["TimeoutStopSec"][0]) > serve.DRAIN


def test_options_are_handed_on_as_systemd_reads_them(tmp_path: Path, run_command: Command) -> None:
    folder = tmp_path / "a 100% bundle"
    fake.bundle(folder)
    more = ["--port", "9000", "--threads", "2", "-k", "8", "--guard", "--allow-host", "edge"]
    found = made(run_command, folder, *more, "--allow-host", "box")
    [start] = found["ExecStart"]
    quoted = str(folder).replace("%", "%%")
    assert f'--bundle "{quoted}"' in start
    for part in ("--port 9000", "--threads 2", "-k 8", "--guard", "--allow-host edge",
                 "--allow-host box", "--admin %t/tel-serve/admin"):  # fmt: skip
        assert part in start
    assert "--unit" not in start
    assert found["IPAddressAllow"] == ["localhost"]
    own = made(run_command, folder, "--admin", "/run/other")
    assert own["ExecStart"][0].endswith("--admin /run/other")


def test_keys_are_handed_on_by_systemd_and_a_gpu_has_its_devices(
    tmp_path: Path, run_command: Command
) -> None:
    fake.bundle(tmp_path / "bundle")
    for name in ("keys", "cert", "key"):
        (tmp_path / name).touch()
    found = made(
        run_command, tmp_path / "bundle", "--host", "0.0.0.0", "--gpu-layers", "-1",
        "--keys", str(tmp_path / "keys"), "--tls-cert", str(tmp_path / "cert"),
        "--tls-key", str(tmp_path / "key"),
    )  # fmt: skip
    assert found["LoadCredential"] == [
        f"keys:{tmp_path}/keys", f"tls-cert:{tmp_path}/cert", f"tls-key:{tmp_path}/key"
    ]  # fmt: skip
    assert "--keys %d/keys --tls-cert %d/tls-cert --tls-key %d/tls-key" in found["ExecStart"][0]
    assert "IPAddressDeny" not in found
    assert "PrivateDevices" not in found
    assert found["SupplementaryGroups"] == ["video render"]


def test_a_bundle_in_a_home_is_told(run_command: Command, monkeypatch: pytest.MonkeyPatch,
                                    tmp_path: Path) -> None:  # fmt: skip
    fake.bundle(tmp_path / "bundle")
    monkeypatch.setattr(shutil, "which", lambda *_, **__: "/home/somebody/.venv/bin/tel-serve")
    code, out, err = run_command(
        serve.parser(), serve.work, "--unit", "--bundle", str(tmp_path / "bundle")
    )
    assert code == 0
    assert settings(out)["ProtectHome"] == ["read-only"]
    assert err.startswith("warning: the service sees neither homes nor /tmp; put /home/somebody")


def test_a_link_is_followed_at_each_start(run_command: Command, tmp_path: Path) -> None:
    fake.bundle(tmp_path / "version")
    (tmp_path / "current").symlink_to("version")
    found = made(run_command, tmp_path / "current")
    assert f"--bundle {tmp_path}/current" in found["ExecStart"][0]


ANALYZE = shutil.which("systemd-analyze")


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """A unit whose program is there."""
    path = tmp_path / "tel-serve.service"
    program = tmp_path / "tel-serve"
    program.symlink_to(sys.executable)
    text = unit.unit(EXAMPLE)
    path.write_text(text.replace("/opt/tel-edge/bin/tel-serve", str(program)))
    return path


@pytest.mark.skipif(ANALYZE is None, reason="needs systemd-analyze")
def test_systemd_has_nothing_to_say_of_it(written: Path) -> None:
    done = subprocess.run(
        [str(ANALYZE), "verify", "--man=no", str(written)], capture_output=True, text=True,
        check=False, env={**os.environ, "SYSTEMD_LOG_LEVEL": "warning"},
    )  # fmt: skip
    ours = [line for line in done.stderr.splitlines() if "tel-serve" in line]
    assert ours == []
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(ANALYZE is None, reason="needs systemd-analyze")
def test_it_is_little_exposed(written: Path) -> None:
    done = subprocess.run(
        [str(ANALYZE), "security", "--offline=true", "--no-pager", str(written)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    found = re.search(r"exposure level for \S+: ([\d.]+)", done.stdout)
    if found is None:
        pytest.skip(f"no verdict from this systemd: {done.stderr.strip()[:80]}")
    assert float(found[1]) <= EXPOSED, done.stdout

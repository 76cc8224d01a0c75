"""The systemd unit of a service, with the memory that its bundle needs.

Sources: systemd.exec(5), systemd.resource-control(5), systemd.service(5). Not used are
MemoryDenyWriteExecute, since llama.cpp's log comes through a callback that ctypes makes as code,
and ProcSubset=pid, since processor and memory are read from /proc.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tel_edge.runtime.device.needs import FRONT, Need

# Of memory above what was computed: a decode of another kind, the allocator.
MARGIN = 1.25
# Seconds: for the first measurement and a slow disk, above what a drain takes, and in which
# something that the engine has begun has an end.
START, STOP, WATCHDOG = 900, 70, 120
ADMIN = "%t/tel-serve/admin"


@dataclass(frozen=True)
class Service:
    """`command` is the program, a path, and `options` what it is given beside the admin socket.

    `local` says that this machine alone asks it, `gpu` that it needs devices, `home` that files of
    it lie in a home folder, `admin` that the options name a socket. `credentials` are files by
    option, which systemd hands on to a user who could not read them.
    """

    title: str
    command: str
    options: Sequence[str]
    memory: int
    local: bool = True
    gpu: bool = False
    home: bool = False
    admin: bool = False
    credentials: Mapping[str, str] = field(default_factory=dict)


def given(
    args: argparse.Namespace, default: argparse.Namespace, without: Sequence[str]
) -> list[str]:
    """Return the options by which arguments differ from the default ones; paths are absolute."""
    words: list[str] = []
    for name, value in vars(args).items():
        if name in without or value == getattr(default, name):
            continue
        option = f"-{name}" if len(name) == 1 else f"--{name.replace('_', '-')}"
        for one in value if isinstance(value, list) else [value]:
            text = str(one.absolute() if isinstance(one, Path) else one)
            words += [option] if one is True else [option, text]
    return words


def memory(need: Need) -> int:
    """Return the bytes that a service of that file is to have at most."""
    return round(MARGIN * (need.own + FRONT)) + need.mapped


def unit(of: Service) -> str:
    """Return the unit as text."""
    admin = [] if of.admin else ["--admin", ADMIN]
    handed = [word for name in of.credentials for word in (f"--{name}", f"%d/{name}")]
    start = " ".join([*map(_word, (of.command, *of.options)), *handed, *admin])
    lines = [
        f"# {of.title}; made by: tel-serve --unit",
        "# /etc/systemd/system/tel-serve.service",
        "[Unit]",
        "Description=tel-edge answers over HTTP",
        "After=network.target",
        "",
        "[Service]",
        "Type=notify",
        f"ExecStart={start}",
        "Restart=on-failure",
        "RestartSec=5",
        "# Ended by SIGTERM while it measured its first start.",
        "SuccessExitStatus=143",
        f"TimeoutStartSec={START}",
        f"TimeoutStopSec={STOP}",
        "# Fed as long as all that the engine begins has an end.",
        f"WatchdogSec={WATCHDOG}",
        "",
        "# What the bundle needs and a quarter; the weights' pages count.",
        f"MemoryMax={-(-of.memory // 1_000_000)}000000",
        "# An engine that is killed for memory is started again by the service.",
        "OOMPolicy=continue",
        "",
        "DynamicUser=yes",
        *(f"LoadCredential={name}:{path}" for name, path in of.credentials.items()),
        "RuntimeDirectory=tel-serve",
        "StateDirectory=tel-serve",
        "CacheDirectory=tel-serve",
        "Environment=TEL_PROFILE=%S/tel-serve/profile.json TEL_CACHE=%C/tel-serve",
        "UMask=0077",
        "ProtectSystem=strict",
        f"ProtectHome={'read-only' if of.home else 'yes'}",
        "PrivateTmp=yes",
        *_devices(of.gpu),
        "ProtectClock=yes",
        "ProtectControlGroups=yes",
        "ProtectHostname=yes",
        "ProtectKernelLogs=yes",
        "ProtectKernelModules=yes",
        "ProtectKernelTunables=yes",
        "ProtectProc=invisible",
        "NoNewPrivileges=yes",
        "CapabilityBoundingSet=",
        "LockPersonality=yes",
        "RestrictNamespaces=yes",
        "RestrictRealtime=yes",
        "RestrictSUIDSGID=yes",
        "RemoveIPC=yes",
        "SystemCallArchitectures=native",
        "SystemCallFilter=@system-service",
        "SystemCallFilter=~@privileged @resources",
        "SystemCallErrorNumber=EPERM",
        "# Threads are put on cores, and give way to others.",
        "SystemCallFilter=sched_setaffinity sched_setscheduler setpriority",
        "RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6",
        *(["IPAddressDeny=any", "IPAddressAllow=localhost"] if of.local else []),
        "",
        "[Install]",
        "WantedBy=multi-user.target",
    ]
    return "\n".join(lines) + "\n"


def _devices(gpu: bool) -> list[str]:
    if gpu:
        return ["# The GPU's devices belong to these groups.", "SupplementaryGroups=video render"]
    return ["PrivateDevices=yes", "PrivateUsers=yes"]


def _word(text: str) -> str:
    """Return a word as systemd reads it back: specifiers and variables are none."""
    plain = text.replace("%", "%%").replace("$", "$$")
    if re.fullmatch(r"[\w@%+=:,./$-]+", plain):
        return plain
    return '"' + plain.replace("\\", "\\\\").replace('"', '\\"') + '"'

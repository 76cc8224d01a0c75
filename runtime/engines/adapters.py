"""The adapters of one backbone in memory: loaded when they are asked for, one in use at a time.

While an engine runs, others may be added and taken away: a service does so when a bundle changes.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tel_edge.runtime.engines.alone import alone
from tel_edge.runtime.engines.engine import LoraFile
from tel_edge.runtime.errors import InputError


class Adapters(ABC):
    """Adapters by name. At most `most` stay loaded, None any number.

    One thread at a time has the `lock`, and nobody after it is `shut`.
    """

    def __init__(self, files: Mapping[str, LoraFile] | None, most: int | None) -> None:
        # Held by whatever closes it too, which a method that is under way has to end before.
        self.lock = threading.RLock()
        self.shut = False
        self._adapters = dict(files or {})
        self._most = most
        self._loaded: OrderedDict[str, Any] = OrderedDict()
        self._used: str | None = None

    @abstractmethod
    def open_adapter(self, file: Path) -> Any:
        """Load a checked file and return a handle. Raises `InputError`."""

    @abstractmethod
    def free_adapter(self, handle: Any) -> None:
        """Free what a handle holds."""

    @abstractmethod
    def activate(self, handle: Any | None, scale: float) -> None:
        """Make what is decoded next go through that adapter alone, None being the bare backbone."""

    def adapter(self, name: str) -> LoraFile:
        """Return the file of an adapter."""
        return self._adapters[name]

    @alone
    def adopt(self, name: str, file: LoraFile) -> None:
        """Add an adapter under a name that there is not yet, and load it. Raises `InputError`."""
        if name in self._adapters:
            raise InputError(f"there is an adapter {name!r} already")
        self._adapters[name] = file
        try:
            self.load_adapter(name)
        except BaseException:
            del self._adapters[name]
            raise

    @alone
    def move(self, name: str, file: LoraFile) -> None:
        """Take an adapter from another place from now on; its bytes are the same."""
        if file.digest != self._adapters[name].digest:
            raise InputError(f"{name}: the file in the new place is another one")
        self._adapters[name] = file

    @alone
    def drop(self, name: str) -> None:
        """Take an adapter away, which nobody may ask for any longer."""
        if name == self._used:
            self._set(None)
        if name in self._loaded:
            self.free_adapter(self._loaded.pop(name))
        self._adapters.pop(name, None)

    @alone
    def load_adapter(self, name: str) -> None:
        """Load an adapter that is not loaded yet; the least recently used one makes room."""
        if name not in self._adapters:
            raise InputError(
                f"no adapter {name!r}; there are: {' '.join(self._adapters) or 'none'}"
            )
        if name in self._loaded:
            self._loaded.move_to_end(name)
            return
        while self._most is not None and len(self._loaded) >= self._most:
            oldest, handle = self._loaded.popitem(last=False)
            if oldest == self._used:
                self._set(None)
            self.free_adapter(handle)
        self._loaded[name] = self.open_adapter(self._adapters[name].check())

    @alone
    def use(self, name: str | None) -> None:
        """Make what is decoded next go through that adapter, None being the bare backbone."""
        if name is not None:
            self.load_adapter(name)
        if name != self._used:
            self._set(name)

    def _set(self, name: str | None) -> None:
        if name is None:
            self.activate(None, 1.0)
        else:
            self.activate(self._loaded[name], self._adapters[name].scale)
        self._used = name

    def clear_adapters(self) -> None:
        """Forget what is loaded, which goes with the model."""
        self._loaded.clear()
        self._used = None

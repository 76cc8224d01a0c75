"""The ways in which a command ends badly."""

from __future__ import annotations


class InputError(ValueError):
    """Wrong usage or bad input: what is wrong, where, what to do, in one or two lines. Exit 2."""


class WorkError(RuntimeError):
    """The input was fine but the work failed, in one or two lines. Exit 1."""


class Terminated(KeyboardInterrupt):
    """SIGTERM came, which ends a command in the same order as an interrupt. Exit 143."""

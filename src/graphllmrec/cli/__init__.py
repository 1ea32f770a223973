"""The command line: one file per command or group of commands; app.py puts them together."""

from graphllmrec.cli.app import app, main

__all__ = ["app", "main"]

"""Processes that begin with their imports done: forked from one that waits for it.

A start spends a second on imports alone, and a test run makes hundreds. What runs is the same program in a process of
its own; that it also starts from nothing is tested on the command line.
"""

import asyncio
import os
import runpy
import sys
from collections.abc import Mapping, Sequence
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path

_CONTEXT = get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    [
        __name__,
        "chat_bridge.cli",
        "chat_bridge.serve",
        "chat_bridge.doctor",
        "chat_bridge.platforms.telegram.adapter",
        "tests.fake_telegram.control",
        "tests.fake_telegram.page",
    ]
)


def start(
    module: str, arguments: Sequence[str] = (), *, environment: Mapping[str, str], folder: Path, log: Path
) -> BaseProcess:
    """Start `python -m module arguments` in a session of its own, and append what it prints to the log."""
    log.touch()
    # A daemon, in multiprocessing's words: it ends with the test run.
    process = _CONTEXT.Process(target=_run, args=(module, [*arguments], {**environment}, folder, log), daemon=True)
    process.start()
    return process


async def ended(process: BaseProcess) -> int:
    """Wait for its end: the exit code, or the signal below zero. (Its own `join` must not be called by two threads.)"""
    while (code := process.exitcode) is None:
        await asyncio.sleep(0.01)
    return code


def _run(module: str, arguments: list[str], environment: dict[str, str], folder: Path, log: Path) -> None:
    os.setsid()
    os.chdir(folder)
    with log.open("ab") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    if "PYTHONPATH" in environment:  # other code than what is imported here
        command = [sys.executable, "-u", "-m", module, *arguments]
        os.execve(sys.executable, command, environment)
    os.environ.clear()
    os.environ.update(environment)
    for stream in (sys.__stdout__, sys.__stderr__):
        stream.reconfigure(write_through=True)
    sys.argv[1:] = arguments
    runpy.run_module(module, run_name="__main__", alter_sys=True)

"""The command line, met by a signal at a chosen place: `python -m tests.cli.driver PLACE COUNT ARGUMENT...`."""

from __future__ import annotations

import importlib
import os
import signal
import sys


def run(place: str, count: int, args: list[str], *numbers: int) -> None:
    """Run a command; signals come with the `count`th call of `module:function`, or with the import of `module`.

    They are `numbers`, all at once, or SIGINT.
    """
    calls = 0

    def met() -> None:
        nonlocal calls
        calls += 1
        if calls == count:
            for number in numbers or (signal.SIGINT,):
                os.kill(os.getpid(), number)

    class Finder:
        @staticmethod
        def find_spec(name, path=None, target=None):
            if name == place:
                met()

    module, colon, name = place.partition(":")
    if not colon:
        sys.meta_path.insert(0, Finder())
    else:
        owner = importlib.import_module(module)
        *path, last = name.split(".")
        for part in path:
            owner = getattr(owner, part)
        function = getattr(owner, last)

        def wrapped(*args, **kwargs):
            met()
            return function(*args, **kwargs)

        setattr(owner, last, wrapped)
    from cnncompress.cli import main

    main(args)


def run_in(folder: str, place: str, count: int, args: list[str], *numbers: int) -> None:
    """As `run`, in a folder, with the output in its files `.out` and `.err`."""
    os.chdir(folder)
    for number in numbers:
        if signal.getsignal(number) is signal.SIG_IGN:  # as under nohup
            signal.signal(number, signal.SIG_DFL)
    sys.argv = ["cnncompress", *args]
    for stream, name in ((1, ".out"), (2, ".err")):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT), stream)
    run(place, count, args, *numbers)


if __name__ == "__main__":
    run(sys.argv[1], int(sys.argv[2]), sys.argv[3:])

"""Runs `adapterd` commands for the pages, each in a process of its own that has everything imported already.

The shim that a page finds as `adapterd` (`doc_shim.py`) hands over arguments, folder, environment and its three files;
the child that is forked for it calls the command line's own `main`. A page has tens of commands, and most of the time
that each takes is imports.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import sys
import traceback
from importlib import import_module, reload

import huggingface_hub.constants

READY = b"ready\n"
FAILED = 70
HEAVY = (
    *("matplotlib.pyplot", "rich.console", "rich.progress", "rich.table", "uvloop"),
    *("adapters_cache.sharing.origins", "server.app", "server.cli", "server.probe", "server.verify"),
    *("training.run", "training.service"),
)


def serve(address: str) -> None:
    """Until stdin ends: then whoever started this has gone."""
    import_everything()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen(16)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the children
    os.write(1, READY)
    while sys.stdin not in select.select([listener, sys.stdin], [], [])[0]:
        caller, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            answer(caller)
        caller.close()


def import_everything() -> None:
    import matplotlib

    matplotlib.use("Agg")
    for name in HEAVY:
        import_module(name)


def answer(caller: socket.socket) -> None:
    """Tells the caller its process id, and its exit code at the end. Does not return."""
    code = FAILED
    try:
        head, files, _, _ = socket.recv_fds(caller, 4, 3)
        size, said = int.from_bytes(head, "big"), b""
        while len(said) < size:
            said += caller.recv(size - len(said))
        arguments, folder, environment = json.loads(said)
        for own, file in enumerate(files):
            os.dup2(file, own)
            os.close(file)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setsid()
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        reload(huggingface_hub.constants)  # which read the environment
        caller.sendall(f"{os.getpid()}\n".encode())
        code = run(arguments)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        try:
            caller.sendall(f"{code}\n".encode())
        finally:
            os._exit(code)


def run(arguments: list[str]) -> int:
    from server.__main__ import main

    sys.argv = ["adapterd", *with_server(arguments)]
    try:
        main()
    except SystemExit as left:
        return left.code if isinstance(left.code, int) else int(left.code is not None)
    return 0


def with_server(arguments: list[str]) -> list[str]:
    """With `--server`, where the verb takes one and the page leaves it at its default."""
    import typer.main

    from server.cli import app

    address = os.environ.get("DOC_SERVER")
    verb = getattr(typer.main.get_command(app), "commands", {}).get(arguments[0] if arguments else "")
    if not address or verb is None or any(argument.split("=")[0] == "--server" for argument in arguments):
        return arguments
    takes_one = any("--server" in parameter.opts for parameter in verb.params)
    return [arguments[0], "--server", address, *arguments[1:]] if takes_one else arguments


if __name__ == "__main__":
    serve(sys.argv[1])

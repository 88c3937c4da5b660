"""Calls `main` of a module beside this file in two processes of one group, as torchrun would:

    python two_processes.py MODULE ARGUMENT...

They are forked when all is imported, which takes longer than what tests do there.
"""

import importlib
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path


def run_in_two_processes(module: str, *arguments: str | Path) -> None:
    """Starts this file; fails with what it printed where one of the processes fails."""
    finished = subprocess.run([sys.executable, __file__, module, *arguments], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr[-3000:]


def main(name: str, *arguments: str) -> None:
    module = importlib.import_module(name)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    children = []
    for rank in ("0", "1"):
        if not (child := os.fork()):
            os.environ.update(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE="2", LOCAL_WORLD_SIZE="2")
            os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
            module.main(*arguments)
            return
        children.append(child)
    while children:
        child, status = os.wait()
        children.remove(child)
        for other in children if status else ():  # which would wait for it
            os.kill(other, signal.SIGKILL)
        if status:
            sys.exit(1)


if __name__ == "__main__":
    main(*sys.argv[1:])

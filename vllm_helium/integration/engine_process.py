"""An engine in a process of its own ends with the front end that started it, however that ends.

Upstream's workers watch the engine and the engine's front end watches the engine, but nobody
watches the front end: killed by SIGKILL, or for memory, it leaves an engine behind that holds the
device, so that no server can be started in its place.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time

_ENGINE_NAME = "EngineCore"
"""What upstream's front ends call the processes of engines, with or without a number behind it."""
_LOOK_S = 1.0
_PATIENCE_S = 30.0
"""How long an engine may take to end by itself."""


def end_with_front_end() -> None:
    """Has this process end with its parent, if it is an engine's own; call it in the engine."""
    parent = multiprocessing.parent_process()
    if parent is None or not multiprocessing.current_process().name.startswith(_ENGINE_NAME):
        return
    thread = threading.Thread(
        target=_watch, args=(parent.pid,), name="helium-front-end", daemon=True
    )
    thread.start()


def _watch(parent: int | None) -> None:
    # Not the kernel's signal at the parent's death: that comes when the thread ends which started
    # this process, and a program may start its engine from a thread.
    while os.getppid() == parent:
        time.sleep(_LOOK_S)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_PATIENCE_S)
    os.kill(os.getpid(), signal.SIGKILL)

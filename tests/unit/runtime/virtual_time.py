"""Runs asyncio programs in virtual time: as soon as everybody waits, the next timer is due.

Work sent to threads runs at once, on the loop.
"""

import asyncio
import selectors


def run(program):
    """Runs the coroutine; returns its result and the virtual seconds it took."""
    loop = _Loop()
    try:
        asyncio.set_event_loop(loop)
        return loop.run_until_complete(program), loop.time()
    finally:
        asyncio.set_event_loop(None)
        loop.close()


class _Selector(selectors.DefaultSelector):
    now = 0.0

    def select(self, timeout=None):
        if timeout is None:
            raise RuntimeError("the program waits for something that will never happen")
        self.now += max(0.0, timeout)
        return super().select(0)


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self):
        self._clock = _Selector()
        super().__init__(self._clock)

    def time(self):
        return self._clock.now

    def run_in_executor(self, executor, function, *args):
        future = self.create_future()
        try:
            future.set_result(function(*args))
        except Exception as error:
            future.set_exception(error)
        return future

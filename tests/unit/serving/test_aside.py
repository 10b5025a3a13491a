from __future__ import annotations

import asyncio
import subprocess
import sys

import pytest

from flatfix.serving.aside import Aside


def test_what_a_call_raises_is_raised_and_the_next_call_is_made() -> None:
    async def calls() -> list[int]:
        aside, made = Aside("test"), list[int]()
        with pytest.raises(OSError, match="no room"):
            await aside.call(fail)
        await aside.call(made.append, 1)
        return made

    def fail() -> None:
        raise OSError("no room")

    assert asyncio.run(calls()) == [1]


def test_a_call_that_hangs_keeps_no_process_from_ending() -> None:
    script = (
        "import asyncio, threading\nfrom flatfix.serving.aside import Aside\n"
        "async def hang(): await asyncio.wait_for(Aside('test').call(threading.Event().wait), 0.1)\n"
        "try: asyncio.run(hang())\nexcept TimeoutError: print('ended')"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout) == (0, "ended\n"), done.stderr

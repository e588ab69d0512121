"""Long answers that wait for the test, so that an action in the middle of an answer is in its middle on any machine.

``python -m tests.serving.holding serve ...`` is ``unfuse serve ...`` with long answers that stay unfinished.
"""

from __future__ import annotations

import threading
import time
from typing import Any

from unfuse.engines.batching import TokenOutput
from unfuse.engines.sequential import SequentialBatch

LONG = 1000
"""An answer of at least so many new tokens is held ..."""
AFTER = 5
"""... once it has so many."""


def holding(release: threading.Event) -> Any:
    """A ``SequentialBatch.step`` that writes nothing while a long answer is held; scenes are encoded meanwhile."""
    step = SequentialBatch.step

    def step_unless_held(batch: SequentialBatch) -> list[TokenOutput]:
        for name, (request, _, _) in batch._running.items():
            if request.max_new_tokens >= LONG and batch._counts[name] >= AFTER and not release.is_set():
                time.sleep(0.001)
                return []
        return step(batch)

    return step_unless_held


if __name__ == "__main__":
    from unfuse.__main__ import main

    SequentialBatch.step = holding(threading.Event())  # type: ignore[method-assign]
    main()

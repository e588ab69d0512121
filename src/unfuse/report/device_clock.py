"""Signs that the times of a device clock are copies of host times.

A host time is longer than the device time of the same stage by the launch of the first kernel and by the wait for the
last kernel. Both vary by microseconds from call to call: by 4 us and more in all recorded runs on H100 and H200.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from unfuse.records.schema import FUSED_STAGE, SampleRecord

DEVICE_STAGES: Final = ("encode", "prefill", "decode", FUSED_STAGE)
MIN_READINGS: Final = 8
MIN_SPREAD_MS: Final = 0.001
"""Spread of a device clock around every line through its host times, in ms: a tenth to nine tenths of the readings."""
EXACT_MS: Final = 1e-7
"""The same spread for a clock without noise: the times of tests are rounded to a ns."""


def copied_clock(records: Sequence[SampleRecord], least_spread_ms: float = MIN_SPREAD_MS) -> str | None:
    """Return the first stage with device times that follow the host times too closely; None if there is none.

    Args:
        records: of equal or of different samples; fewer than 8 device times of a stage cannot be judged.
        least_spread_ms: spread of a device clock of its own.
    """
    for stage in DEVICE_STAGES:
        pairs = [(t.host_ms, t.device_ms) for r in records if (t := r.stages.get(stage)) and t.device_ms is not None]
        if len(pairs) < MIN_READINGS:
            continue
        host, device = np.array(pairs, dtype=np.float64).T
        rests = [host - device]
        if np.ptp(host):
            slope, intercept = np.polyfit(host, device, 1)
            rests.append(device - slope * host - intercept)
        if any(np.ptp(np.percentile(rest, [10, 90])) < least_spread_ms for rest in rests):
            return (
                f"device time of {stage} is computed from its host time in {len(pairs)} runs: "
                f"they differ by a spread below {1e3 * least_spread_ms:g} us"
            )
    return None

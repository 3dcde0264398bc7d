"""Times the shipped audit battery on the terrarium's M0: first with cold libraries, then warm.

`python bench/audit.py` prints JSON: wall-clock and processor seconds of asking every audit item,
the second time with libraries loaded ("warm"), and the machine's load average.
"""

from __future__ import annotations

import json
import os
import tempfile
import time

from doublebind.pipeline.audit_model import audit


def once() -> dict[str, float]:
    """Return wall-clock and processor seconds of one uncached audit."""
    wall, cpu = time.perf_counter(), time.process_time()
    with tempfile.TemporaryDirectory() as store:
        audit("terrarium/m0", "terrarium", store=store)
    return {
        "wall_s": round(time.perf_counter() - wall, 2),
        "cpu_s": round(time.process_time() - cpu, 2),
    }


if __name__ == "__main__":
    report = {"cold": once(), "warm": once(), "load": os.getloadavg()[0], "cores": os.cpu_count()}
    print(json.dumps(report))

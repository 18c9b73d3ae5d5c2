"""How busy a long command keeps all cores, from its first photo to its last, on the CPU.

The same command on a few photos and on many; the differences of processor time and of wall time leave the start out:

    python benchmarks/busy.py "afactl predict FEW --device cpu --out a" "afactl predict MANY --device cpu --out b"
"""

import os
import resource
import shlex
import subprocess
import sys
import time

from ratio import machine


def spent(command: str) -> tuple[float, float]:
    """Processor and wall seconds of a command and of all its workers."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(shlex.split(command), check=True, stdout=subprocess.DEVNULL)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime, wall


if __name__ == "__main__":
    machine()
    few, many = sys.argv[1:]
    (busy_start, wall_start), (busy, wall) = spent(few), spent(many)
    cores = len(os.sched_getaffinity(0))
    share = (busy - busy_start) / (wall - wall_start) / cores
    print(f"{many}\n  {wall:.0f} s, of which the start {wall_start:.0f} s")
    print(f"  from then on {100 * share:.1f} % of the time of {cores} cores")

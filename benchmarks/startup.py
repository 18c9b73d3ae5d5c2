"""How long the command line takes before it works: python benchmarks/startup.py RUN PHOTO"""

import subprocess
import sys
import tempfile
import time

from ratio import machine

FIRST_PASS = """
import sys, time
start = time.perf_counter()
from afactl.cli.main import main
from afactl.network.backbones.mit import MixTransformer
def forward(self, image):
    print(time.perf_counter() - start)
    raise SystemExit
MixTransformer.forward = forward
main(sys.argv[1:])
"""

if __name__ == "__main__":
    machine()
    helps = []
    for _ in range(5):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "afactl", "--help"], capture_output=True, check=True)
        helps.append(time.perf_counter() - start)
    print(f"afactl --help: {min(helps):.2f} to {max(helps):.2f} s")
    with tempfile.TemporaryDirectory() as out:
        arguments = ["predict", sys.argv[2], "--run", sys.argv[1], "--out", out]
        passes = [
            float(
                subprocess.run(
                    [sys.executable, "-c", FIRST_PASS, *arguments], capture_output=True, text=True
                ).stdout.split()[-1]
            )
            for _ in range(3)
        ]
    print(
        f"afactl predict: first pass of the network after {min(passes):.2f} to {max(passes):.2f} s, "
        "most of it importing torch"
    )

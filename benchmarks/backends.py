"""Any catalog variant on CUDA, MPS, MLX and the processor, in turn, and why a backend is missing here.

    python -m benchmarks.backends SmolLM2-135M-Instruct [--load-format dummy] [--runs 3] [--report] …

Takes the flags of `izwi-lab bench --backends`. With --load-format dummy no checkpoint is needed: the net is built at
full size with random weights, which cost as much time and memory as real ones.
"""

import sys

from izwi_lab.bench import cli

if __name__ == "__main__":
    defaults = {"backends": True, "name": "backends"}
    sys.exit(cli.script("python -m benchmarks.backends", "One model on every backend.", defaults=defaults))

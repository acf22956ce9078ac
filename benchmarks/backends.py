"""Any catalog variant on CUDA, MPS, MLX and the processor, in turn, and why a backend is missing here.

    python -m benchmarks.backends SmolLM2-135M-Instruct [--load-format dummy] [--runs 3] [--report] …

Takes the flags of `izwi-lab bench --backends`. With --load-format dummy no checkpoint is needed: the net is built at
full size with random weights, which cost as much time and memory as real ones.
"""

from __future__ import annotations

import argparse
import sys

from izwi_lab.bench import cli
from izwi_lab.errors import IzwiError


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.backends", description="One model on every backend.")
    cli.add_arguments(parser)
    parser.set_defaults(backends=True, name="backends")
    try:
        return cli.run(parser.parse_args())
    except IzwiError as error:
        parser.error(str(error))


if __name__ == "__main__":
    sys.exit(main())

"""The starter models beside the best programs that run the same weights; the record goes to benchmarks/results.

python -m benchmarks.starter [MODEL ...] [--runs 5] [--no-peer] …    (the flags of `izwi-lab bench`)
"""

from __future__ import annotations

import argparse
import sys

from izwi_lab.bench import cli
from izwi_lab.errors import IzwiError


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.starter", description="Ours beside the peers.")
    cli.add_arguments(parser)
    parser.set_defaults(report=cli.RESULTS, name="starter")
    try:
        return cli.run(parser.parse_args())
    except IzwiError as error:
        parser.error(str(error))


if __name__ == "__main__":
    sys.exit(main())

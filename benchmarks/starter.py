"""The starter models beside the best programs that run the same weights; the record goes to benchmarks/results.

python -m benchmarks.starter [MODEL ...] [--runs 5] [--no-peer] …    (the flags of `izwi-lab bench`)
"""

import sys

from izwi_lab.bench import cli

if __name__ == "__main__":
    defaults = {"report": cli.RESULTS, "name": "starter"}
    sys.exit(cli.script("python -m benchmarks.starter", "Ours beside the peers.", defaults=defaults))

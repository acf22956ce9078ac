"""`izwi-lab bench`: the flags and the measuring are `izwi_lab.bench`'s own."""

from izwi_lab.bench.cli import add_arguments, run

__all__ = ["add_arguments", "run"]

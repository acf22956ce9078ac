"""Benchmarks of izwi_lab beside its peers. Run from the project's root."""

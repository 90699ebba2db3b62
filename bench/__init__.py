"""Measurements: ratios, side by side in one run. `make bench`; docs/performance.md tells how to read them."""

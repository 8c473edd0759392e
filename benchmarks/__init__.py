"""qwench, its peers and this machine's ceilings, measured in one run: `python -m benchmarks`; see README.md here."""

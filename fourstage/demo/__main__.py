"""Measures one stage of a chain: `python -m fourstage.demo CHAIN STAGE` (see `fourstage.demo.measured`)."""

from fourstage.imports import lean_imports

with lean_imports():
    from fourstage.demo.measured import main

main()

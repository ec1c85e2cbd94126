"""Measures one stage of a chain: `python -m fourstage.demo CHAIN STAGE` (see `fourstage.demo.measured`)."""

from fourstage.imports import lean_imports
from fourstage.signals import ended_by_signals

with ended_by_signals():  # also when the pipeline has gone
    with lean_imports():
        from fourstage.demo.measured import main

    main()

"""Lab in the loop: an append-only store of designs and measurements, plates out, results in, strategies.

``store`` keeps the facts, ``history`` is what is known, ``campaign`` proposes and records, ``strategies`` are the
ways to propose, ``sheets``, ``results`` and ``matching`` read what comes back from the lab.
"""

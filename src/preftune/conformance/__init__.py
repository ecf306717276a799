"""What self-play methods do on exact games: how each is composed, one step in closed form, where it ends, what its paper says.

    python -m preftune.conformance --out docs/conformance.md

`record.RECORDS` is the table that `tests/test_conformance.py` goes through: compositions take the steps of their closed forms, so the
page iterates these, for as long as it likes. p is the policy, mu the reference, eta the step of mirror descent, beta the pull to mu.
"""

"""`python -m preftune` is the command `preftune`."""

from .cli import main

main()

"""`python -m tokenzoo` is the command `tokenzoo`."""

from tokenzoo.cli import main

main()

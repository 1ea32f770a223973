"""`python -m graphllmrec` is the command `graphllmrec`."""

from graphllmrec.cli import main

main()

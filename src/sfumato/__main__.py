"""`python -m sfumato` is the command line, as launchers of several processes need it."""

from sfumato.cli import main

main()

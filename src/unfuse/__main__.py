"""``python -m unfuse``."""

from unfuse.cli import main

main()

"""``python -m dmx``."""

from dmx.cli.main import main

main()

"""``python -m forecache`` is the command line, for launchers such as torchrun."""

from forecache.cli import main

if __name__ == "__main__":
    main()

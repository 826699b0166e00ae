"""``python -m mnnq`` is the command ``mnnq``."""

from mnnq.cli.main import main

if __name__ == "__main__":
    main()

"""`python -m kbc`: the command line, also for `torchrun -m kbc train …`."""

import sys

from kbc.cli import main

if __name__ == "__main__":
    sys.exit(main())

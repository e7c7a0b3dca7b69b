"""``python -m onecycle``: the command line without an installation."""

import sys

from onecycle.commands import main

if __name__ == "__main__":  # not in the loader's processes, which import this again
    sys.exit(main())

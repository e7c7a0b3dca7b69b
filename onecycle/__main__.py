"""``python -m onecycle``, and the program ``onecycle``."""

import os
import sys


def start() -> int:
    """Run the command line; Ctrl-C while its modules are loaded is one line as well."""
    os.environ["MPLBACKEND"] = "agg"  # whatever a person's is: commands draw into files alone
    try:
        from onecycle.commands import main

        return main()
    except KeyboardInterrupt:  # else main has reported it
        print("onecycle: interrupted; nothing is written", file=sys.stderr)
        return 130


if __name__ == "__main__":  # not in the loader's processes, which import this again
    sys.exit(start())

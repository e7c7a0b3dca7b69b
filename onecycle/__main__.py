import sys
from importlib import import_module

sys.exit(import_module(f"onecycle.commands.{sys.argv[1]}").main(sys.argv[2:]))

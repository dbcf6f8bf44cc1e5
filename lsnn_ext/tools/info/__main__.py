"""Prints what is installed and what runs, for bug reports."""
import sys

from . import main

sys.exit(main())

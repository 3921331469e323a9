"""``python -m difftilt``: the command line."""

import sys

from difftilt.cli import main

sys.exit(main())

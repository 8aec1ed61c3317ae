"""The folder of tests on the import path, so that `parity` is found whichever tests are chosen."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

"""`python -m mcis.launch --task=NAME`, the same as `mcis train --task=NAME`."""

import sys

from mcis.cli.common import keep_memory
from mcis.cli.train import main

if __name__ == "__main__":
    keep_memory()
    sys.exit(main())

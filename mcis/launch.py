"""`python -m mcis.launch --task=segment_brain`, which is `mcis train --task=segment_brain`."""

import sys

from mcis.cli.common import keep_memory
from mcis.cli.train import main

if __name__ == "__main__":
    keep_memory()
    sys.exit(main())

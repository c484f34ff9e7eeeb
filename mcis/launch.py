"""`python -m mcis.launch --task=NAME`, the same as `mcis train --task=NAME`."""

import sys

from mcis.paths import forget_current_folder

if __name__ == "__main__":
    forget_current_folder()  # before other modules are imported

from mcis.cli.common import keep_memory
from mcis.cli.train import main

if __name__ == "__main__":
    keep_memory()
    sys.exit(main())

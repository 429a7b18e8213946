"""``python -m sb3_trmrl`` is ``sb3-trmrl``."""

import sys

from sb3_trmrl.cli import main

sys.exit(main())

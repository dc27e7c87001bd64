"""``python -m tools.bagel_nano``."""

import sys

from .main import main

sys.exit(main())

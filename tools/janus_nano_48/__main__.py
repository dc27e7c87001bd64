"""``python -m tools.janus_nano_48``."""

import sys

from .main import main

sys.exit(main())

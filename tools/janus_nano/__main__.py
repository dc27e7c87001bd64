"""``python -m tools.janus_nano``."""

import sys

from .main import main

sys.exit(main())

"""`python -m understudy.envoy bootstrap …`."""

import sys

from understudy.envoy.cli import main

sys.exit(main())

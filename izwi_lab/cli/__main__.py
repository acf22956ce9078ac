"""`python -m izwi_lab.cli`: the same as `izwi-lab`."""

import sys

from izwi_lab.cli import main

sys.exit(main())

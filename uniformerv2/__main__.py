"""`python -m uniformerv2`."""

import sys

from uniformerv2.cli import main

sys.exit(main())

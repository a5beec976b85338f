"""`python -m jaxcirc`."""

import sys

from .cli import main


sys.exit(main())

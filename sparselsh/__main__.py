"""``python -m sparselsh``: the command line."""
from .cli import main

raise SystemExit(main())

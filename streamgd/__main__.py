"""``python -m streamgd`` is ``streamgd``."""

from .cli import main

main()

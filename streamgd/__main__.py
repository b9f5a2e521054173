"""``python -m streamgd``, and the command ``streamgd``."""

import os
import sys

from .addressspace import COMMAND_LINE, address_space_limit, require_room, reserve_little
from .errors import MemoryLimitError, error_json
from .interrupt import hear_early


def main() -> None:
    """Run the command line."""
    hear_early(sys.argv[1:])
    # Its threads, which nothing here uses, take 0.2 s of processor time and 40 MB of address space each to start.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    reserve_little()
    if (address_space_limit() or COMMAND_LINE) < COMMAND_LINE:
        _refuse()
    from .cli import main as run  # it takes a while, in which signals are heard

    run()


def _refuse() -> None:
    """Tell, as commands tell it, that there is not even room for the command line."""
    try:
        require_room()
    except MemoryLimitError as error:
        print(f"error: {error}", file=sys.stderr)
        if "--json" in sys.argv:
            print(error_json(error, error.exit_code))
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()

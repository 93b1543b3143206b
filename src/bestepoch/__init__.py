"""Which epoch of which configuration is best, and can that be trusted?"""

import os
import sys

# As early as this, because the imports of a command take seconds. A program that uses the package keeps its signals.
if os.path.basename("".join(sys.argv[:1])) in ("-m", "bestepoch", "stage.py"):  # noqa: PTH119
    try:
        from bestepoch.base.interrupt import exit_on_interrupt

        exit_on_interrupt()
    except KeyboardInterrupt:
        sys.stderr.write("bestepoch: stopped by Ctrl-C\n")
        raise SystemExit(130) from None

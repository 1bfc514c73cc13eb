"""``python -m sparsebench`` is ``sparsebench``."""

import signal

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # Ctrl-C ends the program while it is still imported, without the traceback of an import. ``main`` takes it from there.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from sparsebench.cli.app import main

if __name__ == "__main__":
    main()

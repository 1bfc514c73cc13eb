"""``python -m sparsebench`` is ``sparsebench``."""

from sparsebench.cli.app import main

main()

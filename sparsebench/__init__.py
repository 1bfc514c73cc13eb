"""sparsebench: what does sparsity buy, and what does it cost?"""

__all__ = ["__version__"]

__version__ = "0.1.0"

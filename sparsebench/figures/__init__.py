"""Figures: SQL over the ledger, drawn. ``spec`` reads their files without matplotlib, ``draw`` draws them."""

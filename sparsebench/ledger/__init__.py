"""The ledger: every number of every run in one DuckDB file, written from records, read through commented views."""

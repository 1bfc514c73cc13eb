-- DuckDB has triggers from 2.0 on.
SELECT 'trigger' AS kind, trigger_name AS name FROM system.main.duckdb_triggers();

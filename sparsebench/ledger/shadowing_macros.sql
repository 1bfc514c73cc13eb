-- Macros of this file that DuckDB would call in place of its own functions, and types in place of its own. No function is named
-- here without its catalog: a macro must not stand in for what looks for it. They are listed once: that takes 40 ms.
WITH functions AS MATERIALIZED (SELECT function_name, internal FROM system.main.duckdb_functions())
SELECT 'macro' AS kind, function_name AS name
FROM functions
WHERE NOT internal AND system.main.lower(function_name) IN (SELECT function_name FROM functions WHERE internal)
UNION ALL
SELECT 'type', type_name
FROM system.main.duckdb_types()
WHERE NOT internal
ORDER BY ALL;

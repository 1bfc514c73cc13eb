-- What an export holds: the public views under their names, the base tables as base_NAME.
SELECT relation, name
FROM (
    SELECT 'main.' || view_name AS relation, view_name AS name
    FROM duckdb_views()
    WHERE schema_name = 'main' AND NOT internal AND NOT starts_with(view_name, '_')
    UNION ALL
    SELECT 'base.' || table_name, 'base_' || table_name
    FROM duckdb_tables()
    WHERE schema_name = 'base' AND table_name NOT IN ('migrations', 'issued_views')
)
ORDER BY name;

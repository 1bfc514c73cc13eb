-- Each public view, then its columns in order.
SELECT * EXCLUDE (position)
FROM (
    SELECT view_name AS view, '' AS "column", '' AS type, comment AS meaning, 0 AS position
    FROM duckdb_views()
    WHERE schema_name = 'main' AND NOT internal
    UNION ALL
    SELECT c.table_name, c.column_name, c.data_type, c.comment, c.column_index
    FROM duckdb_columns() c
    JOIN duckdb_views() v ON v.view_name = c.table_name AND v.schema_name = c.schema_name
    WHERE c.schema_name = 'main' AND NOT v.internal
)
WHERE NOT starts_with(view, '_')
ORDER BY view, position;

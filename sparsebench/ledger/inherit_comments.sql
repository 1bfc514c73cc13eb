-- Statements that give each public view's column, where it has no comment, that of the column of the same name in `_cells`, or
-- else in the first of these views that explains it.
SELECT format('COMMENT ON COLUMN "{}"."{}" IS ''{}''', replace(c.table_name, '"', '""'), replace(c.column_name, '"', '""'), replace(shared.comment, '''', ''''''))
FROM duckdb_columns() c
JOIN duckdb_columns() shared USING (column_name)
JOIN (VALUES (0, '_cells'), (1, 'scores'), (2, 'vs_dense'), (3, 'latency'), (4, 'structure')) explains(place, name) ON shared.table_name = explains.name
WHERE c.comment IS NULL AND shared.comment IS NOT NULL AND c.schema_name = 'main' AND NOT starts_with(c.table_name, '_')
  AND c.database_name = current_database()
QUALIFY row_number() OVER (PARTITION BY c.table_name, c.column_name ORDER BY place) = 1;

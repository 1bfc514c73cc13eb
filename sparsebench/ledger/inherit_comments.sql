-- Statements that give each public view's column the comment of the column of the same name in `_cells`, where it has none.
SELECT format('COMMENT ON COLUMN "{}"."{}" IS ''{}''', replace(c.table_name, '"', '""'), replace(c.column_name, '"', '""'), replace(shared.comment, '''', ''''''))
FROM duckdb_columns() c
JOIN duckdb_columns() shared ON shared.table_name = '_cells' AND shared.column_name = c.column_name
WHERE c.comment IS NULL AND shared.comment IS NOT NULL AND c.schema_name = 'main' AND NOT starts_with(c.table_name, '_')
  AND c.database_name = current_database();

-- The table keeps the order in which records arrive: it shows which of two records of a cell came later.
INSERT INTO base.records BY NAME
SELECT record_id, started_at,
       r ->> '$.cell_id' AS cell_id, r ->> '$.stage' AS stage, r ->> '$.status' AS status, r ->> '$.reason' AS reason,
       r ->> '$.manifest' AS manifest, r ->> '$.variant.id' AS variant_id,
       r -> '$.settings' AS settings, r -> '$.versions' AS versions,
       r ->> '$.environment.id' AS environment_id, (r ->> '$.environment.load')::DOUBLE AS load,
       (r ->> '$.environment.available_bytes')::BIGINT AS available_bytes,
       (r ->> '$.environment.threads')::INTEGER AS threads,
       r ->> '$.key' AS key, r ->> '$.where.id' AS place, r ->> '$.where.device' AS device, r ->> '$.where.cuda' AS cuda,
       r ->> '$.where.dtype' AS calculated, r ->> '$.content' AS content,
       (r ->> '$.seconds')::DOUBLE AS seconds, (r ->> '$.format')::INTEGER AS format, origin, own, digest
FROM incoming
WHERE kind = 'cell'
ORDER BY position;

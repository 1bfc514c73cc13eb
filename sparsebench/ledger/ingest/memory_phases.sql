INSERT INTO base.memory_phases
SELECT record_id, unnest(from_json(result -> '$.phases', '[{"phase":"VARCHAR","peak_bytes":"BIGINT"}]'), recursive := true)
FROM incoming
WHERE done = 'memory';

INSERT INTO base.sizes
SELECT record_id, unnest(from_json(result -> '$.sizes', '[{"format":"VARCHAR","bytes":"BIGINT","prunable_bytes":"BIGINT",
    "seconds":"DOUBLE","round_trip":"BOOLEAN"}]'), recursive := true)
FROM incoming
WHERE done = 'storage';

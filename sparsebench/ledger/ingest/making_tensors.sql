INSERT INTO base.making_tensors
SELECT record_id, unnest(from_json(result -> '$.tensors', '[{"name":"VARCHAR","layer":"INTEGER","side":"VARCHAR",
    "kind":"VARCHAR","count":"BIGINT","zeros":"BIGINT"}]'), recursive := true)
FROM incoming
WHERE done = 'make';

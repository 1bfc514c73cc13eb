INSERT INTO base.outputs
SELECT record_id, unnest(from_json(result -> '$.blocks', '[{"side":"VARCHAR","block":"INTEGER","own":"DOUBLE","error":"DOUBLE"}]'), recursive := true)
FROM incoming
WHERE done = 'outputs';

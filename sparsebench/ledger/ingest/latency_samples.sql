INSERT INTO base.latency_samples
SELECT record_id, unnest(from_json(result -> '$.samples', '[{"phase":"VARCHAR","side":"VARCHAR","block":"INTEGER",
    "index":"INTEGER","wall_s":"DOUBLE","cpu_s":"DOUBLE","process":"INTEGER"}]'), recursive := true)
FROM incoming
WHERE done = 'latency';

INSERT INTO base.latency_differences
SELECT record_id, unnest(from_json(result -> '$.differences', '[{"phase":"VARCHAR","ratio":"DOUBLE","low":"DOUBLE",
    "high":"DOUBLE","pairs":"INTEGER",
    "processes":"INTEGER","within_sd":"DOUBLE","between_sd":"DOUBLE"}]'), recursive := true)
FROM incoming
WHERE done = 'latency';

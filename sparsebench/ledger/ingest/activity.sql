INSERT INTO base.activity
SELECT record_id, unnest(from_json(result -> '$.activity', '[{"side":"VARCHAR","layer":"INTEGER","module":"VARCHAR",
    "near_zero":"DOUBLE","threshold":"DOUBLE","skipped":"DOUBLE","uses":["DOUBLE"],"together":"DOUBLE","inside":"DOUBLE"}]'), recursive := true)
FROM incoming
WHERE done = 'make';

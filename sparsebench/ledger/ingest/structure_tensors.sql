INSERT INTO base.structure_tensors
SELECT record_id, unnest(from_json(result -> '$.tensors', '[{"name":"VARCHAR","layer":"INTEGER","side":"VARCHAR",
    "kind":"VARCHAR","prunable":"BOOLEAN","dtype":"VARCHAR","shape":["BIGINT"],"count":"BIGINT","zeros":"BIGINT",
    "below_absolute":["BIGINT"],"below_relative":["BIGINT"],"mean":"DOUBLE","std":"DOUBLE","rms":"DOUBLE",
    "kurtosis":"DOUBLE","min":"DOUBLE","max":"DOUBLE","histogram":["BIGINT"]}]'), recursive := true)
FROM incoming
WHERE done = 'structure';

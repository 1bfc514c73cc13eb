INSERT INTO base.scores
SELECT record_id, unnest(from_json(result, '{"task":"VARCHAR","metric":"VARCHAR","score":"DOUBLE","stderr":"DOUBLE",
    "n":"INTEGER","limited":"BOOLEAN","chance":"DOUBLE","protocol":"JSON"}'))
FROM incoming
WHERE done = 'benchmarks';

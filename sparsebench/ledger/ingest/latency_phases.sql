INSERT INTO base.latency_phases
SELECT record_id, unnest(from_json(result -> '$.phases', '[{"phase":"VARCHAR","side":"VARCHAR","median_s":"DOUBLE",
    "low_s":"DOUBLE","high_s":"DOUBLE","mad_s":"DOUBLE","n":"INTEGER","steady":"BOOLEAN","cpu_s":"DOUBLE",
    "p90_s":"DOUBLE","energy_j":"DOUBLE"}]'), recursive := true)
FROM incoming
WHERE done = 'latency';

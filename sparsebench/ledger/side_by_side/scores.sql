-- The scores of one variant on every machine, each record once.
SELECT DISTINCT record_id, task, metric, score, low, high, interval, n, limited, chance, separable, collapsed, at_chance, num_fewshot, protocol ->> '$.dtype' AS dtype,
       _same(settings) AS settings, machine, started_at
FROM _scores
WHERE variant_id = $id
ORDER BY task, started_at DESC, record_id;

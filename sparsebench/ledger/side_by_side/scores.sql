-- The scores of one variant, each record once.
SELECT DISTINCT record_id, task, metric, score, low, high, interval, n, limited, chance, separable, collapsed, at_chance, num_fewshot, protocol ->> '$.dtype' AS dtype,
       _same(settings) AS settings, started_at
FROM scores
WHERE variant_id = $id
ORDER BY task, started_at DESC, record_id;

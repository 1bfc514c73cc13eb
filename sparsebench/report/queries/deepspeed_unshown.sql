-- Models with real weights that have no row in the table of DeepSpeed: those whose every comparison is too noisy, by ranks, and those that
-- did not run there (`ranks` is NULL).
SELECT DISTINCT model, ranks, threads
FROM {deepspeed}
WHERE weights <> 'random' AND NOT clear
UNION ALL
SELECT DISTINCT model, NULL, NULL
FROM {models}
WHERE weights <> 'random' AND model NOT IN (SELECT model FROM {deepspeed})
ORDER BY ALL

-- Each variant in each engine, in the units of llama.cpp's users: tokens a second for prompts of 16, 128 and 512 (`pp`) and for writing
-- (`tg`, after 128), and milliseconds of whole requests (prompt + answer, without loading). Dense in our own dense kernels is `ours`. Of
-- models that were timed at three workloads or more.
WITH timed AS (
    SELECT t.model, t.weights, t.machine, split_part(machine_label(t.machine), ',', 1) AS processor, t.variant_id,
           coalesce(r.words, 'dense') AS variant, coalesce(r.kind, 'dense') AS kind,
           CASE WHEN t.engine = 'sparse' THEN 'ours' ELSE _dense_engine(t.engine) END AS engine, t.workload, t.test, t.tokens_per_second, t.ms,
           t.phase, t.dtype, g.passes
    FROM throughput t
    LEFT JOIN _recipes r USING (variant_id)
    LEFT JOIN gate g USING (variant_id)
    WHERE t.weights <> 'random' AND t.ranks = 1 AND t.phase <> 'load' AND t.workload LIKE 'b1 %'
        AND (t.method = 'dense' OR NOT r.chance) /* manifests */
)
SELECT model, weights, processor, variant, engine, dtype, CASE WHEN kind = 'dense' THEN '' WHEN passes THEN '✓' ELSE '✗' END AS mark,
       median(tokens_per_second) FILTER (test = 'pp 16') AS pp16, median(tokens_per_second) FILTER (test = 'pp 128') AS pp128,
       median(tokens_per_second) FILTER (test = 'pp 512') AS pp512,
       median(tokens_per_second) FILTER (test = 'tg' AND workload LIKE '% p128 %') AS tg,
       median(ms) FILTER (test = '32 + 128') AS short, median(ms) FILTER (test = '128 + 32') AS usual,
       median(ms) FILTER (test = '512 + 128') AS long
FROM timed
GROUP BY model, weights, machine, processor, variant_id, variant, kind, engine, dtype, passes
HAVING count(DISTINCT workload) > 2
ORDER BY model, processor, kind <> 'dense', kind, variant, engine, dtype

-- title: Every timed step, over the median of the dense model beside it
-- about: how the times of single steps spread, as they were measured
-- kind: strip
-- x: relative
-- y: label
-- series: engine
-- facet: facet
-- reference: one = median of the dense model
-- xlabel: time of a step / median of the dense model in the same job
-- note: A tick is one timed step, a shaded box the middle half, a black bar the median, written beside its row. The sparsities nearest to 50 and 90% are shown. Rows of the dense model are dense against itself, the noise. Steps over 2.5 medians are drawn at 2.5.

WITH dense AS (
    SELECT record_id, phase, median(ms) AS dense_ms FROM samples WHERE side = 'dense' GROUP BY ALL
), timed AS (
    SELECT s.*, ms / dense_ms AS ratio, median(ms) OVER (PARTITION BY record_id, phase) AS middle, line,
           concat(model_label(model, weights), chr(10), phase, ', ', workload, if(count(DISTINCT dtype) OVER (PARTITION BY model, workload, phase, machine) > 1, ', ' || dtype, ''),
                  if(count(DISTINCT machine) OVER () > 1, chr(10) || machine, '')) AS facet
    FROM samples s
    JOIN dense USING (record_id, phase)
    JOIN ways USING (variant_id)
    WHERE side = 'variant' AND phase IN ('forward', 'prefill', 'decode') AND weights <> 'random'
), newest AS (
    SELECT *, percent_label(sparsity) AS percent
    FROM timed
    QUALIFY rank() OVER (PARTITION BY facet, engine, ranks, line, sparsity, seed ORDER BY started_at DESC, record_id, manifest) = 1
), chosen AS (
    -- The dense model, and the sparsities nearest to 50% and 90%.
    SELECT *
    FROM newest
    WINDOW one_line AS (PARTITION BY facet, engine, ranks, if(method = 'dense', '', line), seed)
    QUALIFY method = 'dense' OR abs(sparsity - 0.5) = min(abs(sparsity - 0.5)) FILTER (method <> 'dense') OVER one_line
         OR abs(sparsity - 0.9) = min(abs(sparsity - 0.9)) FILTER (method <> 'dense') OVER one_line
)
SELECT least(ratio, 2.5) AS relative, 1 AS one, engine_label(engine, NULL) AS engine, facet,
       concat(engine_label(engine, ranks), if(count(DISTINCT line) FILTER (method <> 'dense') OVER () > 1 AND method <> 'dense', ' ' || line, ''),
              if(method = 'dense', ' dense', ' ' || percent || '%'), ', ', format('{:.1f} ms', middle)) AS label
FROM chosen
ORDER BY model, phase, facet, chosen.engine, ranks, method <> 'dense', line, sparsity, block, index;

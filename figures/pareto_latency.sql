-- title: Score against time: which engine and sparsity are worth it
-- about: the score that is left at a step's time relative to dense, engine by engine, with the Pareto front
-- kind: scatter
-- x: relative
-- xlow: relative_low
-- xhigh: relative_high
-- y: score
-- low: low
-- high: high
-- series: series
-- facet: facet
-- front: higher_is_better
-- text: text
-- reference: chance = chance; dense = dense
-- columns: 2
-- xlabel: time of a step / that of the dense model in the same engine and job
-- ylabel: score
-- note: Numbers: sparsity, %. Solid and joined: no other point is as good and faster. The front joins measured values: within their 95% intervals (whiskers) neighbours may change places. Times are paired, because a machine's speed changes from job to job; a time that differs by no more than the noise is drawn at 1. Where the kernel was timed on the dense model too, its own gain does not count, nor more than the bytes that zeros save allow; elsewhere it is included. Panels in which no time differs are left out. Dense kernels are left out: they take as long whatever the weights.

WITH points AS (
    SELECT DISTINCT c.panel || substr(s.panel, strpos(s.panel, chr(10))) AS facet, if(c.method = 'dense', 'dense', c.line) AS line, engine, ranks,
           c.method = 'dense' AS dense_model, c.method, c.sparsity, score, low, high, higher_is_better, chance, dense,
           -- The smaller of the zeros' part, at most their bound, and the whole: a kernel's gain is not due to zeros, but its loss counts.
           least(zeros_speedup, zeros_bound) AS zeros, zeros < s.speedup AS apart, if(apart, least(zeros_speedup_low, zeros_bound), s.speedup_low) AS speedup_low,
           if(apart, least(zeros_speedup_high, zeros_bound), s.speedup_high) AS speedup_high,
           if(s.verdict IN ('faster', 'slower') AND NOT coalesce(apart AND 1 BETWEEN zeros_speedup_low AND zeros_speedup_high, false), if(apart, zeros, s.speedup), 1) AS speedup
    FROM curves c
    JOIN speedups s ON s.variant_id = c.variant_id
    -- A dense kernel skips no zeros: differences there are chance, or the processor's clock.
    WHERE (c.method = 'dense' OR NOT _dense_kernel(kernel)) AND scale <> 'perplexity' AND phase <> 'encode'
      AND NOT dense_at_chance
), moved AS (
    SELECT DISTINCT facet FROM points WHERE NOT dense_model AND speedup <> 1
)
SELECT DISTINCT if(dense_model, 1, round(1 / speedup, 2)) AS relative, if(dense_model, NULL, 1 / speedup_high) AS relative_low,
       if(dense_model, NULL, 1 / speedup_low) AS relative_high, score, low, high, higher_is_better, chance, dense, facet,
       CASE WHEN dense_model THEN 'dense'
            ELSE engine_label(engine, ranks) || if(count(DISTINCT line) FILTER (line <> 'dense') OVER () > 1, ', ' || line, '') END AS series,
       CASE WHEN dense_model THEN 'dense' WHEN sparsity = 0 THEN method ELSE percent_label(sparsity) END AS text
FROM points
WHERE facet IN (FROM moved)
ORDER BY facet, series = 'dense', series, relative, text;

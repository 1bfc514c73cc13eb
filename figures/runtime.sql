-- title: Speed-up over dense by engine and ranks
-- about: what sparsity does to the time of each phase, for every engine and number of ranks
-- kind: forest
-- x: speedup
-- xlow: speedup_low
-- xhigh: speedup_high
-- y: label
-- series: sparsity
-- facet: facet
-- xshare: yes
-- reference: dense = break-even
-- xlabel: speed-up over dense
-- note: Paired with the dense model in the same engine and job, 95% intervals; dense against itself is the noise. In the sparse engine that row is the gain of the kernel without zeros.

WITH lines AS (
    SELECT *, bool_or(pattern LIKE '%:%') OVER one_line AS nm, bool_and(_dense_kernel(kernel)) FILTER (method <> 'dense') OVER one_line AS plain
    FROM speedups
    WINDOW one_line AS (PARTITION BY panel, engine, ranks, line)
), alike AS (
    -- A dense kernel treats a pattern's zeros as any others: their lines would repeat the rest.
    FROM lines
    QUALIFY NOT (nm AND plain) OR NOT bool_or(NOT nm) OVER (PARTITION BY model, engine)
), placed AS (
    SELECT *, concat(model_label(model, weights), if(count(DISTINCT workload) OVER () > 1, ', ' || workload, ''),
                     if(count(DISTINCT dtype) OVER (PARTITION BY model, workload, machine) > 1, ', ' || dtype, ''),
                     if(count(DISTINCT machine) OVER () > 1, chr(10) || machine, '')) AS facet,
           count(DISTINCT line) FILTER (method <> 'dense') OVER () > 1 AS several
    FROM alike
)
SELECT concat(phase, ', ', engine_label(engine, ranks), if(several AND line <> 'dense', ', ' || line, '')) AS label, speedup,
       speedup_low, speedup_high, if(method = 'dense', 'dense itself', percent_label(sparsity) || '%') AS sparsity, facet, 1 AS dense
FROM placed
ORDER BY placed.sparsity, weights = 'random', model, facet, list_position(['forward', 'encode', 'prefill', 'decode'], phase), engine, ranks, line;

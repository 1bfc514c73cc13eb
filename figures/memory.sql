-- title: Peak memory per rank
-- finding: finding
-- about: what a process needs at its peak, by engine and ranks, against sparsity
-- kind: line
-- x: sparsity
-- y: most
-- low: least
-- high: most
-- series: series
-- facet: facet
-- columns: 2
-- ymin: 0
-- xscale: sparsity
-- xlabel: sparsity of the prunable weights, %
-- ylabel: peak of the largest rank, MB
-- note: The peak of all phases but loading, above the process's size before the model. Whiskers reach down to the smallest rank. The point at 0% is the dense model. Only pruned models are shown.

WITH ranked AS (
    SELECT manifest, variant_id, model, weights, method, sparsity, seed, engine, ranks, workload, dtype, machine, started_at, rank, max(peak_bytes) / 1e6 AS peak
    FROM memory
    WHERE phase <> 'load' AND rank IS NOT NULL AND variant_id NOT IN (FROM _more_than_zeros)
    GROUP BY ALL
), peaks AS (
    SELECT * EXCLUDE (rank, peak), min(peak) AS least, max(peak) AS most FROM ranked GROUP BY ALL
), named AS (
    SELECT p.*, concat(model_label(model, weights), if(count(DISTINCT workload) OVER () > 1, ', ' || workload, ''),
                       if(count(DISTINCT dtype) OVER (PARTITION BY model, workload, machine) > 1, ', ' || dtype, ''),
                       if(count(DISTINCT machine) OVER () > 1, ', ' || machine, '')) AS facet,
           line || if(count(DISTINCT seed) OVER () > 1, ', seed ' || seed, '') AS line
    FROM peaks p
    JOIN ways USING (variant_id)
), lines AS (
    SELECT *, engine_label(engine, ranks) || if(count(DISTINCT line) OVER () > 1, ', ' || line, '') AS series FROM named WHERE method <> 'dense'
), points AS (
    FROM lines
    UNION ALL BY NAME
    -- Every line begins at the dense model.
    SELECT d.*, coalesce(l.series, engine_label(d.engine, d.ranks)) AS series
    FROM named d
    LEFT JOIN (SELECT DISTINCT manifest, facet, engine, ranks, series FROM lines) l USING (manifest, facet, engine, ranks)
    WHERE method = 'dense'
)
SELECT DISTINCT ON (facet, series, sparsity) sparsity, least, most, series, facet,
       (SELECT format('Zeros lower the peak where kernels skip them, to {:.0f}% of dense at {}%', 100 * min(ratio) FILTER (NOT plain), percent_label(arg_min(sparsity, ratio) FILTER (NOT plain)))
               || coalesce(format('; under dense kernels it stays at {}%', range_label('{:.0f}', 100 * min(ratio) FILTER (plain), 100 * max(ratio) FILTER (plain))), '')
        FROM (SELECT *, _dense_kernel(kernel) AS plain FROM memory
              WHERE phase = 'overall' AND rank IS NULL AND method <> 'dense' AND weights <> 'random' AND variant_id NOT IN (FROM _more_than_zeros))
        HAVING min(ratio) FILTER (NOT plain) < 1) AS finding
FROM points
ORDER BY weights = 'random', facet, series, sparsity, started_at DESC;

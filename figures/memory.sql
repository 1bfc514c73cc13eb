-- title: Peak memory of the largest rank, by what fills it
-- finding: finding
-- about: what a process needs at its peak, and how much of it is weights, by engine and ranks
-- kind: bars
-- x: sparsity
-- y: peak
-- base: held
-- low: least
-- high: peak
-- series: series
-- facet: facet
-- reference: kept = weights and cache
-- columns: 2
-- xscale: sparsity
-- xlabel: sparsity of the prunable weights, %
-- yscale: percent
-- ylabel: peak, % of dense
-- note: The largest rank's peak, of dense's on one rank: in all phases but loading, above the process's size before the model. Pale: weights and buffers. The line adds keys and values that are kept for the next token; the rest is workspace. Whiskers reach down to the smallest rank. Only pruned models are shown; of several methods in one engine, the one with the most sparsities. 1×128+16 tokens: sequences at once, prompt tokens, new tokens. Of more than four panels those with most bars are drawn.

WITH ranked AS (
    SELECT manifest, variant_id, model, weights, method, sparsity, seed, engine, ranks, workload, dtype, machine, started_at, rank,
           max(peak_bytes) / 1e6 AS peak, max(tensor_bytes) / 1e6 AS held, max(cache_bytes) / 1e6 AS cache,
           bool_and(_dense_kernel(kernel)) AS plain
    FROM memory
    WHERE phase <> 'load' AND rank IS NOT NULL AND variant_id NOT IN (FROM _more_than_zeros)
    GROUP BY ALL
), peaks AS (
    SELECT * EXCLUDE (rank, peak, held, cache), max(peak) AS peak, min(peak) AS least, arg_max(held, peak) AS held,
           arg_max(held + cache, peak) AS kept
    FROM ranked
    GROUP BY ALL
), named AS (
    SELECT p.*, concat(model_label(model, weights), if(count(DISTINCT workload) OVER () > 1, ', ' || workload_label(workload), ''),
                       if(count(DISTINCT dtype) OVER (PARTITION BY model, workload, machine) > 1, ', ' || dtype, ''),
                       if(count(DISTINCT machine) OVER () > 1,
                           ', ' || if(count(DISTINCT machine_label(machine)) OVER () = count(DISTINCT machine) OVER (),
                               machine_label(machine), machine), '')) AS facet,
           line || if(count(DISTINCT seed) OVER () > 1, ', seed ' || seed, '') AS line
    FROM peaks p
    JOIN ways USING (variant_id)
    -- A rehearsal's memory is that of any weights: it is drawn where nothing else was measured.
    QUALIFY weights <> 'random' OR bool_and(weights = 'random') OVER ()
), counted AS (
    SELECT *, engine_label(engine, ranks) AS series, count(DISTINCT sparsity) OVER (PARTITION BY facet, series, line) AS points
    FROM named
    WHERE method <> 'dense'
), lines AS (
    -- Memory depends on the zeros, hardly on the method: the one with the most sparsities stands for all.
    FROM counted QUALIFY line = first(line) OVER (PARTITION BY facet, series ORDER BY points DESC, line)
), points AS (
    FROM lines
    UNION ALL BY NAME
    -- The dense model is the first bar of every series. llama.cpp skips no zeros, so its peak is no dense to compare with.
    SELECT *, engine_label(engine, ranks) AS series FROM named WHERE method = 'dense' AND engine <> 'llamacpp'
)
SELECT DISTINCT ON (facet, series, sparsity) sparsity, least / whole AS least, points.peak / whole AS peak, held / whole AS held,
       kept / whole AS kept, series, facet,
       (SELECT format('Zeros lower the largest rank''s peak where kernels skip them, to {:.0f}% of dense at {}%',
           100 * min(ratio) FILTER (NOT plain), percent_label(arg_min(sparsity, ratio) FILTER (NOT plain)))
               || coalesce(format('; under dense kernels it stays at {}%',
                   range_label('{:.0f}', 100 * min(ratio) FILTER (plain), 100 * max(ratio) FILTER (plain))), '')
        FROM (SELECT p.sparsity, p.plain, p.peak / d.peak AS ratio FROM points p JOIN points d USING (manifest, facet, series)
              WHERE p.method <> 'dense' AND d.method = 'dense' AND p.weights <> 'random')
        HAVING min(ratio) FILTER (NOT plain) < 1) AS finding
FROM points
JOIN (SELECT facet, max(peak) FILTER (method = 'dense' AND ranks = 1) AS whole,
    dense_rank() OVER (ORDER BY count(*) DESC, facet) AS number FROM points GROUP BY facet) USING (facet)
WHERE number <= 4 AND whole IS NOT NULL
ORDER BY weights = 'random', facet, series, sparsity, started_at DESC;

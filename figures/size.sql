-- title: Size on disk by format, beside its bounds and the file that the model came from
-- finding: finding
-- about: what each storage format leaves of the dense file, beside the information bounds
-- kind: line
-- x: sparsity
-- y: share
-- series: series
-- place: place
-- bound: bound
-- facet: facet
-- reference: rest = not pruned; fetched = GGUF
-- columns: 2
-- xscale: sparsity
-- yscale: percent
-- ymin: 0
-- xlabel: sparsity of the prunable weights, %
-- ylabel: weight files, % of the dense one
-- footnote: left_out
-- note: Points are means over the methods at a sparsity; only pruned models are shown, and rehearsals only where nothing else was measured. Not pruned: embeddings, norms and biases in the packed format; the archive makes these smaller too. GGUF: the file from which the model's weights were dequantized.
-- boundnote: Grey, mostly hidden by the lines: lower bounds, for the positions of the zeros with the raw values (packed) or with the values' entropy (archive).

WITH each AS (
    -- A variant counts once, in however many manifests it is.
    SELECT DISTINCT ON (variant_id, format) *, min(bytes - prunable_bytes) OVER (PARTITION BY manifest, variant_id) AS least_rest,
           max(bytes) FILTER (format = 'source' AND weights = 'dequantized') OVER (PARTITION BY manifest, model) AS own
    FROM sizes
    ORDER BY variant_id, format, own IS NULL, manifest
), sized AS (
    -- A mean over zeros, fewer bits, smaller shapes and skipped inputs would mean nothing.
    SELECT *, model_label(model, weights) AS facet, max(bytes) FILTER (format = 'dense') OVER (PARTITION BY model, weights) AS whole
    FROM each
    WHERE pattern = 'unstructured' AND format <> 'source' AND variant_id NOT IN (FROM _more_than_zeros)
    QUALIFY weights <> 'random' OR bool_and(weights = 'random') OVER ()
), largest AS (
    SELECT facet, row_number() OVER (ORDER BY max(whole) DESC, facet) <= 4 AS shown FROM sized GROUP BY facet
), pruned AS (
    FROM sized WHERE facet IN (SELECT facet FROM largest WHERE shown)
), drawn AS (
    SELECT facet, sparsity, format AS series, 8 + (format = 'archive')::INTEGER AS place, false AS bound, avg(bytes / whole) AS share
    FROM pruned
    WHERE format IN ('packed', 'archive')
    GROUP BY ALL
    UNION ALL BY NAME
    SELECT facet, sparsity, 'bound, raw' AS series, 8 AS place, true AS bound, min((unprunable_bytes + raw_value_bound) / whole) AS share
    FROM pruned
    GROUP BY ALL
    UNION ALL BY NAME
    SELECT facet, sparsity, 'bound, entropy' AS series, 9 AS place, true AS bound, min((least_rest + entropy_bound) / whole) AS share
    FROM pruned
    -- Elsewhere what is not pruned was stored raw, and this would be no bound of the archive.
    WHERE format = 'archive'
    GROUP BY ALL
), means AS (
    -- Of all models, those that are not drawn too.
    SELECT facet, sparsity, avg(bytes / whole) AS share FROM sized WHERE format = 'packed' GROUP BY ALL
), levels AS (
    SELECT facet, min((bytes - prunable_bytes) / whole) FILTER (format = 'packed') AS rest, min(own / whole) AS fetched
    FROM pruned
    GROUP BY facet
)
SELECT *, (SELECT format('Packed, 50% zeros leave {}% of the dense file, 90% zeros {}%',
                         range_label('{:.0f}', 100 * min(share) FILTER (round(sparsity, 4) = 0.5),
                             100 * max(share) FILTER (round(sparsity, 4) = 0.5)),
                         range_label('{:.0f}', 100 * min(share) FILTER (round(sparsity, 4) = 0.9),
                             100 * max(share) FILTER (round(sparsity, 4) = 0.9))) FROM means) AS finding,
       (SELECT 'Not drawn: ' || string_agg(facet, ', ' ORDER BY facet) || '.' FROM largest WHERE NOT shown) AS left_out
FROM drawn
JOIN levels USING (facet)
WHERE share IS NOT NULL
ORDER BY facet, bound, place, sparsity;

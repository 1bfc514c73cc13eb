-- Zeros alone, by perplexity over dense: the most zeros within a tenth of dense's, and the next sparsity measured. Between the two, what
-- has the scores of tasks but no perplexity: the variant that keeps most of its skill on the worst of them.
WITH asked AS (
    SELECT DISTINCT variant_id FROM cells WHERE weights <> 'random' /* manifests */
), zeros AS (
    SELECT z.*, max(sparsity) FILTER (ratio <= 1.1) OVER (PARTITION BY model, weights) AS most FROM _zeros_alone z JOIN asked USING (variant_id)
), found AS (
    SELECT model, weights, any_value(words) FILTER (sparsity = most) AS words, any_value(share) FILTER (sparsity = most) AS share,
           any_value(n) FILTER (sparsity = most) AS n,
           any_value(most) AS most, min(sparsity) FILTER (sparsity > most) AS next_sparsity,
           arg_min(n, sparsity) FILTER (sparsity > most) AS next_n,
           arg_min(ratio, sparsity) FILTER (sparsity > most) AS next_ratio
    FROM zeros
    WHERE most IS NOT NULL
    GROUP BY model, weights
), files AS (
    SELECT variant_id, any_value(share) AS share FROM sizes WHERE format = 'packed' GROUP BY variant_id
), scored AS (
    SELECT d.model, d.weights, d.variant_id, d.sparsity, min(d.retained) AS kept
    FROM vs_dense d
    JOIN asked USING (variant_id)
    JOIN found f ON (f.model, f.weights) = (d.model, d.weights) AND d.sparsity > f.most AND d.sparsity < f.next_sparsity
    WHERE d.pattern = 'unstructured' AND d.variant_id NOT IN (FROM _more_than_zeros)
    GROUP BY ALL
    HAVING bool_and(d.ratio IS NULL) AND kept >= 0.95
)
SELECT found.* EXCLUDE (most), r.words AS scored_words, kept AS scored_kept, files.share AS scored_share
FROM found
LEFT JOIN scored USING (model, weights)
LEFT JOIN _recipes r USING (variant_id)
LEFT JOIN files USING (variant_id)
QUALIFY row_number() OVER (PARTITION BY model, weights ORDER BY scored.sparsity DESC NULLS LAST, kept DESC, r.words, variant_id) = 1
ORDER BY model

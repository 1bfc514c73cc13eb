-- Zeros alone beside int8, by perplexity over dense: the most zeros within a tenth of dense's and the next sparsity measured, and the two
-- sparsities measured whose files are just larger and just smaller than int8's. Between these two the file is taken to be linear in the
-- sparsity, and the perplexity geometric.
WITH asked AS (
    SELECT DISTINCT variant_id FROM cells WHERE weights <> 'random' /* manifests */
), zeros AS (
    SELECT z.*, max(n) OVER (PARTITION BY model, weights) > n AS fewer FROM _zeros_alone z JOIN asked USING (variant_id)
), bits AS (
    SELECT model, weights, min(share) AS share
    FROM sizes
    JOIN asked USING (variant_id)
    JOIN _recipes USING (variant_id)
    WHERE words = 'int8' AND format = 'packed'
    GROUP BY ALL
), placed AS (
    SELECT z.*, b.share AS int8_share, z.ratio <= 1.1 AS near, z.share <= b.share AS smaller FROM zeros z LEFT JOIN bits b USING (model, weights)
), marked AS (
    SELECT *, max(sparsity) FILTER (near) OVER one AS most, min(sparsity) FILTER (smaller) OVER one AS first_smaller,
           max(sparsity) FILTER (NOT smaller) OVER one AS last_larger
    FROM placed
    WINDOW one AS (PARTITION BY model, weights)
), ends AS (
    SELECT model, weights, any_value(int8_share) AS int8_share,
           any_value([words, n::VARCHAR]) FILTER (sparsity = most) AS near_words, any_value(share) FILTER (sparsity = most) AS near_share, any_value(if(fewer, n, NULL)) FILTER (sparsity = most) AS near_n,
           min(sparsity) FILTER (sparsity > most) AS next_sparsity, arg_min(ratio, sparsity) FILTER (sparsity > most OR most IS NULL) AS next_ratio,
           any_value(last_larger) AS larger, any_value(ratio) FILTER (sparsity = last_larger) AS larger_ratio, any_value(share) FILTER (sparsity = last_larger) AS larger_share,
           any_value(first_smaller) AS smaller, any_value(ratio) FILTER (sparsity = first_smaller) AS smaller_ratio, any_value(share) FILTER (sparsity = first_smaller) AS smaller_share,
           any_value(if(fewer, n, NULL)) FILTER (sparsity = first_smaller) AS smaller_n
    FROM marked
    GROUP BY model, weights
)
SELECT * REPLACE (near_words[1] AS near_words), (larger_share - int8_share) / (larger_share - smaller_share) AS way, larger + way * (smaller - larger) AS met_at, exp(ln(larger_ratio) + way * ln(smaller_ratio / larger_ratio)) AS met_ratio
FROM ends
ORDER BY model

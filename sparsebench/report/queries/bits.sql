-- Fewer bits that pass the quality gate, width by width: the models, the shares of their files, and the most that they lose. Those on most
-- models come first, of these the ones with a perplexity, then the smallest. Told are the first two, the next two where they are smaller than
-- the first, and all that lose next to nothing.
WITH widths AS (
    SELECT recipe, list(DISTINCT model ORDER BY model) AS models, list(share ORDER BY share) AS shares, max(ratio) AS ratio,
           list(DISTINCT model ORDER BY model) FILTER (ratio IS NOT NULL) AS with_perplexity, min(retained) AS retained
    FROM {decision}
    WHERE kind = 'bits'
    GROUP BY recipe
), ranked AS (
    SELECT *, row_number() OVER first_told AS nth, first_value(shares[1]) OVER first_told AS least_of_first
    FROM widths
    WINDOW first_told AS (ORDER BY len(models) DESC, ratio IS NULL, shares[1], recipe)
)
SELECT * EXCLUDE (nth, least_of_first)
FROM ranked
WHERE nth <= 2 OR nth <= 4 AND shares[1] < least_of_first OR ratio < 1.002
ORDER BY nth > 2 AND (nth > 4 OR shares[1] >= least_of_first), nth

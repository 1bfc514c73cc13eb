-- title: Distance of each block's output from the dense model's
-- about: how errors accumulate from block to block, by kind of recipe
-- finding: finding
-- kind: line
-- x: block
-- y: error
-- series: label
-- facet: panel
-- place: place
-- bound: other
-- yscale: log
-- xlabel: transformer block
-- ylabel: distance / length of the dense output
-- note: Mean over tokens of ‖h' - h‖ / ‖h‖: h is the output of a dense block, h' that of the variant's block behind its own blocks. No variant was made from this text. For zeros and bits, the variants nearest and furthest at the last block; for other kinds, the nearest. Chains with bits are left out.
-- boundnote: Grey: kinds other than zeros and bits.

WITH ends AS (
    SELECT DISTINCT o.variant_id, model, weights, side, kind, words, arg_max(o.error, o.block) OVER one AS last, avg(o.own) OVER one AS own
    FROM outputs o
    JOIN _recipes USING (variant_id)
    WHERE NOT chance
    WINDOW one AS (PARTITION BY o.manifest, o.variant_id, side)
), chosen AS (
    FROM ends
    WHERE NOT (contains(kind, '+') AND contains(kind, 'bits'))
    QUALIFY row_number() OVER (PARTITION BY model, weights, side, kind ORDER BY last, words) = 1
         OR kind IN ('zeros', 'bits') AND row_number() OVER (PARTITION BY model, weights, side, kind ORDER BY last DESC, words) = 1
), told AS (
    -- The nearest variant of zeros alone: the mean error of one block, and the error of the last behind all others.
    SELECT model, weights, side, arg_min(words, last) AS words, arg_min(own, last) AS own, min(last) AS last
    FROM chosen
    WHERE kind = 'zeros'
    GROUP BY ALL
)
SELECT DISTINCT c.model, c.side,
       model_label(c.model, c.weights)
           || if(c.side IN ('encoder', 'decoder') AND o.family = 'encoder-decoder', chr(10) || c.side, '') AS panel,
       c.words AS label, c.kind, c.kind NOT IN ('zeros', 'bits') AS other, _kind_place(c.kind) AS place, o.block, o.error,
       CASE WHEN count(DISTINCT concat(c.model, c.weights, c.side)) OVER () = 1 AND t.words IS NOT NULL THEN
           format('{}: a block alone is {:.0f}% off, the last behind all others {:.0f}%', t.words, 100 * t.own, 100 * t.last)
       END AS finding
FROM chosen c
JOIN outputs o ON o.variant_id = c.variant_id AND o.side = c.side
LEFT JOIN told t ON (t.model, t.weights, t.side) = (c.model, c.weights, c.side)
WHERE o.error > 0
ORDER BY c.model, c.side, place, label, o.block;

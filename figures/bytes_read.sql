-- title: Quality against bytes read for a token: zeros, bits, skipped inputs, experts
-- about: the quality that each kind of recipe keeps for the bytes that one token must read, with the Pareto front
-- finding: finding
-- kind: scatter
-- x: megabytes
-- y: score
-- low: low
-- high: high
-- series: kind
-- place: place
-- facet: panel
-- front: low
-- text: label
-- texts: all
-- reference: dense = dense
-- yscale: log
-- xlabel: bytes of weights that one token reads, packed format, MB
-- ylabel: perplexity (lower is better)
-- note: Bytes are counted, not timed: the weight files in the packed format, without the weights of the blocks that skipping leaves unread on the calibration text (their files stay as large as the dense model's). An embedding table that is not the output head too would count whole. Solid and joined: no other variant is as good and reads less. Models above ten times the dense perplexity are left out. Brackets: the number of a calibration text that is not a method's usual one (d: dense inputs).

WITH points AS (
    SELECT DISTINCT c.panel, c.score, c.low, c.high, c.dense, coalesce(replace(words, '(text ', '('), 'dense') AS label,
           coalesce(kind, 'dense') AS kind,
           read_bytes / 1e6 AS megabytes
    FROM curves c
    JOIN sizes s USING (variant_id)
    LEFT JOIN _recipes r ON r.variant_id = c.variant_id AND c.method <> 'dense'
    WHERE scale = 'perplexity' AND score <= 10 * dense AND NOT coalesce(r.chance, false) AND format = 'packed'
), told AS (
    -- Of the variants that skip, and of all others, the one that reads least within a tenth of the dense perplexity.
    SELECT panel, bool_or(skips) AS skipping, min(megabytes) FILTER (kind = 'dense') AS whole,
           arg_min(label, megabytes) FILTER (close AND skips) AS skip, min(megabytes) FILTER (close AND skips) AS skip_least,
           arg_min(label, megabytes) FILTER (close AND NOT skips) AS other, min(megabytes) FILTER (close AND NOT skips) AS other_least
    FROM (SELECT *, score <= 1.1 * dense AS close, kind LIKE '%skipped inputs' OR kind LIKE '%experts' AS skips FROM points)
    GROUP BY panel
)
SELECT panel, label, kind, megabytes, score, low, high, dense, _kind_place(kind) AS place,
       CASE WHEN count(DISTINCT panel) OVER () = 1 THEN
           concat('Within a tenth of the dense perplexity, ',
                  CASE WHEN skip IS NULL THEN 'nothing that skips stands'
                      ELSE format('{} reads {:.0f}% of the bytes', skip, 100 * skip_least / whole) END,
                  format('; {} {:.0f}%', other, 100 * other_least / whole))
       END AS finding
FROM points
JOIN told USING (panel)
WHERE skipping
ORDER BY panel, kind = 'dense', place, megabytes, label, score;

-- title: Skill against size: which variants are worth their bytes
-- finding: finding
-- about: the skill that each variant keeps on its weakest task for its share of dense's bytes, with the Pareto front
-- kind: scatter
-- x: share
-- y: retained
-- series: kind
-- place: place
-- facet: panel
-- bound: bound
-- front: high_wins
-- text: label
-- texts: all
-- columns: 2
-- xshare: yes
-- yscale: percent
-- reference: gate = quality gate; dense = dense
-- footnote: left_out
-- xlabel: weight files, zeros packed, % of dense
-- ylabel: least skill kept, %
-- note: Skill: (score - chance) / (dense score - chance), of the task that keeps least. Percentages: of the weights that are zero, or of the blocks' parameters that were removed. GGUF: the file that the model's weights came out of. Joined: of what passes the gate, no other variant is as good and smaller. Below half of the skill nothing is shown. Brackets: a calibration text that is not a method's usual one (d: dense inputs).
-- boundnote: Grey: fails the quality gate, 95% of dense's skill on every task and 1.1 times its perplexity.

WITH files AS (
    SELECT model, weights, variant_id, min(bytes) FILTER (format IN ('dense', 'packed')) AS bytes,
           min(bytes) FILTER (format = 'source' AND weights = 'dequantized') AS fetched, bool_or(method = 'dense') AS whole
    FROM sizes
    GROUP BY ALL
), plain AS (
    SELECT model, weights, max(bytes) FILTER (whole) AS whole, max(fetched) AS fetched FROM files GROUP BY ALL
), points AS (
    SELECT g.model, g.weights, kind, replace(words, '(text ', '(') AS label, g.retained, passes, f.bytes / p.whole AS share, p.whole
    FROM gate g
    JOIN _recipes k USING (variant_id)
    JOIN files f USING (variant_id)
    JOIN plain p ON p.model = g.model AND p.weights = g.weights
    -- A variant that skips keeps every byte (bytes_read shows it); chains of three kinds crowd the others.
    WHERE g.retained >= 0.5 AND NOT ruined AND NOT k.chance AND NOT regexp_matches(kind, 'skipped inputs|experts|\+.*\+')
), chosen AS (
    -- What does not pass is shown where it is the best of its kind at these bytes; what passes where it is the smallest or the best.
    FROM points
    QUALIFY row_number() OVER (PARTITION BY model, weights, passes, kind, round(share, if(passes, 2, 1))
        ORDER BY retained DESC, label) = 1
), drawn AS (
    FROM chosen
    UNION ALL BY NAME
    SELECT model, weights, 'dense' AS kind, 'dense' AS label, 1::DOUBLE AS retained, true AS passes, 1::DOUBLE AS share, whole
    FROM plain
    WHERE model IN (SELECT model FROM chosen)
    UNION ALL BY NAME
    SELECT model, weights, 'as fetched' AS kind, 'GGUF' AS label, 1::DOUBLE AS retained, true AS passes, fetched / whole AS share,
           whole
    FROM plain
    WHERE fetched IS NOT NULL AND model IN (SELECT model FROM chosen)
), least AS (
    -- The smallest file that passes, by model; the four largest models are drawn.
    SELECT model, weights, min(share) FILTER (passes) AS share, row_number() OVER (ORDER BY max(whole) DESC, model) <= 4 AS shown
    FROM chosen
    GROUP BY model, weights
)
SELECT round(100 * share, 1) AS share, retained, kind, _kind_place(kind) AS place, NOT passes AS bound,
       if(kind = 'as fetched' OR NOT passes, NULL, true) AS high_wins, label, 0.95::DOUBLE AS gate, 1::DOUBLE AS dense,
       model_label(model, weights) AS panel,
       (SELECT format('Of the variants scored on tasks, the smallest that passes the gate has {}% of dense''s bytes{}',
           range_label('{:.0f}', 100 * min(share), 100 * max(share)), if(count(share) > 1, ', by model', '')) FROM least
               HAVING count(share) > 0) AS finding,
       (SELECT 'Not drawn: ' || string_agg(model || coalesce(format(' ({:.0f}%)', 100 * share), ''), ', ' ORDER BY model) || '.'
           FROM least WHERE NOT shown) AS left_out
FROM drawn
WHERE model IN (SELECT model FROM least WHERE shown)
ORDER BY panel, bound, kind IN ('dense', 'as fetched'), place, share, label;

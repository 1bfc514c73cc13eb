-- title: Quality against bytes: zeros, bits, smaller shapes, training
-- about: the quality that each kind of recipe keeps for its bytes, with the Pareto front
-- finding: finding
-- kind: scatter
-- x: megabytes
-- y: score
-- low: low
-- high: high
-- series: kind
-- place: place
-- facet: panel
-- columns: 1
-- front: high_wins
-- text: label
-- texts: all
-- reference: dense = dense
-- yscale: log
-- xlabel: weight files in the packed format, MB
-- ylabel: perplexity (lower is better)
-- note: Percentages: of the weights that are zero, or of the blocks' parameters that were removed. GGUF: the file from which the model's weights were dequantized. Solid and joined: no other variant made here is as good and smaller (to three digits); the GGUF takes no part in that front. Whiskers: 95% intervals; within them neighbours may change places. Models above ten times the dense perplexity are left out. Of variants with one name (trained for longer or shorter) the best is shown. Brackets: the number of a calibration text that is not a method's usual one (d: dense inputs).

WITH packed AS (
    SELECT variant_id, format, any_value(bytes) AS bytes FROM sizes WHERE format IN ('packed', 'source') GROUP BY ALL
), points AS (
    SELECT DISTINCT c.model, c.weights, c.panel, c.sparsity, c.variant_id, c.score, c.low, c.high, min(c.dense) OVER (PARTITION BY c.panel) AS dense, bytes / 1e6 AS megabytes,
           CASE WHEN format = 'source' THEN 'GGUF' ELSE coalesce(replace(words, '(text ', '('), 'dense') END AS label,
           CASE WHEN format = 'source' THEN 'as fetched' ELSE coalesce(kind, 'dense') END AS kind
    FROM curves c
    JOIN packed USING (variant_id)
    LEFT JOIN _recipes r ON r.variant_id = c.variant_id AND c.method <> 'dense'
    WHERE scale = 'perplexity' AND score <= 10 * c.dense AND NOT coalesce(r.chance, false) AND (format = 'packed' OR weights = 'dequantized')
      -- A variant that skips keeps every byte: bytes_read shows it.
      AND NOT regexp_matches(coalesce(kind, ''), 'skipped inputs|experts')
    -- One panel per model: the one that was scored on the most text.
    QUALIFY n = max(n) OVER (PARTITION BY c.model)
), named AS (
    SELECT * FROM points QUALIFY row_number() OVER (PARTITION BY panel, label, kind ORDER BY score, megabytes) = 1
), told AS (
    -- The smallest that stays within a tenth of the dense perplexity. Other figures show one kind beside dense.
    SELECT panel, any_value(model) AS model, any_value(weights) AS weights, min(megabytes) FILTER (kind = 'dense') AS whole, arg_min(label, megabytes) FILTER (close) AS best,
           arg_min(kind, megabytes) FILTER (close) AS best_kind, min(megabytes) FILTER (close) / whole AS share, min(megabytes) FILTER (kind = 'as fetched') / whole AS fetched
    FROM (SELECT *, score <= 1.1 * dense AND kind NOT IN ('dense', 'as fetched') AS close FROM points)
    GROUP BY panel
    HAVING count(DISTINCT kind) FILTER (kind <> 'dense') > 2
), zeros AS (
    -- Zeros alone, on whatever windows they were scored: the most within a tenth, and the next sparsity measured.
    SELECT model, weights, any_value(format(', {:.0f}% by zeros alone ({}{}', 100 * share, words, if(n < whole, format(', n = {}', n), ''))) FILTER (sparsity = most) AS kept,
           arg_min(format('; next measured, {}%: ×{:.2f}', percent_label(sparsity), ratio), sparsity) FILTER (sparsity > most) AS next
    FROM (SELECT *, max(sparsity) FILTER (ratio <= 1.1) OVER one AS most, max(n) OVER one AS whole FROM _zeros_alone WINDOW one AS (PARTITION BY model, weights))
    GROUP BY ALL
), said AS (
    SELECT 'Bytes within a tenth of dense''s perplexity: '
           || string_agg(concat(if(several, model || ' ', ''), format('{:.0f}% by {}', 100 * share, best), if(best_kind = 'zeros', '', kept || coalesce(next, '') || ')')), '; ' ORDER BY share)
           -- A grid of 16 values is easily met again.
           || coalesce('. The weights came out of 4 bits, which favours int4: the GGUF has ' || range_label('{:.0f}', 100 * min(fetched), 100 * max(fetched)) || '%', '') AS finding
    FROM (SELECT *, count(*) OVER () > 1 AS several FROM told)
    LEFT JOIN zeros USING (model, weights)
    WHERE best IS NOT NULL
)
SELECT panel, label, kind, round(megabytes, 2 - floor(log10(megabytes))::INTEGER) AS megabytes, score, low, high, dense,
       _kind_place(kind) AS place, if(kind = 'as fetched', NULL, false) AS high_wins, finding
FROM named
JOIN told USING (panel)
CROSS JOIN said
ORDER BY panel, kind IN ('dense', 'as fetched'), place, megabytes, label;

-- Each model as it came: its size, and the share of its parameters that pruning may touch.
-- A GGUF may store a tied output head a second time, rounded otherwise; it counts once.
WITH asked AS (
    SELECT DISTINCT variant_id FROM cells WHERE method = 'dense' /* manifests */
), twice AS (
    SELECT h.variant_id, h.name
    FROM tensors h
    JOIN tensors e USING (variant_id, count)
    WHERE h.method = 'dense' AND h.weights = 'dequantized' AND h.name = 'lm_head.weight' AND e.name LIKE '%embed_tokens.weight'
        AND abs(h.rms / e.rms - 1) < 0.001
), files AS (
    SELECT variant_id, max(unprunable_bytes / bytes) AS unprunable_share FROM sizes WHERE format = 'dense' GROUP BY variant_id
), counted AS (
    SELECT variant_id, sum(count)::BIGINT AS parameters, sum(count) FILTER (prunable)::BIGINT AS prunable,
           string_agg(DISTINCT dtype, ', ' ORDER BY dtype) AS formats,
           count(DISTINCT (side, layer)) FILTER (layer IS NOT NULL AND prunable) AS layers,
           count(DISTINCT layer) FILTER (side = 'encoder' AND layer IS NOT NULL AND prunable) AS encoding,
           any_value(shape[1]) FILTER (kind = 'down') AS width, variant_id IN (SELECT variant_id FROM twice) AS stored_twice
    FROM (SELECT DISTINCT variant_id, name, count, prunable, dtype, side, layer, kind, shape FROM tensors
        WHERE method = 'dense' AND (variant_id, name) NOT IN (SELECT (variant_id, name) FROM twice))
    GROUP BY variant_id
)
SELECT model, family, weights, parameters, layers,
       if(encoding BETWEEN 1 AND layers - 1, format('{} + {}', encoding, layers - encoding), layers::VARCHAR) AS depth, width,
       prunable, prunable / parameters AS prunable_share,
       1 - prunable_share AS kept_share, 1 / nullif(kept_share, 0) AS limit, coalesce(stored_twice, false) AS stored_twice,
       unprunable_share AS kept_file_share,
       coalesce(formats, dtype) AS formats,
       -- A file in many parts is named by the first, with their number.
       regexp_replace(regexp_replace(source, '(#sha256=[0-9a-f]{8})[0-9a-f]+', '\1…', 'g'), '^(\S+) \+ .* \+ \S+( as \S+)?$',
                      '\1 + … (' || len(string_split(source, ' + ')) || ' parts)\2') AS source, revision
FROM asked
JOIN base.variants USING (variant_id)
LEFT JOIN counted USING (variant_id)
LEFT JOIN files USING (variant_id)
-- A model made with other libraries is another variant, but the same model.
QUALIFY row_number() OVER (PARTITION BY model, weights, dtype, source, revision ORDER BY parameters NULLS LAST, variant_id) = 1
ORDER BY weights = 'random', model, formats

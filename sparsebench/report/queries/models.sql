-- Each model as it came: its size, and the share of its parameters that pruning may touch.
WITH asked AS (
    SELECT DISTINCT variant_id FROM cells WHERE method = 'dense' /* manifests */
), counted AS (
    SELECT variant_id, sum(count)::BIGINT AS parameters, sum(count) FILTER (prunable)::BIGINT AS prunable,
           string_agg(DISTINCT dtype, ', ' ORDER BY dtype) AS formats
    FROM (SELECT DISTINCT variant_id, name, count, prunable, dtype FROM tensors WHERE method = 'dense')
    GROUP BY variant_id
)
SELECT model, family, weights, parameters, prunable, prunable / parameters AS prunable_share,
       1 - prunable_share AS kept_share, 1 / nullif(kept_share, 0) AS limit,
       coalesce(formats, dtype) AS formats,
       -- Of a file in many parts the first, and how many there are.
       regexp_replace(regexp_replace(source, '(#sha256=[0-9a-f]{8})[0-9a-f]+', '\1…', 'g'), '^(\S+) \+ .* \+ \S+( as \S+)?$',
                      '\1 + … (' || len(string_split(source, ' + ')) || ' parts)\2') AS source, revision
FROM asked
JOIN base.variants USING (variant_id)
LEFT JOIN counted USING (variant_id)
-- Made with other libraries it is another variant, and still the same model.
QUALIFY row_number() OVER (PARTITION BY model, weights, dtype, source, revision ORDER BY parameters NULLS LAST, variant_id) = 1
ORDER BY weights = 'random', model, formats

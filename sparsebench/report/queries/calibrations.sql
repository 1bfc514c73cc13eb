-- The calibration texts that methods read: their notation, samples x tokens in each, and how many tokens were read. More than `at_most`
-- were read where a training followed.
WITH made AS (
    SELECT variant_id, any_value(calibration_tokens) AS tokens, left(any_value(calibration_sha256), 8) AS sha256
    FROM base.makings
    JOIN base.records USING (record_id)
    WHERE status = 'done'
    GROUP BY variant_id
)
SELECT text_number AS number, text,
       -- `boolq passage 16×512` of `…/boolq/none/validation/data-00000-of-00001.arrow passage 16×512`: folders say little, and names of parts nothing.
       regexp_replace(regexp_replace(text, '^(?:.*?[/!])?([^/!]+)/(?:(?:none|default|main|train|validation|test)/)*data-\d+\S*',
           '\1'), '^\S*[/!]', '') AS short,
       TRY_CAST(regexp_extract(text, '(\d+)×\d+$', 1) AS BIGINT) * TRY_CAST(regexp_extract(text, '×(\d+)$',
           1) AS BIGINT) AS at_most, model, weights, tokens, string_agg(DISTINCT sha256, ', ' ORDER BY sha256) AS sha256,
       string_agg(DISTINCT method, ', ' ORDER BY method) AS methods,
       string_agg(DISTINCT nullif(propagate, ''), ', ' ORDER BY nullif(propagate, '') DESC) AS propagate,
       string_agg(DISTINCT seed::VARCHAR, ', ' ORDER BY seed::VARCHAR) AS seeds
FROM cells
JOIN ways USING (variant_id)
LEFT JOIN made USING (variant_id)
WHERE status = 'done' AND text IS NOT NULL /* manifests */
GROUP BY number, text, model, weights, tokens
ORDER BY number, weights = 'random', model, tokens

-- What each kind of recipe costs on two models, those with most kinds: one scored by perplexity, and one by skill alone. Of the variants
-- that pass the quality gate, the one whose tokens read least, else the one that loses least.
-- Experts that an oracle picks are a kind of their own: a bound, not a method. Bytes are relative to dense. `amount`: the share that goes, or
-- the bits.
WITH done AS (
    SELECT DISTINCT variant_id FROM cells WHERE status = 'done' /* manifests */
), priced AS (
    SELECT variant_id, min(share) AS file, arg_min(share * read_bytes / bytes, share) AS read
    FROM sizes
    WHERE format = 'packed'
    GROUP BY variant_id
), judged AS (
    SELECT g.model, g.weights, if(r.kind = 'experts' AND r.words LIKE '%oracle', 'experts by oracle', r.kind) AS kind, r.words,
           coalesce(nullif(regexp_extract(r.words, '(\d+(?:\.\d+)?%)', 1), ''),
               regexp_replace(r.words, ' (in groups|\(text).*', '')) AS amount, g.ratio AS perplexity, g.retained, file, read,
           g.passes, bool_or(g.ratio IS NOT NULL) OVER (PARTITION BY g.model, g.weights) AS reads_on
    FROM gate g
    JOIN done USING (variant_id)
    JOIN priced USING (variant_id)
    JOIN _recipes r USING (variant_id)
    WHERE g.tasks > 0 AND NOT r.chance
), ranked AS (
    -- Where the model has a perplexity, a variant without one says less.
    FROM judged
    QUALIFY row_number() OVER (PARTITION BY model, weights, kind
        ORDER BY reads_on AND perplexity IS NULL, NOT passes, if(passes, round(read, 2), NULL), perplexity, words LIKE '%(text%',
            retained DESC, words) = 1
), counted AS (
    SELECT *, count(*) OVER (PARTITION BY model, weights) AS kinds FROM ranked
)
SELECT * EXCLUDE (passes, kinds)
FROM counted
QUALIFY (model, weights) = first_value((model, weights)) OVER (PARTITION BY reads_on ORDER BY kinds DESC, model, weights DESC)
ORDER BY NOT reads_on, kind

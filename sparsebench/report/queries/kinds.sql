-- What each kind of recipe costs on one model, that with most kinds: of the variants within a quarter of the dense perplexity the one whose
-- tokens read least, else the one that loses least. Perplexity and bytes are relative to dense.
WITH done AS (
    SELECT DISTINCT variant_id FROM cells WHERE status = 'done' /* manifests */
), priced AS (
    SELECT r.kind, s.model, r.words, s.score / v.dense_score AS perplexity, share AS file, share * read_bytes / bytes AS read
    FROM (FROM scores WHERE metric = 'perplexity') s
    JOIN done ON done.variant_id = s.variant_id
    JOIN vs_dense v USING (manifest, record_id)
    JOIN sizes z ON z.variant_id = s.variant_id AND z.manifest = s.manifest AND z.format = 'packed'
    JOIN _recipes r ON r.variant_id = s.variant_id
    WHERE NOT r.chance
), ranked AS (
    SELECT *, row_number() OVER (PARTITION BY model, kind ORDER BY perplexity > 1.25, if(perplexity > 1.25, perplexity, read), words) AS place FROM priced
), counted AS (
    SELECT *, count(*) OVER (PARTITION BY model) AS kinds FROM ranked WHERE place = 1
)
SELECT * EXCLUDE (place, kinds)
FROM counted
QUALIFY model = first_value(model) OVER (ORDER BY kinds DESC, model)
ORDER BY kind

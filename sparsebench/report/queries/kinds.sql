-- What was done to models, by kind of recipe: how many variants, and one of them.
WITH done AS (
    SELECT DISTINCT variant_id FROM cells WHERE status = 'done' /* manifests */
), named AS (
    SELECT variant_id, string_agg(kind, ' + ' ORDER BY position) AS kind
    FROM (
        SELECT variant_id, min(position) AS position,
               _kind(step) AS kind
        FROM steps
        JOIN done USING (variant_id)
        GROUP BY variant_id, step
    )
    GROUP BY variant_id
)
SELECT kind, count(*) AS variants, min(recipe) AS example
FROM named
JOIN variants USING (variant_id)
WHERE kind <> 'floor'
GROUP BY kind
ORDER BY variants DESC, kind

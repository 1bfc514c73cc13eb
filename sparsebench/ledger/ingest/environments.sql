INSERT INTO base.environments BY NAME
WITH typed AS (
    SELECT from_json(r -> '$.environment', '{"id":"VARCHAR","machine":"VARCHAR","platform":"VARCHAR","cpu":"VARCHAR",
        "cores":"INTEGER","memory_bytes":"BIGINT","gpus":["VARCHAR"],"python":"VARCHAR","libraries":"JSON",
        "git_commit":"VARCHAR","git_dirty":"BOOLEAN"}') AS e
    FROM incoming
    WHERE kind = 'cell'
)
SELECT DISTINCT ON (environment_id) e.id AS environment_id, e.* EXCLUDE (id)
FROM typed
WHERE e.id NOT IN (SELECT environment_id FROM base.environments);

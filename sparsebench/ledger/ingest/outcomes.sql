INSERT INTO base.outcomes
WITH typed AS (
    SELECT record_id, from_json(result -> '$.outcomes', '[{"doc_id":"VARCHAR","doc_hash":"VARCHAR","value":"DOUBLE",
        "label":"DOUBLE","cluster":"VARCHAR"}]') AS outcomes
    FROM incoming
    WHERE done = 'benchmarks'
)
SELECT record_id, generate_subscripts(outcomes, 1) AS position, unnest(outcomes, recursive := true)
FROM typed;

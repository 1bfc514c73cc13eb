-- The records of this call that the ledger does not have yet, each once, with its position in `$records`, a list of JSON texts.
-- Its cell and its start identify a record: the same record read again changes nothing.
CREATE TEMP TABLE incoming AS
WITH given AS (
    SELECT unnest($records::VARCHAR[])::JSON AS r, generate_subscripts($records::VARCHAR[], 1) AS position
), named AS (
    SELECT r, position, coalesce(r ->> '$.started_at', r ->> '$.written_at')::TIMESTAMP AS started_at,
           coalesce(r ->> '$.cell_id', 'plan ' || (r ->> '$.manifest')) AS subject
    FROM given
), keyed AS (
    SELECT left(md5(subject || ' ' || started_at::VARCHAR), 16) AS record_id, started_at, position, r FROM named
)
SELECT record_id, min(position) AS position, any_value(started_at) AS started_at, any_value(r) AS r,
       any_value(coalesce(r ->> '$.kind', 'cell')) AS kind,
       any_value(CASE WHEN r ->> '$.status' = 'done' THEN r ->> '$.stage' END) AS done,
       any_value(r -> '$.result') AS result
FROM keyed
WHERE record_id NOT IN (SELECT record_id FROM base.records UNION ALL SELECT plan_id FROM base.plans)
GROUP BY record_id;

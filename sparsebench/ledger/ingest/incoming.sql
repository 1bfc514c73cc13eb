-- The records of this call that the ledger does not have yet, each once, with its position in `$records`, a list of JSON texts, and
-- whether its origin is `$own`, that of this workspace. The same record read again changes nothing, nor does one that another manifest
-- or maker has taken over. The cell and the start give the id; where another record has that, what the record says is a part of it.
CREATE TEMP TABLE incoming AS
WITH given AS (
    SELECT unnest($records::VARCHAR[])::JSON AS r, generate_subscripts($records::VARCHAR[], 1) AS position
), named AS (
    SELECT r, position, coalesce(r ->> '$.started_at', r ->> '$.written_at')::TIMESTAMP AS started_at,
           coalesce(r ->> '$.cell_id', 'plan ' || (r ->> '$.manifest')) AS subject, coalesce(r ->> '$.origin', '') AS origin,
           origin = $own AND origin <> '' AS own,
           md5(json_merge_patch(r, '{"checksum":null,"origin":null,"manifest":null}'::JSON)::VARCHAR) AS digest
    FROM given
), keyed AS (
    SELECT *, left(md5(subject || ' ' || started_at::VARCHAR), 16) AS plain,
           left(md5(concat_ws(' ', subject, started_at, digest, own)), 16) AS longer
    FROM named
), known AS (
    SELECT record_id, digest, own FROM base.records UNION ALL SELECT plan_id, digest, own FROM base.plans
), fresh AS (
    SELECT *, row_number() OVER (PARTITION BY plain ORDER BY position) = 1 AND plain NOT IN (SELECT record_id FROM known) AS alone
    FROM (SELECT DISTINCT ON (plain, digest, own) * FROM keyed ORDER BY position) keyed
    WHERE NOT EXISTS (FROM known WHERE record_id = longer)
      AND NOT EXISTS (FROM known WHERE record_id = plain AND known.digest = keyed.digest AND known.own >= keyed.own)
)
SELECT if(alone, plain, longer) AS record_id, position, started_at, r, digest, origin, own, coalesce(r ->> '$.kind', 'cell') AS kind,
       CASE WHEN r ->> '$.status' = 'done' THEN r ->> '$.stage' END AS done, r -> '$.result' AS result
FROM fresh;

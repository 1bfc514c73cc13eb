-- The records of this call that the ledger does not have yet, each once, with its position in `$records`, a list of JSON texts, and
-- whether its origin is `$own`, that of this workspace. The same record read again changes nothing. The cell and the start give the id;
-- where another record has that, the checksum is a part of it.
CREATE TEMP TABLE incoming AS
WITH given AS (
    SELECT unnest($records::VARCHAR[])::JSON AS r, generate_subscripts($records::VARCHAR[], 1) AS position
), named AS (
    SELECT r, position, coalesce(r ->> '$.started_at', r ->> '$.written_at')::TIMESTAMP AS started_at,
           coalesce(r ->> '$.cell_id', 'plan ' || (r ->> '$.manifest')) AS subject,
           coalesce(r ->> '$.checksum', md5(r::VARCHAR)) AS checksum, coalesce(r ->> '$.origin', '') AS origin
    FROM given
), keyed AS (
    SELECT *, left(md5(subject || ' ' || started_at::VARCHAR), 16) AS plain,
           left(md5(concat_ws(' ', subject, started_at::VARCHAR, checksum)), 16) AS longer
    FROM named
), known AS (
    -- Ledgers from before there were checksums have none.
    SELECT record_id, checksum FROM base.records UNION ALL SELECT plan_id, checksum FROM base.plans
), fresh AS (
    SELECT *, row_number() OVER (PARTITION BY plain ORDER BY position) = 1 AND plain NOT IN (SELECT record_id FROM known) AS alone
    FROM (SELECT DISTINCT ON (plain, checksum) * FROM keyed ORDER BY position) keyed
    WHERE NOT EXISTS (FROM known WHERE record_id = plain AND coalesce(known.checksum, keyed.checksum) = keyed.checksum)
      AND NOT EXISTS (FROM known WHERE record_id = longer)
)
SELECT if(alone, plain, longer) AS record_id, position, started_at, r, checksum, origin, origin = $own AND origin <> '' AS own,
       coalesce(r ->> '$.kind', 'cell') AS kind, CASE WHEN r ->> '$.status' = 'done' THEN r ->> '$.stage' END AS done,
       r -> '$.result' AS result
FROM fresh;

INSERT INTO base.plans BY NAME
SELECT record_id AS plan_id, r ->> '$.manifest' AS manifest, r ->> '$.machine' AS machine, started_at,
       origin, own, digest
FROM incoming
WHERE kind = 'plan';

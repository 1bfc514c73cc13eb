-- What this workspace says of a variant replaces what a stranger said.
CREATE TEMP TABLE described AS
WITH named AS (
    SELECT r -> '$.variant' AS variant, own, position FROM incoming WHERE kind = 'cell'
    UNION ALL
    SELECT unnest(from_json(r -> '$.cells', '[{"variant":"JSON"}]')).variant, own, position FROM incoming WHERE kind = 'plan'
)
SELECT DISTINCT ON (variant_id) variant ->> '$.id' AS variant_id, variant, own
FROM named
WHERE variant IS NOT NULL
ORDER BY NOT own, position;
DELETE FROM described WHERE variant_id IN (SELECT variant_id FROM base.variants v WHERE v.own OR NOT described.own);
DELETE FROM base.variants WHERE variant_id IN (SELECT variant_id FROM described);
DELETE FROM base.steps WHERE variant_id IN (SELECT variant_id FROM described);

-- The first record to name a variant describes it; a plan also names those that have no record yet.
INSERT INTO base.variants BY NAME
WITH named AS (
    SELECT r -> '$.variant' AS variant FROM incoming WHERE kind = 'cell'
    UNION ALL
    SELECT unnest(from_json(r -> '$.cells', '[{"variant":"JSON"}]')).variant FROM incoming WHERE kind = 'plan'
), typed AS (
    SELECT from_json(variant, '{"id":"VARCHAR","model":"VARCHAR","family":"VARCHAR","source":"VARCHAR","revision":"VARCHAR",
        "weights":"VARCHAR","dtype":"VARCHAR","method":"VARCHAR","granularity":"VARCHAR","pattern":"VARCHAR",
        "sparsity":"DOUBLE","seed":"BIGINT","calibration":"VARCHAR",
        "allocation":"VARCHAR","propagate":"VARCHAR","recipe":"VARCHAR","beside":"VARCHAR","parents":"VARCHAR[]"}') AS v
    FROM named
    WHERE variant IS NOT NULL
)
SELECT v.id AS variant_id, any_value(v.model) AS model, any_value(v.family) AS family, any_value(v.source) AS source,
       any_value(v.revision) AS revision, any_value(v.weights) AS weights, any_value(v.dtype) AS dtype,
       any_value(v.method) AS method, any_value(v.granularity) AS granularity, any_value(v.pattern) AS pattern,
       any_value(v.sparsity) AS sparsity, any_value(v.seed) AS seed, any_value(v.calibration) AS calibration,
       any_value(coalesce(v.allocation, 'uniform')) AS allocation, any_value(coalesce(v.propagate, '')) AS propagate,
       -- Versions of this program may name a variant in other words.
       min(v.recipe) AS recipe, min(v.beside) AS beside, any_value(v.parents[-1]) AS parent
FROM typed
WHERE v.id NOT IN (SELECT variant_id FROM base.variants)
GROUP BY v.id;

-- The first record to name a variant describes it, or the first one of this workspace; a plan also names those that have no record yet.
INSERT INTO base.variants BY NAME
WITH typed AS (
    SELECT from_json(variant, '{"id":"VARCHAR","model":"VARCHAR","family":"VARCHAR","source":"VARCHAR","revision":"VARCHAR",
        "weights":"VARCHAR","dtype":"VARCHAR","method":"VARCHAR","granularity":"VARCHAR","pattern":"VARCHAR",
        "sparsity":"DOUBLE","seed":"BIGINT","calibration":"VARCHAR",
        "allocation":"VARCHAR","propagate":"VARCHAR","recipe":"VARCHAR","beside":"VARCHAR","parents":"VARCHAR[]"}') AS v, own
    FROM described
)
SELECT v.id AS variant_id, v.* EXCLUDE (id, parents), v.parents[-1] AS parent, own
FROM typed;

-- One row for each setting of each step of a variant; a step without settings has one row with none.
INSERT INTO base.steps BY NAME
WITH steps AS (
    SELECT variant_id, from_json(variant -> '$.steps', '["JSON"]') AS steps FROM described
), single AS (
    SELECT variant_id, unnest(steps) AS step, generate_subscripts(steps, 1)::INTEGER AS position FROM steps
), fields AS (
    SELECT variant_id, position, step ->> '$.verb' AS verb, step ->> '$.name' AS name, step -> '$.settings' AS settings,
           unnest(if(len(json_keys(step -> '$.settings')) = 0, [NULL], json_keys(step -> '$.settings'))) AS field
    FROM single
)
SELECT variant_id, position, verb AS step, name, field, json_extract(settings, '$."' || field || '"') AS value FROM fields;

INSERT INTO base.manifest_cells BY NAME
WITH cells AS (
    SELECT record_id, from_json(r -> '$.cells', '[{"cell_id":"VARCHAR","stage":"VARCHAR","label":"VARCHAR",
        "settings":"JSON","variant":{"id":"VARCHAR","model":"VARCHAR"}}]') AS cells
    FROM incoming
    WHERE kind = 'plan'
), listed AS (
    SELECT record_id, unnest(cells) AS c, generate_subscripts(cells, 1) AS position FROM cells
)
SELECT record_id AS plan_id, position, c.cell_id, c.stage, c.label, c.variant.id AS variant_id, c.variant.model AS model, c.settings
FROM listed;

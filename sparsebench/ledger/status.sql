-- Every cell that a manifest asks for and how it stands; one that several places were asked for is done where any has done it.
SELECT manifest, stage, concat_ws(' ', model, recipe) || ' · ' || label AS cell, replace(status, 'missing', 'left') AS status, reason
FROM cells
QUALIFY row_number() OVER (PARTITION BY manifest, cell_id ORDER BY status <> 'done', started_at DESC) = 1
ORDER BY manifest, position

-- Every variant of which something was measured, and what a person may call it by.
SELECT variant_id AS id, model, weights, dtype, recipe, seed, calibration
FROM variants
WHERE variant_id IN (SELECT variant_id FROM cells WHERE status = 'done')
ORDER BY model, recipe <> 'dense', recipe, seed, dtype, id;

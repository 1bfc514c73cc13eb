CREATE OR REPLACE VIEW cells AS
SELECT manifest, position, stage, label, coalesce(status, 'missing') AS status, reason, variant_id, model, family, weights, recipe,
       method, granularity, pattern, sparsity, allocation, seed, calibration, propagate, settings, started_at, seconds, machine, cell_id
FROM _cells
ORDER BY manifest, position;

COMMENT ON VIEW cells IS 'every cell that a manifest asks for, and how it stands';

CREATE OR REPLACE VIEW failures AS
SELECT manifest, stage, label, status, reason, model, family, weights, method, granularity, pattern, sparsity, seed, variant_id,
       started_at, seconds, machine, cell_id
FROM _cells
WHERE status IN ('failed', 'unsupported', 'skipped')
ORDER BY manifest, position;

COMMENT ON VIEW failures IS 'cells without a result, with the reason';
COMMENT ON COLUMN failures.status IS 'failed (an error), unsupported (the combination does not exist) or skipped (what it needs had failed)';

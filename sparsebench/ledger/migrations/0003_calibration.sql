-- How a version came about beyond its method, and what it was calibrated on.
ALTER TABLE base.variants ADD COLUMN allocation VARCHAR;
ALTER TABLE base.variants ADD COLUMN propagate VARCHAR;
ALTER TABLE base.sparsify ADD COLUMN calibration_tokens BIGINT;
ALTER TABLE base.sparsify ADD COLUMN calibration_sha256 VARCHAR;

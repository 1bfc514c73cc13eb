-- How far each block of a variant is from the dense model's, by what it gives.
CREATE TABLE base.outputs (record_id VARCHAR NOT NULL, side VARCHAR, block INTEGER, own DOUBLE, error DOUBLE);

-- How a training went, and the operations that it took.
ALTER TABLE base.makings ADD COLUMN operations DOUBLE;
CREATE TABLE base.curves (
    record_id VARCHAR NOT NULL, step BIGINT, tokens BIGINT, loss DOUBLE, held_out DOUBLE
);

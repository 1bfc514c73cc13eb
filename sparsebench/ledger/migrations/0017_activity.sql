-- What calibration text showed where values or neurons are left out: how many are near zero, and how evenly experts are used.
CREATE TABLE base.activity (
    record_id VARCHAR NOT NULL, side VARCHAR, layer INTEGER, module VARCHAR, near_zero DOUBLE, threshold DOUBLE, skipped DOUBLE,
    uses DOUBLE[], together DOUBLE
);

-- What all ranks together read from memory, the speed that bounds a token: every weight is read for it.
ALTER TABLE base.latency ADD COLUMN read_bytes_per_second DOUBLE;

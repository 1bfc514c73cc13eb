-- What a step costs in joules where the machine counts them, and the clock that it ran at.
ALTER TABLE base.latency ADD COLUMN mhz_before DOUBLE;
ALTER TABLE base.latency ADD COLUMN mhz_after DOUBLE;
ALTER TABLE base.latency ADD COLUMN energy_source VARCHAR;
ALTER TABLE base.latency_phases ADD COLUMN energy_j DOUBLE;

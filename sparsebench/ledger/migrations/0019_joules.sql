-- What a making took by the machine's own counters, and which they were, or why there is none.
ALTER TABLE base.makings ADD COLUMN joules DOUBLE;
ALTER TABLE base.makings ADD COLUMN energy_source VARCHAR;

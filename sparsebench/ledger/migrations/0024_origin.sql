-- Where a record was made, whether that is here (`own`), and what tells it from another of the same cell and start.
ALTER TABLE base.records ADD COLUMN origin VARCHAR DEFAULT '';
ALTER TABLE base.records ADD COLUMN own BOOLEAN DEFAULT false;
ALTER TABLE base.records ADD COLUMN checksum VARCHAR;
ALTER TABLE base.plans ADD COLUMN origin VARCHAR DEFAULT '';
ALTER TABLE base.plans ADD COLUMN own BOOLEAN DEFAULT false;
ALTER TABLE base.plans ADD COLUMN checksum VARCHAR;
ALTER TABLE base.variants ADD COLUMN own BOOLEAN DEFAULT false;

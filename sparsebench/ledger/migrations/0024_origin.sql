-- Where a record was made, whether that is here (`own`), and a digest of what it says.
ALTER TABLE base.records ADD COLUMN origin VARCHAR DEFAULT '';
ALTER TABLE base.records ADD COLUMN own BOOLEAN DEFAULT false;
ALTER TABLE base.records ADD COLUMN digest VARCHAR;
ALTER TABLE base.plans ADD COLUMN origin VARCHAR DEFAULT '';
ALTER TABLE base.plans ADD COLUMN own BOOLEAN DEFAULT false;
ALTER TABLE base.plans ADD COLUMN digest VARCHAR;
ALTER TABLE base.variants ADD COLUMN own BOOLEAN DEFAULT false;

-- What a token reads of the weights, where it is not all.
ALTER TABLE base.makings ADD COLUMN read_share DOUBLE;

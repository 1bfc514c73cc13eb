-- What share of co-activation lies inside the experts of a grouped part.
ALTER TABLE base.activity ADD COLUMN inside DOUBLE;

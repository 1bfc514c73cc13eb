-- What one token takes in a model of these shapes.
ALTER TABLE base.structure ADD COLUMN operations_token DOUBLE;

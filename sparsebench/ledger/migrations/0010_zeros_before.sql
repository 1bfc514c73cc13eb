-- Masks from a file name no sparsity: it is what they give. Zeros that a step was given are counted beside those that it made.
ALTER TABLE base.variants ALTER COLUMN sparsity DROP NOT NULL;
ALTER TABLE base.makings ADD COLUMN already_zero BIGINT;

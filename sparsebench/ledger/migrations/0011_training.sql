-- What a step was trained on: tokens, every epoch counted.
ALTER TABLE base.makings ADD COLUMN trained_tokens BIGINT;

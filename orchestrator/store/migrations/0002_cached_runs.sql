-- Runs that gave the answer of another run again: which one, as JSON. Such a run spent nothing, so its columns of usage are null.

ALTER TABLE runs ADD COLUMN cached json;

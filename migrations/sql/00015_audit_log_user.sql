-- +goose Up
-- What people did, by time and by what it was: few rows of many, so that looking through the entries of a month for an
-- action takes some milliseconds. But every row of the log is held against the condition of every index: one for both.
-- Who uses the table waits for as long as it is read once.
DROP INDEX audit_log_user_action;
DROP INDEX audit_log_user;
CREATE INDEX audit_log_user ON audit_log (time, action) WHERE actor_type = 'user' AND action <> 'task.accepted';

-- +goose Down
DROP INDEX audit_log_user;
CREATE INDEX audit_log_user ON audit_log (time) WHERE actor_type = 'user' AND action <> 'task.accepted';
CREATE INDEX audit_log_user_action ON audit_log (action, time) WHERE actor_type = 'user' AND action <> 'task.accepted';

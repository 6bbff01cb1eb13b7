-- +goose Up
-- Each index costs the recorder at every row. Who uses the tables waits for as long as one is built.

-- One index for what is asked of a job: its tasks, how many are in which state, and its results, page by page in the order
-- of the ids, which never change. Results had one of their own, a twentieth of all that Postgres did for a task; they are
-- looked up by their key now.
CREATE INDEX tasks_of_job ON tasks (tenant, job, id) WHERE job IS NOT NULL;
DROP INDEX tasks_by_job;
ALTER INDEX tasks_of_job RENAME TO tasks_by_job;
DROP INDEX results_by_job;

-- What people did, by time and by what it was: few rows of many, so that looking through the entries of a month for an
-- action takes some milliseconds. But every row is held against the condition of every index.
DROP INDEX audit_log_user;
DROP INDEX audit_log_user_action;
CREATE INDEX audit_log_user ON audit_log (time, action) WHERE actor_type = 'user' AND action <> 'task.accepted';

-- +goose Down
CREATE INDEX audit_log_user_action ON audit_log (action, time) WHERE actor_type = 'user' AND action <> 'task.accepted';
DROP INDEX audit_log_user;
CREATE INDEX audit_log_user ON audit_log (time) WHERE actor_type = 'user' AND action <> 'task.accepted';
CREATE INDEX results_by_job ON results (tenant, job, task_id) WHERE job IS NOT NULL;
DROP INDEX tasks_by_job;
CREATE INDEX tasks_by_job ON tasks (tenant, job, submitted_at, id) WHERE job IS NOT NULL;

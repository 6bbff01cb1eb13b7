-- +goose Up
-- One index for what is asked of a job: its tasks, how many are in which state, and its results, page by page in the order
-- of the ids, which never change. Results had one of their own, which cost the recorder as much as a twentieth of all that
-- Postgres does for a task; they are looked up by their key now.
CREATE INDEX tasks_of_job ON tasks (tenant, job, id) WHERE job IS NOT NULL;
DROP INDEX tasks_by_job;
ALTER INDEX tasks_of_job RENAME TO tasks_by_job;
DROP INDEX results_by_job;

-- +goose Down
CREATE INDEX results_by_job ON results (tenant, job, task_id) WHERE job IS NOT NULL;
DROP INDEX tasks_by_job;
CREATE INDEX tasks_by_job ON tasks (tenant, job, submitted_at, id) WHERE job IS NOT NULL;

-- +goose Up
-- One index for what is asked of a job: its tasks, how many are in which state, and its results, page by page in the order
-- of the ids, which never change. Who uses the table waits for as long as the index is built.
DROP INDEX tasks_by_job;
CREATE INDEX tasks_by_job ON tasks (tenant, job, id) WHERE job IS NOT NULL;

-- +goose Down
DROP INDEX tasks_by_job;
CREATE INDEX tasks_by_job ON tasks (tenant, job, submitted_at, id) WHERE job IS NOT NULL;

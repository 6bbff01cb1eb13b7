-- +goose Up
-- Results had an index of their own for their jobs, a twentieth of all that Postgres did for a task: they are looked up by
-- their keys now. Each of these steps is about one table and a transaction of its own: who waited for one table with a
-- lock on another could wait for a recorder, and the recorder for him.
DROP INDEX results_by_job;

-- +goose Down
CREATE INDEX results_by_job ON results (tenant, job, task_id) WHERE job IS NOT NULL;

-- +goose Up
-- As the key of tasks in the step before, but in a transaction of its own: a recorder holds results while it waits for tasks,
-- and a query for a task the other way round. Who waited for the one with a lock on the other would wait in a circle.
ALTER TABLE results DROP CONSTRAINT results_pkey, ADD PRIMARY KEY (task_id, tenant);

-- +goose Down
ALTER TABLE results DROP CONSTRAINT results_pkey, ADD PRIMARY KEY (tenant, task_id);

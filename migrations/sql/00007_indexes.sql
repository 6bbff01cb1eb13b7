-- +goose Up
-- Each index costs the recorder at every row, so there are few, and each answers more than one question.

-- The timeline of a task, also for who does not know the tenant. Without the time in it, the rows of a task have the same
-- key, which Postgres keeps once for all of them: it is a third as large.
DROP INDEX audit_log_task;
CREATE INDEX audit_log_task ON audit_log (task_id, tenant) WHERE task_id IS NOT NULL;

-- What was refused, and what people did beside submitting, by time and by what it was: few rows of many. They are three
-- because Postgres has to know how few: of one condition it does, of an OR it expects a hundred times as many.
CREATE INDEX audit_log_refused ON audit_log (time) WHERE outcome = 'refused';
CREATE INDEX audit_log_user ON audit_log (time) WHERE actor_type = 'user' AND action <> 'task.accepted';
CREATE INDEX audit_log_user_action ON audit_log (action, time) WHERE actor_type = 'user' AND action <> 'task.accepted';

-- One index for the lists of a tenant, with a state or without (then each state is asked for its newest), and for what
-- has not ended, of all tenants: those states are a small range at its beginning.
DROP INDEX tasks_by_time;
DROP INDEX tasks_by_state;
CREATE INDEX tasks_by_state ON tasks (state, tenant, submitted_at, id);

-- Callbacks that were given up; those that are due have an index already.
CREATE INDEX callbacks_given_up ON callbacks (created_at) WHERE state = 'GIVEN_UP';

-- +goose Down
DROP INDEX callbacks_given_up;
DROP INDEX tasks_by_state;
CREATE INDEX tasks_by_state ON tasks (tenant, state, submitted_at, id);
CREATE INDEX tasks_by_time ON tasks (tenant, submitted_at, id);
DROP INDEX audit_log_user_action;
DROP INDEX audit_log_user;
DROP INDEX audit_log_refused;
DROP INDEX audit_log_task;
CREATE INDEX audit_log_task ON audit_log (tenant, task_id, time) WHERE task_id IS NOT NULL;

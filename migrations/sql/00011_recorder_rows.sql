-- +goose Up
-- What the recorder hands over of a chunk in one piece: arrays of these. Postgres unpacks one array of rows in half the time
-- that it takes for an array of each column. They stay as they are: to a recorder of this version one with another field is of no
-- use. A column that is added later gets types of other names.
CREATE TYPE batchyard_result_row AS (
    tenant text, task_id text, state text, status integer, output json, error_class text, error_message text, attempt integer,
    attempts json, tokens_in bigint, tokens_out bigint, device text, model text, requested_model text, endpoint text, priority text,
    job text, custom_id text, labels json, callback_url text, trace_id text, submitted_at timestamptz, assigned_at timestamptz,
    started_at timestamptz, finished_at timestamptz
);
COMMENT ON TYPE batchyard_result_row IS 'A row of results as the recorder sends it.';

CREATE TYPE batchyard_task_row AS (
    tenant text, id text, state text, seq integer, attempt integer, device text, model text, error_class text, error_message text,
    updated_at timestamptz, finished_at timestamptz, assigned_at timestamptz, started_at timestamptz, known_from smallint,
    submitted_at timestamptz, deadline timestamptz, endpoint text, priority text, job text, custom_id text, trace_id text,
    callback_url text
);
COMMENT ON TYPE batchyard_task_row IS 'What a chunk tells of a task, as the recorder sends it.';

-- The tenant is the same in most comparisons on the way down to a key: what differs comes first. Who uses the table waits
-- for as long as the index is built.
ALTER TABLE tasks DROP CONSTRAINT tasks_pkey, ADD PRIMARY KEY (id, tenant);

-- +goose Down
ALTER TABLE tasks DROP CONSTRAINT tasks_pkey, ADD PRIMARY KEY (tenant, id);
DROP TYPE batchyard_task_row;
DROP TYPE batchyard_result_row;

-- +goose Up
CREATE TABLE tasks (
    tenant        text COLLATE "C" NOT NULL,
    task_id       text COLLATE "C" NOT NULL,
    state         text COLLATE "C" NOT NULL CHECK (state IN ('PENDING', 'ASSIGNED', 'RUNNING', 'SUCCESS', 'FAILED', 'CANCELLED', 'EXPIRED')),
    seq           integer NOT NULL,
    version       bigint NOT NULL DEFAULT 1,
    attempt       integer NOT NULL DEFAULT 0,
    device_id     text,
    model         text,
    endpoint      text,
    priority      text,
    job_id        text COLLATE "C",
    custom_id     text,
    trace_id      text,
    submitted_at  timestamptz NOT NULL,
    assigned_at   timestamptz,
    started_at    timestamptz,
    finished_at   timestamptz,
    error_class   text,
    error_message text,
    deadline      timestamptz,
    callback_url  text,
    updated_at    timestamptz NOT NULL,
    known_from    smallint NOT NULL,
    PRIMARY KEY (task_id, tenant)
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.05, autovacuum_analyze_scale_factor = 0.05);

COMMENT ON TABLE tasks IS 'The latest state of each task. It follows the event log and may be late, never wrong.';
COMMENT ON COLUMN tasks.tenant IS 'Whose task it is.';
COMMENT ON COLUMN tasks.task_id IS 'Id of the task, unique within the tenant.';
COMMENT ON COLUMN tasks.state IS 'PENDING, ASSIGNED, RUNNING, or at the end SUCCESS, FAILED, CANCELLED or EXPIRED.';
COMMENT ON COLUMN tasks.seq IS 'How far along its way the state is: a later state has a higher number, and 2147483647 is the end.';
COMMENT ON COLUMN tasks.version IS 'How often the row was written.';
COMMENT ON COLUMN tasks.attempt IS 'Number of the latest attempt, from 1; 0 when there was none.';
COMMENT ON COLUMN tasks.device_id IS 'Device of the latest attempt; empty while the task waits.';
COMMENT ON COLUMN tasks.model IS 'Model that is asked; a smaller one than was submitted when the task was degraded.';
COMMENT ON COLUMN tasks.endpoint IS 'Path of the API that is asked, such as /v1/chat/completions.';
COMMENT ON COLUMN tasks.priority IS 'high, normal or low.';
COMMENT ON COLUMN tasks.job_id IS 'Job that the task belongs to.';
COMMENT ON COLUMN tasks.custom_id IS 'The submitter''s own id of the line within the job.';
COMMENT ON COLUMN tasks.trace_id IS 'W3C trace id.';
COMMENT ON COLUMN tasks.submitted_at IS 'When the task was submitted; the time of its first known event until that is known.';
COMMENT ON COLUMN tasks.assigned_at IS 'When a device was last chosen.';
COMMENT ON COLUMN tasks.started_at IS 'When a request was last sent to a device.';
COMMENT ON COLUMN tasks.finished_at IS 'When the task ended.';
COMMENT ON COLUMN tasks.error_class IS 'Why it failed, or why it waits again, in one word.';
COMMENT ON COLUMN tasks.error_message IS 'Why it failed.';
COMMENT ON COLUMN tasks.deadline IS 'When it expires if it has not ended.';
COMMENT ON COLUMN tasks.callback_url IS 'Where the result is to be posted.';
COMMENT ON COLUMN tasks.updated_at IS 'When the state changed, by the clock of who changed it.';
COMMENT ON COLUMN tasks.known_from IS 'Where submitted_at is from: 0 guessed from an event, 1 the result, 2 the acceptance itself.';

-- One index for the lists of a tenant, with a state or without (then each state is asked for its newest), and for what
-- has not ended, of all tenants: those states are a small range at its beginning.
CREATE INDEX tasks_by_state ON tasks (state, tenant, submitted_at, task_id);
-- One index for what is asked of a job: its tasks, how many are in which state, and its results, page by page in the order
-- of the ids, which never change. Results have no index for their jobs: they are looked up by their keys.
CREATE INDEX tasks_by_job ON tasks (tenant, job_id, task_id) WHERE job_id IS NOT NULL;

CREATE TABLE results (
    tenant          text COLLATE "C" NOT NULL,
    task_id         text COLLATE "C" NOT NULL,
    state           text COLLATE "C" NOT NULL CHECK (state IN ('SUCCESS', 'FAILED', 'CANCELLED', 'EXPIRED')),
    status          integer,
    output          json,
    error_class     text,
    error_message   text,
    attempt         integer NOT NULL,
    attempts        json,
    input_tokens    bigint NOT NULL,
    output_tokens   bigint NOT NULL,
    device_id       text,
    model           text,
    requested_model text,
    endpoint        text,
    priority        text,
    job_id          text COLLATE "C",
    custom_id       text,
    labels          json,
    callback_url    text,
    trace_id        text,
    submitted_at    timestamptz,
    assigned_at     timestamptz,
    started_at      timestamptz,
    finished_at     timestamptz NOT NULL,
    recorded_at     timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (task_id, tenant)
);

COMMENT ON TABLE results IS 'The one answer of each task that has ended. A second result of the same task is not taken.';
COMMENT ON COLUMN results.tenant IS 'Whose task it was.';
COMMENT ON COLUMN results.task_id IS 'Id of the task, unique within the tenant.';
COMMENT ON COLUMN results.state IS 'How it ended: SUCCESS, FAILED, CANCELLED or EXPIRED.';
COMMENT ON COLUMN results.status IS 'HTTP status of the last attempt; empty when there was no answer.';
COMMENT ON COLUMN results.output IS 'The device''s JSON answer, byte for byte.';
COMMENT ON COLUMN results.error_class IS 'Whose fault a failure was, in one word.';
COMMENT ON COLUMN results.error_message IS 'Why it failed.';
COMMENT ON COLUMN results.attempt IS 'Number of the last attempt; 0 when there was none.';
COMMENT ON COLUMN results.attempts IS 'What was tried, oldest first: device, class, status, message, time, duration.';
COMMENT ON COLUMN results.input_tokens IS 'Input tokens, as the device counted them.';
COMMENT ON COLUMN results.output_tokens IS 'Output tokens, as the device counted them.';
COMMENT ON COLUMN results.device_id IS 'Device that answered, or was asked last.';
COMMENT ON COLUMN results.model IS 'Model that answered, or was asked last.';
COMMENT ON COLUMN results.requested_model IS 'Model that was submitted, when a smaller one answered.';
COMMENT ON COLUMN results.endpoint IS 'Path of the API that was asked.';
COMMENT ON COLUMN results.priority IS 'high, normal or low.';
COMMENT ON COLUMN results.job_id IS 'Job that the task belongs to.';
COMMENT ON COLUMN results.custom_id IS 'The submitter''s own id of the line within the job.';
COMMENT ON COLUMN results.labels IS 'The submitter''s own labels.';
COMMENT ON COLUMN results.callback_url IS 'Where the result is posted.';
COMMENT ON COLUMN results.trace_id IS 'W3C trace id.';
COMMENT ON COLUMN results.submitted_at IS 'When the task was submitted.';
COMMENT ON COLUMN results.assigned_at IS 'When the device of the last attempt was chosen.';
COMMENT ON COLUMN results.started_at IS 'When the last attempt was sent.';
COMMENT ON COLUMN results.finished_at IS 'When the task ended.';
COMMENT ON COLUMN results.recorded_at IS 'When the row was written, by the clock of the database.';

-- Answers are long text: lz4 compresses them several times faster than the
-- default, but not every Postgres was built with it.
-- +goose StatementBegin
DO $$
BEGIN
    ALTER TABLE results ALTER COLUMN output SET COMPRESSION lz4;
EXCEPTION WHEN feature_not_supported OR invalid_parameter_value THEN
    NULL;
END
$$;
-- +goose StatementEnd

-- What the recorder hands over of a chunk in one piece: arrays of these. Postgres unpacks one array of rows in half the time
-- that it takes for an array of each column. They stay as they are: to a recorder of this version one with another field is of no
-- use. A column that is added later gets types of other names.
CREATE TYPE batchyard_result_row AS (
    tenant text, task_id text, state text, status integer, output json, error_class text, error_message text, attempt integer,
    attempts json, input_tokens bigint, output_tokens bigint, device_id text, model text, requested_model text, endpoint text, priority text,
    job_id text, custom_id text, labels json, callback_url text, trace_id text, submitted_at timestamptz, assigned_at timestamptz,
    started_at timestamptz, finished_at timestamptz
);
COMMENT ON TYPE batchyard_result_row IS 'A row of results as the recorder sends it.';

CREATE TYPE batchyard_task_row AS (
    tenant text, task_id text, state text, seq integer, attempt integer, device_id text, model text, error_class text, error_message text,
    updated_at timestamptz, finished_at timestamptz, assigned_at timestamptz, started_at timestamptz, known_from smallint,
    submitted_at timestamptz, deadline timestamptz, endpoint text, priority text, job_id text, custom_id text, trace_id text,
    callback_url text
);
COMMENT ON TYPE batchyard_task_row IS 'What a chunk tells of a task, as the recorder sends it.';

-- +goose Down
DROP TYPE batchyard_task_row;
DROP TYPE batchyard_result_row;
DROP TABLE results;
DROP TABLE tasks;

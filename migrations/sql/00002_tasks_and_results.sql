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
    generation    integer NOT NULL DEFAULT 0,
    fingerprint   bytea,
    input_tokens  bigint NOT NULL DEFAULT 0,
    output_tokens bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (task_id, tenant),
    CONSTRAINT tasks_answers_its_request CHECK (version > 0)
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.05, autovacuum_analyze_scale_factor = 0.05);

COMMENT ON TABLE tasks IS 'The latest state of each task. It follows the event log: it may lag behind, but it is never wrong.';
COMMENT ON COLUMN tasks.tenant IS 'Tenant that the task belongs to.';
COMMENT ON COLUMN tasks.task_id IS 'Id of the task, unique within the tenant.';
COMMENT ON COLUMN tasks.state IS 'PENDING, ASSIGNED, RUNNING, or a terminal state: SUCCESS, FAILED, CANCELLED or EXPIRED.';
COMMENT ON COLUMN tasks.seq IS 'Order of the states of a task: a later state has a higher number, and a terminal state has 2147483647.';
COMMENT ON COLUMN tasks.version IS 'How many times the row was written.';
COMMENT ON CONSTRAINT tasks_answers_its_request ON tasks IS 'The recorder sets version to 0 where a result would answer another request than the one the id belongs to, so that its transaction fails.';
COMMENT ON COLUMN tasks.attempt IS 'Number of the latest attempt, from 1; 0 if there was none.';
COMMENT ON COLUMN tasks.device_id IS 'Id of the device of the latest attempt; empty while the task waits.';
COMMENT ON COLUMN tasks.model IS 'Model that the request names. After a degrade it is smaller than the one submitted.';
COMMENT ON COLUMN tasks.endpoint IS 'Path of the endpoint, such as /v1/chat/completions.';
COMMENT ON COLUMN tasks.priority IS 'high, normal or low.';
COMMENT ON COLUMN tasks.job_id IS 'Id of the job that the task belongs to.';
COMMENT ON COLUMN tasks.custom_id IS 'The submitter''s own id for the task within the job.';
COMMENT ON COLUMN tasks.trace_id IS 'W3C trace id.';
COMMENT ON COLUMN tasks.submitted_at IS 'When the task was submitted. Until that is known, the time of its first known event.';
COMMENT ON COLUMN tasks.assigned_at IS 'When the task was last assigned to a device.';
COMMENT ON COLUMN tasks.started_at IS 'When the latest attempt was sent to the device.';
COMMENT ON COLUMN tasks.finished_at IS 'When the task reached its terminal state.';
COMMENT ON COLUMN tasks.error_class IS 'Class of the error of the latest attempt, whether the task failed or waits for a retry.';
COMMENT ON COLUMN tasks.error_message IS 'What went wrong, in words.';
COMMENT ON COLUMN tasks.deadline IS 'When the task expires unless it has finished.';
COMMENT ON COLUMN tasks.callback_url IS 'URL that the result is posted to.';
COMMENT ON COLUMN tasks.updated_at IS 'When the state changed, by the clock of the process that changed it.';
COMMENT ON COLUMN tasks.known_from IS 'Source of submitted_at: 0 the first known event, 1 the result, 2 the task.accepted event.';
COMMENT ON COLUMN tasks.generation IS 'Which run of the task the row is about: 0 for the first, n for the nth retry on request.';
COMMENT ON COLUMN tasks.fingerprint IS 'SHA-256 of the request in canonical form. Another request under the same id is refused.';
COMMENT ON COLUMN tasks.input_tokens IS 'Input tokens of the result as counted by the device; 0 before there is one.';
COMMENT ON COLUMN tasks.output_tokens IS 'Output tokens of the result as counted by the device; 0 before there is one.';

-- Serves the task lists of a tenant, with a state or without (then the newest of each state are merged), and the list of
-- unfinished tasks of all tenants, whose states are a small range of the index.
CREATE INDEX tasks_by_state ON tasks (state, tenant, submitted_at, task_id);
-- Serves everything about a job: its tasks, the counts per state, and its results, page by page in the order of the ids,
-- which never change. Results need no index by job: they are looked up by key from here.
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
    generation      integer NOT NULL DEFAULT 0,
    fingerprint     bytea CHECK (octet_length(fingerprint) = 32),
    PRIMARY KEY (task_id, tenant, generation)
);

COMMENT ON TABLE results IS 'The one result of each generation of a task: of its first run, and of each retry on request. A second result for the same generation is discarded. The answer is the result whose generation is that of the row in tasks.';
COMMENT ON COLUMN results.tenant IS 'Tenant that the task belongs to.';
COMMENT ON COLUMN results.task_id IS 'Id of the task, unique within the tenant.';
COMMENT ON COLUMN results.state IS 'SUCCESS, FAILED, CANCELLED or EXPIRED.';
COMMENT ON COLUMN results.status IS 'HTTP status of the last attempt; empty if the device did not answer.';
COMMENT ON COLUMN results.output IS 'The device''s JSON response, byte for byte.';
COMMENT ON COLUMN results.error_class IS 'Class of the error.';
COMMENT ON COLUMN results.error_message IS 'What went wrong, in words.';
COMMENT ON COLUMN results.attempt IS 'Number of the last attempt; 0 if there was none.';
COMMENT ON COLUMN results.attempts IS 'All attempts, oldest first: device, error class, HTTP status, message, time and duration.';
COMMENT ON COLUMN results.input_tokens IS 'Input tokens as counted by the device.';
COMMENT ON COLUMN results.output_tokens IS 'Output tokens as counted by the device.';
COMMENT ON COLUMN results.device_id IS 'Id of the device that answered, or of the last one that was tried.';
COMMENT ON COLUMN results.model IS 'Model that answered, or the last one that was tried.';
COMMENT ON COLUMN results.requested_model IS 'Model that was submitted, if the task was degraded to another.';
COMMENT ON COLUMN results.endpoint IS 'Path of the endpoint.';
COMMENT ON COLUMN results.priority IS 'high, normal or low.';
COMMENT ON COLUMN results.job_id IS 'Id of the job that the task belongs to.';
COMMENT ON COLUMN results.custom_id IS 'The submitter''s own id for the task within the job.';
COMMENT ON COLUMN results.labels IS 'The submitter''s own labels.';
COMMENT ON COLUMN results.callback_url IS 'URL that the result is posted to.';
COMMENT ON COLUMN results.trace_id IS 'W3C trace id.';
COMMENT ON COLUMN results.submitted_at IS 'When the task was submitted.';
COMMENT ON COLUMN results.assigned_at IS 'When the task was assigned for the last attempt.';
COMMENT ON COLUMN results.started_at IS 'When the last attempt was sent to the device.';
COMMENT ON COLUMN results.finished_at IS 'When the task reached its terminal state.';
COMMENT ON COLUMN results.recorded_at IS 'When the row was written, by the clock of the database.';
COMMENT ON COLUMN results.generation IS 'Which run of the task this is the result of: 0 for the first, n for the nth retry on request.';
COMMENT ON COLUMN results.fingerprint IS 'Fingerprint of the request that was run, that of the row in tasks. Empty for a cancel, which runs nothing.';

-- Outputs are long text. lz4 compresses them several times faster than the default, but not every Postgres is built with
-- it.
-- +goose StatementBegin
DO $$
BEGIN
    ALTER TABLE results ALTER COLUMN output SET COMPRESSION lz4;
EXCEPTION WHEN feature_not_supported OR invalid_parameter_value THEN
    NULL;
END
$$;
-- +goose StatementEnd

-- The recorder sends the results and states of a chunk as one array of rows each. Postgres unpacks that in half the time of
-- one array per column. Never change these types: a running recorder relies on their fields. When a column is added, create
-- types under new names.
CREATE TYPE batchyard_result_row AS (
    tenant text, task_id text, state text, status integer, output json, error_class text, error_message text, attempt integer,
    attempts json, input_tokens bigint, output_tokens bigint, device_id text, model text, requested_model text, endpoint text, priority text,
    job_id text, custom_id text, labels json, callback_url text, trace_id text, submitted_at timestamptz, assigned_at timestamptz,
    started_at timestamptz, finished_at timestamptz, generation integer, fingerprint bytea
);
COMMENT ON TYPE batchyard_result_row IS 'A row of results in the form in which the recorder sends it.';

CREATE TYPE batchyard_task_row AS (
    tenant text, task_id text, state text, seq integer, attempt integer, device_id text, model text, error_class text, error_message text,
    updated_at timestamptz, finished_at timestamptz, assigned_at timestamptz, started_at timestamptz, known_from smallint,
    submitted_at timestamptz, deadline timestamptz, endpoint text, priority text, job_id text, custom_id text, trace_id text,
    callback_url text, generation integer, fingerprint bytea, input_tokens bigint, output_tokens bigint
);
COMMENT ON TYPE batchyard_task_row IS 'What a chunk knows about a task, in the form in which the recorder sends it.';

-- A row for each job: from its announcement, or, for tasks that name a job that was never announced, from the first of them.
CREATE TABLE jobs (
    tenant              text COLLATE "C" NOT NULL,
    job_id              text COLLATE "C" NOT NULL,
    fingerprint         bytea CHECK (octet_length(fingerprint) = 32),
    tasks               bigint CHECK (tasks >= 0),
    lines               bigint,
    bad_lines           bigint,
    bytes               bigint,
    file                text,
    format              text COLLATE "C",
    labels              json,
    callback_url        text,
    submitted_at        timestamptz NOT NULL,
    submitted_by        text,
    cancel_requested_at timestamptz,
    finished_at         timestamptz,
    rounds              integer NOT NULL DEFAULT 0,
    summary             json,
    version             bigint NOT NULL DEFAULT 1,
    PRIMARY KEY (tenant, job_id)
);
COMMENT ON TABLE jobs IS 'One row per job. Its progress is in the view job_progress.';
COMMENT ON COLUMN jobs.tenant IS 'Tenant that the job belongs to.';
COMMENT ON COLUMN jobs.job_id IS 'Id of the job, unique within the tenant.';
COMMENT ON COLUMN jobs.fingerprint IS 'SHA-256 over what the lines of the file ask for. Another file cannot be submitted under the same id. Empty if the job was not announced.';
COMMENT ON COLUMN jobs.tasks IS 'Number of tasks in the file; empty if the job was not announced.';
COMMENT ON COLUMN jobs.lines IS 'Number of lines in the file, blank ones included.';
COMMENT ON COLUMN jobs.bad_lines IS 'Number of lines that were not submitted, because they were bad.';
COMMENT ON COLUMN jobs.bytes IS 'Size of the file in bytes.';
COMMENT ON COLUMN jobs.file IS 'Name of the file as the submitter wrote it.';
COMMENT ON COLUMN jobs.format IS 'Format of the lines: openai, batchyard or mixed.';
COMMENT ON COLUMN jobs.labels IS 'The submitter''s own labels of the job.';
COMMENT ON COLUMN jobs.callback_url IS 'URL that the summary is posted to once every task has finished.';
COMMENT ON COLUMN jobs.submitted_at IS 'When the job was announced, or the first of its tasks was accepted.';
COMMENT ON COLUMN jobs.submitted_by IS 'Name of the user who announced it.';
COMMENT ON COLUMN jobs.cancel_requested_at IS 'When a user asked to cancel the job.';
COMMENT ON COLUMN jobs.finished_at IS 'When the recorder saw that every task had finished. A retry empties it. Always empty if the job was not announced.';
COMMENT ON COLUMN jobs.rounds IS 'How often the job has finished: more than once if tasks were retried.';
COMMENT ON COLUMN jobs.summary IS 'The counts, tokens and errors of the finished job; empty before.';
COMMENT ON COLUMN jobs.version IS 'How many times the row was written.';
-- Serves the list of a tenant's jobs, newest first.
CREATE INDEX jobs_newest ON jobs (tenant, submitted_at, job_id);
-- Announced jobs that have not finished, which the recorder checks regularly.
CREATE INDEX jobs_open ON jobs (submitted_at) WHERE finished_at IS NULL AND tasks IS NOT NULL;

-- What clients uploaded, and the output of the jobs made of it. The content is in the blob store (files.url), under the id.
CREATE TABLE files (
    file_id    text COLLATE "C" PRIMARY KEY,
    tenant     text COLLATE "C" NOT NULL,
    purpose    text COLLATE "C" NOT NULL,
    filename   text NOT NULL,
    bytes      bigint NOT NULL DEFAULT 0 CHECK (bytes >= 0),
    sha256     bytea CHECK (octet_length(sha256) = 32),
    state      text COLLATE "C" NOT NULL CHECK (state IN ('WRITING', 'STORED', 'DELETED')),
    job_id     text COLLATE "C",
    created_at timestamptz NOT NULL,
    expires_at timestamptz
);
COMMENT ON TABLE files IS 'One row per stored file: uploaded, or written as the output of a job. The content is in the blob store (files.url).';
COMMENT ON COLUMN files.file_id IS 'Id of the file, and name of its content in the blob store.';
COMMENT ON COLUMN files.tenant IS 'Tenant that the file belongs to.';
COMMENT ON COLUMN files.purpose IS 'batch: an input, which a client uploaded; batch_output: the output of a job, or its errors.';
COMMENT ON COLUMN files.filename IS 'Name of the file as the client wrote it.';
COMMENT ON COLUMN files.bytes IS 'Size of the content.';
COMMENT ON COLUMN files.sha256 IS 'SHA-256 of the content; empty while it is written.';
COMMENT ON COLUMN files.state IS 'WRITING, STORED, or DELETED: the content is removed soon, and then the row.';
COMMENT ON COLUMN files.job_id IS 'Job whose output the file is; empty for an input.';
COMMENT ON COLUMN files.created_at IS 'When writing began.';
COMMENT ON COLUMN files.expires_at IS 'When the file is deleted; empty: never.';
-- Serves the list of a tenant's files.
CREATE INDEX files_newest ON files (tenant, created_at, file_id);
-- Serves the search for content to remove.
CREATE INDEX files_expire ON files (expires_at) WHERE expires_at IS NOT NULL;
CREATE INDEX files_unfinished ON files (created_at) WHERE state <> 'STORED';

-- Jobs whose file Batchyard stores and submits itself: batches of OpenAI's API. Such a job has a row here from the request on,
-- and one in jobs once its file was found valid. jobs is written by the recorder alone, from events, and the audit log has a
-- digest of each version of its rows; this table is how the processes of the api stage share the work.
CREATE TABLE file_jobs (
    tenant            text COLLATE "C" NOT NULL,
    job_id            text COLLATE "C" NOT NULL,
    status            text COLLATE "C" NOT NULL CHECK (status IN ('validating', 'failed', 'in_progress', 'finalizing', 'completed', 'expired', 'cancelling', 'cancelled')),
    endpoint          text NOT NULL,
    model             text,
    input_file_id     text COLLATE "C" NOT NULL,
    output_file_id    text COLLATE "C",
    error_file_id     text COLLATE "C",
    completion_window text NOT NULL,
    output_ttl        bigint NOT NULL,
    metadata          json,
    skip_bad_lines    boolean NOT NULL,
    request           bytea NOT NULL CHECK (octet_length(request) = 32),
    idempotency_key   text COLLATE "C",
    requested_by      text NOT NULL,
    source_addr       text NOT NULL,
    user_agent        text NOT NULL,
    errors            json,
    tasks             bigint,
    bad_lines         bigint NOT NULL DEFAULT 0,
    fed_line          bigint NOT NULL DEFAULT 0,
    fed_until         bigint NOT NULL DEFAULT 0,
    fed_tasks         bigint NOT NULL DEFAULT 0,
    completed         bigint NOT NULL DEFAULT 0,
    failed            bigint NOT NULL DEFAULT 0,
    input_tokens      bigint NOT NULL DEFAULT 0,
    cached_tokens     bigint NOT NULL DEFAULT 0,
    output_tokens     bigint NOT NULL DEFAULT 0,
    reasoning_tokens  bigint NOT NULL DEFAULT 0,
    created_at        timestamptz NOT NULL,
    expires_at        timestamptz NOT NULL,
    in_progress_at    timestamptz,
    finalizing_at     timestamptz,
    completed_at      timestamptz,
    failed_at         timestamptz,
    expired_at        timestamptz,
    cancelling_at     timestamptz,
    cancelled_at      timestamptz,
    lease_owner       text,
    lease_until       timestamptz,
    next_at           timestamptz NOT NULL,
    PRIMARY KEY (tenant, job_id)
);
COMMENT ON TABLE file_jobs IS 'One row per job whose file Batchyard stores and submits itself: a batch of OpenAI''s API.';
COMMENT ON COLUMN file_jobs.tenant IS 'Tenant that the job belongs to.';
COMMENT ON COLUMN file_jobs.job_id IS 'Id of the job, and of the batch.';
COMMENT ON COLUMN file_jobs.status IS 'Status of the batch: validating, failed, in_progress, finalizing, completed, expired, cancelling or cancelled.';
COMMENT ON COLUMN file_jobs.endpoint IS 'Endpoint of every line.';
COMMENT ON COLUMN file_jobs.model IS 'Model of every line; empty if they name several.';
COMMENT ON COLUMN file_jobs.input_file_id IS 'File that the job is made of.';
COMMENT ON COLUMN file_jobs.output_file_id IS 'File with the answers; empty before the end, and if there are no answers.';
COMMENT ON COLUMN file_jobs.error_file_id IS 'File with everything else; empty before the end, and if there is nothing else.';
COMMENT ON COLUMN file_jobs.completion_window IS 'How long the job may take, as the client wrote it.';
COMMENT ON COLUMN file_jobs.output_ttl IS 'How long the output is kept, in seconds.';
COMMENT ON COLUMN file_jobs.metadata IS 'The client''s own pairs of names and values.';
COMMENT ON COLUMN file_jobs.skip_bad_lines IS 'Whether bad lines are skipped; otherwise a file that has any is not run.';
COMMENT ON COLUMN file_jobs.request IS 'SHA-256 of what the request to create it asks for. The same request, sent again because the answer was lost, is the same job.';
COMMENT ON COLUMN file_jobs.idempotency_key IS 'Key by which the client recognises its request.';
COMMENT ON COLUMN file_jobs.requested_by IS 'Name of the user who created it.';
COMMENT ON COLUMN file_jobs.source_addr IS 'Address that the request came from.';
COMMENT ON COLUMN file_jobs.user_agent IS 'User agent of the client.';
COMMENT ON COLUMN file_jobs.errors IS 'What is wrong with the file, up to a thousand lines.';
COMMENT ON COLUMN file_jobs.tasks IS 'Number of tasks in the file; empty before it was checked.';
COMMENT ON COLUMN file_jobs.bad_lines IS 'Number of lines that are skipped.';
COMMENT ON COLUMN file_jobs.fed_line IS 'Up to this line, Kafka has acknowledged every task.';
COMMENT ON COLUMN file_jobs.fed_until IS 'Up to this line, tasks may have been submitted; after a crash they are submitted again.';
COMMENT ON COLUMN file_jobs.fed_tasks IS 'Number of tasks up to fed_line.';
COMMENT ON COLUMN file_jobs.completed IS 'Number of answers in the output; 0 before the end.';
COMMENT ON COLUMN file_jobs.failed IS 'Number of lines in the error file; 0 before the end.';
COMMENT ON COLUMN file_jobs.input_tokens IS 'Number of input tokens of the results; 0 before the end.';
COMMENT ON COLUMN file_jobs.cached_tokens IS 'Number of input tokens that devices had in a cache.';
COMMENT ON COLUMN file_jobs.output_tokens IS 'Number of output tokens of the results; 0 before the end.';
COMMENT ON COLUMN file_jobs.reasoning_tokens IS 'Number of output tokens that were spent on reasoning.';
COMMENT ON COLUMN file_jobs.created_at IS 'When the client created it.';
COMMENT ON COLUMN file_jobs.expires_at IS 'When its completion window ends: what has not finished by then expires.';
COMMENT ON COLUMN file_jobs.in_progress_at IS 'When its file was found valid.';
COMMENT ON COLUMN file_jobs.finalizing_at IS 'When every task had finished, or the time was over, and writing the output began.';
COMMENT ON COLUMN file_jobs.completed_at IS 'When it ended as completed.';
COMMENT ON COLUMN file_jobs.failed_at IS 'When its file was found invalid.';
COMMENT ON COLUMN file_jobs.expired_at IS 'When it ended as expired.';
COMMENT ON COLUMN file_jobs.cancelling_at IS 'When a client asked to cancel it.';
COMMENT ON COLUMN file_jobs.cancelled_at IS 'When it ended as cancelled.';
COMMENT ON COLUMN file_jobs.lease_owner IS 'Who works on it: a random name; empty: no process.';
COMMENT ON COLUMN file_jobs.lease_until IS 'When another process may take over, because its owner has not renewed the lease.';
COMMENT ON COLUMN file_jobs.next_at IS 'When to look at it again.';
-- Serves the list of a tenant's batches, newest first.
CREATE INDEX file_jobs_newest ON file_jobs (tenant, created_at, job_id);
-- Serves the search for work.
CREATE INDEX file_jobs_open ON file_jobs (next_at) WHERE status IN ('validating', 'in_progress', 'finalizing', 'cancelling');
-- Serves the search for the batches that need a file.
CREATE INDEX file_jobs_by_input ON file_jobs (input_file_id);
CREATE UNIQUE INDEX file_jobs_idempotency ON file_jobs (tenant, idempotency_key) WHERE idempotency_key IS NOT NULL;

-- +goose Down
DROP TABLE file_jobs;
DROP TABLE files;
DROP TABLE jobs;
DROP TYPE batchyard_task_row;
DROP TYPE batchyard_result_row;
DROP TABLE results;
DROP TABLE tasks;

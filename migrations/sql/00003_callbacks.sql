-- +goose Up
CREATE TABLE callbacks (
    callback_id  text COLLATE "C" PRIMARY KEY,
    tenant       text COLLATE "C" NOT NULL,
    task_id      text COLLATE "C",
    generation   integer NOT NULL DEFAULT 0,
    job_id       text COLLATE "C",
    body         json,
    url          text NOT NULL,
    host         text COLLATE "C" NOT NULL,
    state        text COLLATE "C" NOT NULL DEFAULT 'DUE' CHECK (state IN ('DUE', 'DELIVERED', 'GIVEN_UP')),
    attempts     integer NOT NULL DEFAULT 0,
    next_at      timestamptz NOT NULL DEFAULT now(),
    holder       text,
    last_status  integer,
    last_error   text,
    created_at   timestamptz NOT NULL DEFAULT now(),
    delivered_at timestamptz,
    CHECK (num_nonnulls(task_id, job_id) = 1 AND (job_id IS NULL) = (body IS NULL))
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.05);

COMMENT ON TABLE callbacks IS 'One row per webhook: due, delivered, or given up. It is created in the transaction that stores the result, or that finds the job finished.';
COMMENT ON COLUMN callbacks.callback_id IS 'Value of the webhook-id header. It is the same for every delivery, so that the receiver can recognise repeats.';
COMMENT ON COLUMN callbacks.tenant IS 'Tenant that the task or job belongs to.';
COMMENT ON COLUMN callbacks.task_id IS 'Id of the task whose result is posted; empty for a job.';
COMMENT ON COLUMN callbacks.generation IS 'Which run of the task the result is of: 0 for the first, n for the nth retry on request.';
COMMENT ON COLUMN callbacks.job_id IS 'Id of the job whose summary is posted; empty for a task.';
COMMENT ON COLUMN callbacks.body IS 'What is posted for a job; empty for a task, whose result is posted.';
COMMENT ON COLUMN callbacks.url IS 'URL that the result or summary is posted to.';
COMMENT ON COLUMN callbacks.host IS 'Host and port of the URL. The number of concurrent deliveries is bounded per host.';
COMMENT ON COLUMN callbacks.state IS 'DUE, DELIVERED (the endpoint answered 2xx) or GIVEN_UP.';
COMMENT ON COLUMN callbacks.attempts IS 'Number of deliveries that were tried.';
COMMENT ON COLUMN callbacks.next_at IS 'When the next delivery is due. During a delivery: when another process may take over, in case the one delivering it died.';
COMMENT ON COLUMN callbacks.holder IS 'The process that is delivering it, or was the last to. Only that process may write the outcome.';
COMMENT ON COLUMN callbacks.last_status IS 'HTTP status of the last delivery; empty if there was no response.';
COMMENT ON COLUMN callbacks.last_error IS 'Why the last delivery failed.';
COMMENT ON COLUMN callbacks.created_at IS 'When the result was stored, or the job finished.';
COMMENT ON COLUMN callbacks.delivered_at IS 'When the endpoint accepted it.';

CREATE INDEX callbacks_due ON callbacks (next_at) WHERE state = 'DUE';
-- Callbacks that were given up, for the view callback_failures.
CREATE INDEX callbacks_given_up ON callbacks (created_at) WHERE state = 'GIVEN_UP';
CREATE INDEX callbacks_by_task ON callbacks (tenant, task_id);

-- +goose Down
DROP TABLE callbacks;

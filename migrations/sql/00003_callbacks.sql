-- +goose Up
CREATE TABLE callbacks (
    callback_id  text COLLATE "C" PRIMARY KEY,
    tenant       text COLLATE "C" NOT NULL,
    task_id      text COLLATE "C" NOT NULL,
    url          text NOT NULL,
    host         text COLLATE "C" NOT NULL,
    state        text COLLATE "C" NOT NULL DEFAULT 'DUE' CHECK (state IN ('DUE', 'DELIVERED', 'GIVEN_UP')),
    attempts     integer NOT NULL DEFAULT 0,
    next_at      timestamptz NOT NULL DEFAULT now(),
    holder       text,
    last_status  integer,
    last_error   text,
    created_at   timestamptz NOT NULL DEFAULT now(),
    delivered_at timestamptz
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.05);

COMMENT ON TABLE callbacks IS 'Callbacks that are to be delivered, were, or were given up. A row is made in the transaction that takes the result.';
COMMENT ON COLUMN callbacks.callback_id IS 'The webhook-id header: the same at every delivery, so that the receiver can tell repetitions.';
COMMENT ON COLUMN callbacks.tenant IS 'Whose task it was.';
COMMENT ON COLUMN callbacks.task_id IS 'Task whose result is posted.';
COMMENT ON COLUMN callbacks.url IS 'Where it is posted.';
COMMENT ON COLUMN callbacks.host IS 'Host and port of the URL; deliveries at the same time are bounded for each.';
COMMENT ON COLUMN callbacks.state IS 'DUE, DELIVERED (the endpoint answered 2xx) or GIVEN_UP.';
COMMENT ON COLUMN callbacks.attempts IS 'Deliveries tried.';
COMMENT ON COLUMN callbacks.next_at IS 'When it is tried again; while a process delivers it, when the row is free for others should that process die.';
COMMENT ON COLUMN callbacks.holder IS 'The process that delivers it or did so last; only that one may write the outcome.';
COMMENT ON COLUMN callbacks.last_status IS 'HTTP status of the last delivery; empty when there was no answer.';
COMMENT ON COLUMN callbacks.last_error IS 'What was wrong with the last delivery.';
COMMENT ON COLUMN callbacks.created_at IS 'When the result was taken.';
COMMENT ON COLUMN callbacks.delivered_at IS 'When the endpoint took it.';

CREATE INDEX callbacks_due ON callbacks (next_at) WHERE state = 'DUE';
-- Callbacks that were given up.
CREATE INDEX callbacks_given_up ON callbacks (created_at) WHERE state = 'GIVEN_UP';
CREATE INDEX callbacks_by_task ON callbacks (tenant, task_id);

-- +goose Down
DROP TABLE callbacks;

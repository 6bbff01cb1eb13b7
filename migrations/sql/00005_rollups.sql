-- +goose Up
-- Rollups answer questions about all tasks, because counting fifty million rows takes a minute. The recorder updates them in
-- the transaction that writes the rows, so they are exact.
--
-- The recorder writes one row per UTC hour and shard. Recorders use different shards, so they do not wait for each other's
-- row locks. When the hour is over, batchyard_compact_rollups sums its shards into shard -1 and adds them to the row of the
-- day, hour -1. After two days it deletes the hours.
--
--   hour -1                the day: the sum of all hours compacted so far
--   hour >= 0, shard >= 0  an hour that was not compacted yet
--   hour >= 0, shard -1    an hour that was
--
-- A day is the sum WHERE hour = -1 OR shard >= 0. An hour is the sum WHERE hour >= 0, available for three days.
CREATE TABLE rollup_usage (
    day           date NOT NULL,
    hour          smallint NOT NULL,
    shard         integer NOT NULL,
    tenant        text COLLATE "C" NOT NULL,
    model         text COLLATE "C" NOT NULL,
    endpoint      text COLLATE "C" NOT NULL,
    state         text COLLATE "C" NOT NULL,
    tasks         bigint NOT NULL,
    attempts      bigint NOT NULL,
    input_tokens  bigint NOT NULL,
    output_tokens bigint NOT NULL,
    PRIMARY KEY (day, hour, shard, tenant, model, endpoint, state)
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.05);
COMMENT ON TABLE rollup_usage IS 'Finished tasks, counted from the results that were stored.';
COMMENT ON COLUMN rollup_usage.day IS 'UTC day on which the tasks finished.';
COMMENT ON COLUMN rollup_usage.hour IS 'UTC hour; -1 for the row of the day, which sums the hours that were compacted.';
COMMENT ON COLUMN rollup_usage.shard IS 'Shard of the writer; -1 for the sum over all writers, and in the row of the day.';
COMMENT ON COLUMN rollup_usage.tenant IS 'Tenant of the tasks.';
COMMENT ON COLUMN rollup_usage.model IS 'Model that answered, or the last one that was tried.';
COMMENT ON COLUMN rollup_usage.endpoint IS 'Path of the endpoint.';
COMMENT ON COLUMN rollup_usage.state IS 'Terminal state of the tasks.';
COMMENT ON COLUMN rollup_usage.tasks IS 'Number of tasks.';
COMMENT ON COLUMN rollup_usage.attempts IS 'Number of attempts.';
COMMENT ON COLUMN rollup_usage.input_tokens IS 'Number of input tokens.';
COMMENT ON COLUMN rollup_usage.output_tokens IS 'Number of output tokens.';

CREATE TABLE rollup_latency (
    day    date NOT NULL,
    hour   smallint NOT NULL,
    shard  integer NOT NULL,
    stage  text COLLATE "C" NOT NULL,
    model  text COLLATE "C" NOT NULL,
    bucket smallint NOT NULL,
    n      bigint NOT NULL,
    us     bigint NOT NULL,
    PRIMARY KEY (day, hour, shard, stage, model, bucket)
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.05);
COMMENT ON TABLE rollup_latency IS 'How long each stage took, as histograms with eight buckets per power of two.';
COMMENT ON COLUMN rollup_latency.day IS 'UTC day on which the stage completed.';
COMMENT ON COLUMN rollup_latency.hour IS 'UTC hour; -1 for the row of the day, which sums the hours that were compacted.';
COMMENT ON COLUMN rollup_latency.shard IS 'Shard of the writer; -1 for the sum over all writers, and in the row of the day.';
COMMENT ON COLUMN rollup_latency.stage IS 'Stage that took the time; the view stage_latency explains them.';
COMMENT ON COLUMN rollup_latency.model IS 'Model that the request named.';
COMMENT ON COLUMN rollup_latency.bucket IS 'Number of the bucket; the function batchyard_bucket explains them.';
COMMENT ON COLUMN rollup_latency.n IS 'Number of measurements in the bucket.';
COMMENT ON COLUMN rollup_latency.us IS 'Sum of the measurements, in microseconds.';

CREATE TABLE rollup_attempts (
    day       date NOT NULL,
    hour      smallint NOT NULL,
    shard     integer NOT NULL,
    device_id text COLLATE "C" NOT NULL,
    model     text COLLATE "C" NOT NULL,
    action    text COLLATE "C" NOT NULL,
    cause     text COLLATE "C" NOT NULL,
    n         bigint NOT NULL,
    requests  bigint NOT NULL,
    us        bigint NOT NULL,
    PRIMARY KEY (day, hour, shard, device_id, model, action, cause)
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.05);
COMMENT ON TABLE rollup_attempts IS 'Attempts and what followed them, by action: attempt.succeeded, attempt.failed, task.requeued, task.degraded.';
COMMENT ON COLUMN rollup_attempts.day IS 'UTC day.';
COMMENT ON COLUMN rollup_attempts.hour IS 'UTC hour; -1 for the row of the day, which sums the hours that were compacted.';
COMMENT ON COLUMN rollup_attempts.shard IS 'Shard of the writer; -1 for the sum over all writers, and in the row of the day.';
COMMENT ON COLUMN rollup_attempts.device_id IS 'Id of the device.';
COMMENT ON COLUMN rollup_attempts.model IS 'Model that the request named.';
COMMENT ON COLUMN rollup_attempts.action IS 'Action of the events.';
COMMENT ON COLUMN rollup_attempts.cause IS 'Class of the error. For a task that was requeued without an error, the reason.';
COMMENT ON COLUMN rollup_attempts.n IS 'Number of events.';
COMMENT ON COLUMN rollup_attempts.requests IS 'Number of requests to the device. One that asked for several tasks counts once, with its first task.';
COMMENT ON COLUMN rollup_attempts.us IS 'Total duration of the requests, in microseconds.';

CREATE TABLE rollup_batches (
    day    date NOT NULL,
    hour   smallint NOT NULL,
    shard  integer NOT NULL,
    model  text COLLATE "C" NOT NULL,
    reason text COLLATE "C" NOT NULL,
    size   integer NOT NULL,
    tasks  bigint NOT NULL,
    bytes  bigint NOT NULL,
    PRIMARY KEY (day, hour, shard, model, reason, size)
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.05);
COMMENT ON TABLE rollup_batches IS 'Tasks that were sent in a batch, by size of the batch and by reason for closing it. Divide by the size to get the number of batches.';
COMMENT ON COLUMN rollup_batches.day IS 'UTC day on which the batches closed.';
COMMENT ON COLUMN rollup_batches.hour IS 'UTC hour; -1 for the row of the day, which sums the hours that were compacted.';
COMMENT ON COLUMN rollup_batches.shard IS 'Shard of the writer; -1 for the sum over all writers, and in the row of the day.';
COMMENT ON COLUMN rollup_batches.model IS 'Model that the requests name.';
COMMENT ON COLUMN rollup_batches.reason IS 'Why the batches closed: count, bytes, wait, idle or drain.';
COMMENT ON COLUMN rollup_batches.size IS 'Number of tasks in each batch.';
COMMENT ON COLUMN rollup_batches.tasks IS 'Number of tasks in all batches of that size.';
COMMENT ON COLUMN rollup_batches.bytes IS 'Size of the batch in bytes, summed over its tasks.';

CREATE TABLE rollup_submissions (
    day         date NOT NULL,
    hour        smallint NOT NULL,
    shard       integer NOT NULL,
    tenant      text COLLATE "C" NOT NULL,
    actor_id    text COLLATE "C" NOT NULL,
    source      text COLLATE "C" NOT NULL,
    user_agent  text COLLATE "C" NOT NULL,
    tasks       bigint NOT NULL,
    input_bytes bigint NOT NULL,
    first_at    timestamptz NOT NULL,
    last_at     timestamptz NOT NULL,
    PRIMARY KEY (day, hour, shard, tenant, actor_id, source, user_agent)
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.05);
COMMENT ON TABLE rollup_submissions IS 'Accepted tasks, by user and source.';
COMMENT ON COLUMN rollup_submissions.day IS 'UTC day.';
COMMENT ON COLUMN rollup_submissions.hour IS 'Always -1, the whole day: an hour may have as many submitters as tasks.';
COMMENT ON COLUMN rollup_submissions.shard IS 'Shard of the writer; -1 for the sum over all writers, and in the row of the day.';
COMMENT ON COLUMN rollup_submissions.tenant IS 'Tenant of the tasks.';
COMMENT ON COLUMN rollup_submissions.actor_id IS 'Name of the user.';
COMMENT ON COLUMN rollup_submissions.source IS 'Address without its port, or kafka:topic.';
COMMENT ON COLUMN rollup_submissions.user_agent IS 'User agent of the client.';
COMMENT ON COLUMN rollup_submissions.tasks IS 'Number of tasks.';
COMMENT ON COLUMN rollup_submissions.input_bytes IS 'Total size of the inputs in bytes.';
COMMENT ON COLUMN rollup_submissions.first_at IS 'When the first of the tasks was accepted.';
COMMENT ON COLUMN rollup_submissions.last_at IS 'When the last of the tasks was accepted.';

-- +goose StatementBegin
-- The bucket of a duration. Below 8 µs each microsecond has its own bucket; above, each power of two is divided into eight
-- buckets of equal width. So the width of a bucket is at most an eighth of its values, and its middle is at most 6.25 % away
-- from any of them. The recorder computes the same in Go (bucketOf).
CREATE FUNCTION batchyard_bucket(us bigint) RETURNS smallint LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT (CASE WHEN us < 8 THEN greatest(us, 0)
        ELSE (e - 2) * 8 + ((us >> (e - 3)::int) & 7) END)::smallint
    FROM (SELECT CASE WHEN 1::bigint << g > us THEN g - 1 WHEN us >> (g + 1) > 0 THEN g + 1 ELSE g END::bigint AS e
        FROM (SELECT floor(ln(greatest(us, 1)::float8) / ln(2::float8))::int AS g) guess) power
$$;
-- +goose StatementEnd
COMMENT ON FUNCTION batchyard_bucket(bigint) IS 'The bucket of rollup_latency that a duration in microseconds belongs to.';

-- +goose StatementBegin
-- The middle of a bucket in milliseconds.
CREATE FUNCTION batchyard_bucket_ms(bucket smallint) RETURNS float8 LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT CASE WHEN bucket < 8 THEN bucket::float8
        ELSE (8.5 + bucket % 8) * power(2::float8, bucket / 8 - 1) END / 1000
$$;
-- +goose StatementEnd
COMMENT ON FUNCTION batchyard_bucket_ms(smallint) IS 'The middle of a bucket of rollup_latency in milliseconds. Durations in the bucket are at most 6.25 % away from it.';

-- +goose StatementBegin
-- A source without what differs for every request. The recorder computes the same in Go (sourceOf).
CREATE FUNCTION batchyard_source(source_addr text) RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT CASE WHEN source_addr LIKE 'kafka:%' THEN split_part(source_addr, '/', 1) ELSE regexp_replace(coalesce(source_addr, ''), ':[^:]*$', '') END
$$;
-- +goose StatementEnd
COMMENT ON FUNCTION batchyard_source(text) IS 'An address without its port, or kafka:topic.';

-- +goose StatementBegin
-- Recomputes the rollups of the given day and all later ones from audit_log and results. It reads every row of those days,
-- and recorders wait until it is done. Days whose audit rows were dropped lose their rollups, so start with a day that still
-- has its rows.
CREATE FUNCTION batchyard_rebuild_rollups(since date) RETURNS void LANGUAGE plpgsql SET timezone = 'UTC' AS $$
BEGIN
    LOCK TABLE rollup_usage, rollup_latency, rollup_attempts, rollup_batches, rollup_submissions IN EXCLUSIVE MODE;
    DELETE FROM rollup_usage WHERE day >= since;
    DELETE FROM rollup_latency WHERE day >= since;
    DELETE FROM rollup_attempts WHERE day >= since;
    DELETE FROM rollup_batches WHERE day >= since;
    DELETE FROM rollup_submissions WHERE day >= since;

    INSERT INTO rollup_usage (day, hour, shard, tenant, model, endpoint, state, tasks, attempts, input_tokens, output_tokens)
    SELECT finished_at::date, extract(hour FROM finished_at), 0, tenant, coalesce(model, ''), coalesce(endpoint, ''), state,
        count(*), sum(attempt), sum(input_tokens), sum(output_tokens)
    FROM results WHERE finished_at >= since GROUP BY 1, 2, 4, 5, 6, 7;

    INSERT INTO rollup_latency (day, hour, shard, stage, model, bucket, n, us)
    SELECT at::date, extract(hour FROM at), 0, stage, model, batchyard_bucket(us), count(*), sum(us)
    FROM (
        SELECT time AS at, CASE action WHEN 'task.assigned' THEN 'queue' WHEN 'batch.closed' THEN 'batch' WHEN 'attempt.succeeded' THEN 'attempt'
            WHEN 'attempt.failed' THEN 'failed_attempt' ELSE 'callback' END AS stage,
            coalesce(model, '') AS model, greatest(0, coalesce(round(duration_ms * 1e6)::bigint / 1000, 0)) AS us
        FROM audit_log WHERE time >= since
            AND action IN ('task.assigned', 'batch.closed', 'attempt.succeeded', 'attempt.failed', 'callback.delivered')
        UNION ALL
        SELECT finished_at, 'dispatch', coalesce(model, ''), (extract(epoch FROM started_at - assigned_at) * 1000000)::bigint
        FROM results WHERE finished_at >= since AND started_at >= assigned_at
        UNION ALL
        SELECT finished_at, 'total', coalesce(model, ''), (extract(epoch FROM finished_at - submitted_at) * 1000000)::bigint
        FROM results WHERE finished_at >= since AND state = 'SUCCESS' AND finished_at >= submitted_at
    ) s GROUP BY 1, 2, 4, 5, 6;

    INSERT INTO rollup_attempts (day, hour, shard, device_id, model, action, cause, n, requests, us)
    SELECT time::date, extract(hour FROM time), 0, coalesce(device_id, ''), coalesce(model, ''), action,
        coalesce(error_class, CASE WHEN action = 'task.requeued' THEN left(detail->>'reason', 64) END, ''), count(*),
        count(*) FILTER (WHERE action LIKE 'attempt.%' AND coalesce(detail->>'request_index', '0') = '0'),
        coalesce(sum(round(duration_ms * 1e6)::bigint / 1000) FILTER (WHERE action LIKE 'attempt.%' AND coalesce(detail->>'request_index', '0') = '0' AND duration_ms > 0), 0)
    FROM audit_log WHERE time >= since AND action IN ('attempt.succeeded', 'attempt.failed', 'task.requeued', 'task.degraded')
    GROUP BY 1, 2, 4, 5, 6, 7;

    INSERT INTO rollup_batches (day, hour, shard, model, reason, size, tasks, bytes)
    SELECT time::date, extract(hour FROM time), 0, coalesce(model, ''), left(coalesce(detail->>'reason', ''), 64),
        coalesce((detail->>'tasks')::int, 0), count(*), coalesce(sum((detail->>'bytes')::bigint), 0)
    FROM audit_log WHERE time >= since AND action = 'batch.closed' AND detail->>'unreadable_bytes' IS NULL
    GROUP BY 1, 2, 4, 5, 6;

    INSERT INTO rollup_submissions (day, hour, shard, tenant, actor_id, source, user_agent, tasks, input_bytes, first_at, last_at)
    SELECT time::date, -1, 0, tenant, left(actor_id, 128), -- an index entry is limited to 2.7 kB
        left(batchyard_source(source_addr), 100),
        left(coalesce(user_agent, ''), 256), count(*), coalesce(sum(input_bytes), 0), min(time), max(time)
    FROM audit_log WHERE time >= since AND action = 'task.accepted' GROUP BY 1, 4, 5, 6, 7;
END
$$;
-- +goose StatementEnd
COMMENT ON FUNCTION batchyard_rebuild_rollups(date) IS 'Recomputes the rollups from audit_log and results, starting with a UTC day.';

-- +goose StatementBegin
-- Adds completed hours to their day, deletes the hours of days before yesterday, and deletes days before the given one. It
-- skips rows that are locked, because a recorder is adding a late event to them, and leaves them for the next call: waiting
-- for them could deadlock with the recorder.
CREATE FUNCTION batchyard_compact_rollups(forget date) RETURNS bigint LANGUAGE plpgsql SECURITY DEFINER SET timezone = 'UTC' AS $$
DECLARE
    t    record;
    adds text;
    plus text;
    more text;
    done bigint := 0;
    n    bigint;
BEGIN
    FOR t IN SELECT * FROM (VALUES
        ('rollup_usage', 'tenant, model, endpoint, state', 'tasks, attempts, input_tokens, output_tokens', false),
        ('rollup_latency', 'stage, model, bucket', 'n, us', false),
        ('rollup_attempts', 'device_id, model, action, cause', 'n, requests, us', false),
        ('rollup_batches', 'model, reason, size', 'tasks, bytes', false),
        ('rollup_submissions', 'tenant, actor_id, source, user_agent', 'tasks, input_bytes', true)
        ) AS v (name, keys, sums, days)
    LOOP
        EXECUTE format('DELETE FROM %I WHERE day < $1 OR hour >= 0 AND shard < 0 AND day < (now() - interval ''2 days'')::date', t.name) USING forget;
        -- Sums saturate at the largest bigint instead of failing, as in the recorder.
        SELECT string_agg('least(sum(' || c || '), 9223372036854775807)::bigint', ', '),
            string_agg(format('%1$I = r.%1$I + least(excluded.%1$I, 9223372036854775807 - r.%1$I)', c), ', ') INTO adds, plus
        FROM unnest(string_to_array(t.sums, ', ')) c;
        more := '';
        IF t.days THEN -- it has no hours, but two more columns
            more := ', first_at, last_at';
            adds := adds || ', min(first_at), max(last_at)';
            plus := plus || ', first_at = least(r.first_at, excluded.first_at), last_at = greatest(r.last_at, excluded.last_at)';
        END IF;
        EXECUTE format('WITH old AS (SELECT ctid FROM %1$I WHERE shard >= 0
                AND (day, CASE WHEN hour < 0 THEN 24 ELSE hour END) < ((now() - interval ''2 hours'')::date, extract(hour FROM now() - interval ''2 hours''))
                FOR UPDATE SKIP LOCKED),
            gone AS (DELETE FROM %1$I WHERE ctid = ANY (ARRAY(SELECT ctid FROM old)) RETURNING *),
            hours AS (INSERT INTO %1$I AS r (day, hour, shard, %2$s, %3$s)
                SELECT day, hour, -1, %2$s, %4$s FROM gone WHERE hour >= 0 GROUP BY day, hour, %2$s
                ON CONFLICT (day, hour, shard, %2$s) DO UPDATE SET %5$s)
            INSERT INTO %1$I AS r (day, hour, shard, %2$s, %3$s)
            SELECT day, -1, -1, %2$s, %4$s FROM gone GROUP BY day, %2$s
            ON CONFLICT (day, hour, shard, %2$s) DO UPDATE SET %5$s', t.name, t.keys, t.sums || more, adds, plus);
        GET DIAGNOSTICS n = ROW_COUNT;
        done := done + n;
    END LOOP;
    RETURN done;
END
$$;
-- +goose StatementEnd
COMMENT ON FUNCTION batchyard_compact_rollups(date) IS 'Adds completed hours to their day, deletes the hours of days before yesterday, and deletes days before the given one. The recorder calls it regularly; calling it again does no harm.';

-- Compaction deletes rows, which the recorder's login may not do, so it runs with the rights of the owner and looks for
-- tables in this schema only.
-- +goose StatementBegin
DO $$
BEGIN
    EXECUTE format('ALTER FUNCTION batchyard_compact_rollups(date) SET search_path = %I, pg_temp', current_schema());
    REVOKE ALL ON FUNCTION batchyard_compact_rollups(date) FROM PUBLIC;
END
$$;
-- +goose StatementEnd

-- +goose Down
DROP FUNCTION batchyard_compact_rollups(date);
DROP FUNCTION batchyard_rebuild_rollups(date);
DROP FUNCTION batchyard_source(text);
DROP FUNCTION batchyard_bucket_ms(smallint);
DROP FUNCTION batchyard_bucket(bigint);
DROP TABLE rollup_submissions, rollup_batches, rollup_attempts, rollup_latency, rollup_usage;

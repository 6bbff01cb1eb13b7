-- +goose Up
-- Views for people. docs/sql.md has an example for each. All times are UTC.

CREATE VIEW task_timeline AS
SELECT tenant, task_id, time, action, outcome, error_class, attempt, device_id, batch_id, model, duration_ms,
    actor_type, actor_id, source_addr, user_agent, resource_type, resource_id, job_id, trace_id, input_tokens, output_tokens,
    input_sha256, input_bytes, output_sha256, output_bytes, detail, ingested_at, src_topic, src_partition, src_offset, src_index
FROM audit_log WHERE task_id IS NOT NULL;
COMMENT ON VIEW task_timeline IS 'Everything that happened to a task. Always filter: WHERE task_id = … ORDER BY time.';
COMMENT ON COLUMN task_timeline.tenant IS 'Tenant that the task, job or callback belongs to; empty for events that belong to no tenant, such as those of a device.';
COMMENT ON COLUMN task_timeline.task_id IS 'Id of the task, unique within the tenant.';
COMMENT ON COLUMN task_timeline."time" IS 'When it happened, by the clock of the process that recorded it.';
COMMENT ON COLUMN task_timeline.action IS 'What was done, such as task.accepted. docs/actions.md lists all actions.';
COMMENT ON COLUMN task_timeline.outcome IS 'ok, failed or refused.';
COMMENT ON COLUMN task_timeline.error_class IS 'Class of the error: invalid, device, connect, timeout, throttled …';
COMMENT ON COLUMN task_timeline.attempt IS 'Number of the attempt, from 1; empty if there was no attempt.';
COMMENT ON COLUMN task_timeline.device_id IS 'Id of the device that was chosen, was sent a request, joined …';
COMMENT ON COLUMN task_timeline.batch_id IS 'Id of the batch in which the task was sent to its device.';
COMMENT ON COLUMN task_timeline.model IS 'Model that the request named.';
COMMENT ON COLUMN task_timeline.duration_ms IS 'How long the action took, in milliseconds.';
COMMENT ON COLUMN task_timeline.actor_type IS 'Who acted: user, stage or device.';
COMMENT ON COLUMN task_timeline.actor_id IS 'Name of the user, the device, or the stage instance (stage@host-pid).';
COMMENT ON COLUMN task_timeline.source_addr IS 'Where the request came from: an address with its port, or kafka:topic/partition@offset.';
COMMENT ON COLUMN task_timeline.user_agent IS 'User agent of the client.';
COMMENT ON COLUMN task_timeline.resource_type IS 'Kind of thing it was done to: task, batch, device, callback, job, record …';
COMMENT ON COLUMN task_timeline.resource_id IS 'Id of the thing it was done to.';
COMMENT ON COLUMN task_timeline.job_id IS 'Id of the job that the task belongs to.';
COMMENT ON COLUMN task_timeline.trace_id IS 'W3C trace id of the task.';
COMMENT ON COLUMN task_timeline.input_tokens IS 'Input tokens as counted by the device.';
COMMENT ON COLUMN task_timeline.output_tokens IS 'Output tokens as counted by the device.';
COMMENT ON COLUMN task_timeline.input_sha256 IS 'SHA-256 of the input.';
COMMENT ON COLUMN task_timeline.input_bytes IS 'Size of the input in bytes.';
COMMENT ON COLUMN task_timeline.output_sha256 IS 'SHA-256 of the output.';
COMMENT ON COLUMN task_timeline.output_bytes IS 'Size of the output in bytes.';
COMMENT ON COLUMN task_timeline.detail IS 'Further facts as a small JSON object, stored byte for byte as it was written.';
COMMENT ON COLUMN task_timeline.ingested_at IS 'When the row was written, by the clock of the database.';
COMMENT ON COLUMN task_timeline.src_topic IS 'Topic of the record that the row comes from.';
COMMENT ON COLUMN task_timeline.src_partition IS 'Partition of that record.';
COMMENT ON COLUMN task_timeline.src_offset IS 'Offset of that record.';
COMMENT ON COLUMN task_timeline.src_index IS 'Index of the event within that record. Topic, partition, offset and index identify a row.';

CREATE VIEW stuck_tasks AS
SELECT tenant, task_id, state, now() - updated_at AS in_state_for, now() - submitted_at AS age,
    coalesce(deadline < now(), false) AS overdue, attempt, device_id, model, endpoint, priority, job_id, error_class,
    submitted_at, updated_at, deadline,
    CASE WHEN deadline < now() THEN 'its deadline has passed, but it has not expired: is a stage down?'
        WHEN state = 'PENDING' AND attempt = 0 THEN 'no device has been chosen: run batchyard tasks why to see what it waits for'
        WHEN state = 'PENDING' THEN 'an attempt failed, and it waits for the next one'
        WHEN state = 'ASSIGNED' THEN 'assigned, but not started: is a worker down, or the device full?'
        ELSE 'the device has not answered yet' END AS hint
FROM tasks
WHERE state IN ('PENDING', 'ASSIGNED', 'RUNNING') AND (updated_at < now() - interval '5 minutes' OR deadline < now());
COMMENT ON VIEW stuck_tasks IS 'Unfinished tasks whose state has not changed for five minutes, or whose deadline has passed.';
COMMENT ON COLUMN stuck_tasks.tenant IS 'Tenant that the task belongs to.';
COMMENT ON COLUMN stuck_tasks.task_id IS 'Id of the task, unique within the tenant.';
COMMENT ON COLUMN stuck_tasks.state IS 'PENDING, ASSIGNED, RUNNING, or a terminal state: SUCCESS, FAILED, CANCELLED or EXPIRED.';
COMMENT ON COLUMN stuck_tasks.in_state_for IS 'Time since the state changed.';
COMMENT ON COLUMN stuck_tasks.age IS 'Time since the task was submitted.';
COMMENT ON COLUMN stuck_tasks.overdue IS 'Whether the deadline has passed.';
COMMENT ON COLUMN stuck_tasks.attempt IS 'Number of the latest attempt, from 1; 0 if there was none.';
COMMENT ON COLUMN stuck_tasks.device_id IS 'Id of the device of the latest attempt; empty while the task waits.';
COMMENT ON COLUMN stuck_tasks.model IS 'Model that the request names. After a degrade it is smaller than the one submitted.';
COMMENT ON COLUMN stuck_tasks.endpoint IS 'Path of the endpoint, such as /v1/chat/completions.';
COMMENT ON COLUMN stuck_tasks.priority IS 'high, normal or low.';
COMMENT ON COLUMN stuck_tasks.job_id IS 'Id of the job that the task belongs to.';
COMMENT ON COLUMN stuck_tasks.error_class IS 'Class of the error of the latest attempt, whether the task failed or waits for a retry.';
COMMENT ON COLUMN stuck_tasks.submitted_at IS 'When the task was submitted. Until that is known, the time of its first known event.';
COMMENT ON COLUMN stuck_tasks.updated_at IS 'When the state changed, by the clock of the process that changed it.';
COMMENT ON COLUMN stuck_tasks.deadline IS 'When the task expires unless it has finished.';
COMMENT ON COLUMN stuck_tasks.hint IS 'A likely cause, and what to check.';

CREATE VIEW task_ages AS
WITH bounds (place, age_from, age_to) AS (VALUES
    (0, interval '0', interval '1 minute'), (1, interval '1 minute', interval '10 minutes'), (2, interval '10 minutes', interval '1 hour'),
    (3, interval '1 hour', interval '1 day'), (4, interval '1 day', interval '7 days'), (5, interval '7 days', NULL)),
counted AS (
    SELECT tenant, state, width_bucket(extract(epoch FROM now() - updated_at), '{60,600,3600,86400,604800}'::numeric[]) AS place,
        count(*) AS tasks, min(updated_at) AS oldest
    FROM tasks WHERE state IN ('PENDING', 'ASSIGNED', 'RUNNING') GROUP BY 1, 2, 3
    UNION ALL
    SELECT tenant, state, width_bucket(extract(epoch FROM now() - at), '{60,600,3600,86400,604800}'::numeric[]), sum(tasks)::bigint, min(at)
    FROM (SELECT tenant, state, tasks, least(now(), (day::timestamp + CASE WHEN hour < 0 THEN interval '1 day' ELSE (hour + 1) * interval '1 hour' END) AT TIME ZONE 'UTC') AS at
        FROM rollup_usage WHERE CASE WHEN day >= ((now() - interval '2 days') AT TIME ZONE 'UTC')::date OR shard >= 0 THEN hour >= 0 ELSE hour < 0 END) ended
    GROUP BY 1, 2, 3)
SELECT c.tenant, c.state, b.age_from, b.age_to, c.tasks, c.oldest
FROM counted c JOIN bounds b USING (place);
COMMENT ON VIEW task_ages IS 'Number of tasks per state and time spent in that state: exact for unfinished tasks, to the hour for finished ones, and to the day for those that finished more than two days ago.';
COMMENT ON COLUMN task_ages.tenant IS 'Tenant of the tasks.';
COMMENT ON COLUMN task_ages.state IS 'State of the tasks.';
COMMENT ON COLUMN task_ages.age_from IS 'They have been in the state for at least this long.';
COMMENT ON COLUMN task_ages.age_to IS 'They have been in the state for less than this long; empty if unbounded.';
COMMENT ON COLUMN task_ages.tasks IS 'Number of events.';
COMMENT ON COLUMN task_ages.oldest IS 'Since when the oldest of them has been in the state.';

CREATE VIEW retries AS
SELECT day, device_id, model, cause,
    coalesce(sum(n) FILTER (WHERE action = 'attempt.failed'), 0)::bigint AS failed_attempts,
    coalesce(sum(n) FILTER (WHERE action = 'task.requeued'), 0)::bigint AS requeued,
    coalesce(sum(n) FILTER (WHERE action = 'task.degraded'), 0)::bigint AS degraded,
    round(coalesce(sum(us) FILTER (WHERE action = 'attempt.failed'), 0) / 1e6, 3) AS lost_seconds
FROM rollup_attempts WHERE action <> 'attempt.succeeded' AND (hour = -1 OR shard >= 0)
GROUP BY day, device_id, model, cause;
COMMENT ON VIEW retries IS 'Failed attempts and requeued tasks, by UTC day, cause, device and model.';
COMMENT ON COLUMN retries.day IS 'UTC day.';
COMMENT ON COLUMN retries.device_id IS 'Id of the device.';
COMMENT ON COLUMN retries.model IS 'Model that the request named.';
COMMENT ON COLUMN retries.cause IS 'Class of the error. For a task that was requeued without an error, the reason.';
COMMENT ON COLUMN retries.failed_attempts IS 'Number of attempts that failed.';
COMMENT ON COLUMN retries.requeued IS 'Number of times that a task was requeued.';
COMMENT ON COLUMN retries.degraded IS 'Number of tasks that were degraded to a smaller model.';
COMMENT ON COLUMN retries.lost_seconds IS 'Total duration of the requests that failed, in seconds. One that asked for several tasks counts once.';

CREATE VIEW device_history AS
SELECT time, device_id, action, outcome, error_class, actor_type, actor_id, source_addr, detail
FROM audit_log WHERE task_id IS NULL AND device_id IS NOT NULL;
COMMENT ON VIEW device_history IS 'Everything that happened to a device: joined, left, silent, drained, breaker opened and closed.';
COMMENT ON COLUMN device_history."time" IS 'When it happened, by the clock of the process that recorded it.';
COMMENT ON COLUMN device_history.device_id IS 'Id of the device that was chosen, was sent a request, joined …';
COMMENT ON COLUMN device_history.action IS 'What was done, such as task.accepted. docs/actions.md lists all actions.';
COMMENT ON COLUMN device_history.outcome IS 'ok, failed or refused.';
COMMENT ON COLUMN device_history.error_class IS 'Class of the error: invalid, device, connect, timeout, throttled …';
COMMENT ON COLUMN device_history.actor_type IS 'Who acted: user, stage or device.';
COMMENT ON COLUMN device_history.actor_id IS 'Name of the user, the device, or the stage instance (stage@host-pid).';
COMMENT ON COLUMN device_history.source_addr IS 'Where the request came from: an address with its port, or kafka:topic/partition@offset.';
COMMENT ON COLUMN device_history.detail IS 'Further facts as a small JSON object, stored byte for byte as it was written.';

CREATE VIEW device_availability AS
WITH reported AS (
    -- What each event says about the device's presence, breaker and drain; 0 is good.
    SELECT device_id, time, round(date_part('epoch', time) * 1e6) * 2 AS at,
        CASE action WHEN 'device.joined' THEN 0 WHEN 'device.silent' THEN 1 WHEN 'device.left' THEN 1 END AS absent,
        CASE action WHEN 'breaker.closed' THEN 0 WHEN 'device.joined' THEN NULL WHEN 'breaker.opened' THEN 1 WHEN 'breaker.half_opened' THEN 1 END AS failing,
        CASE action WHEN 'device.undrained' THEN 0 WHEN 'device.drained' THEN 1 END AS drained
    FROM audit_log WHERE task_id IS NULL AND device_id IS NOT NULL AND outcome = 'ok'),
known AS (
    -- The latest value of each up to then: the maximum of time and value, with the value in the lowest bit.
    SELECT device_id, time, lead(time, 1, now()) OVER w AS until,
        (max(at + absent) FILTER (WHERE absent IS NOT NULL) OVER w)::bigint & 1 AS absent,
        (max(at + failing) FILTER (WHERE failing IS NOT NULL) OVER w)::bigint & 1 AS failing,
        (max(at + drained) FILTER (WHERE drained IS NOT NULL) OVER w)::bigint & 1 AS drained
    FROM reported WINDOW w AS (PARTITION BY device_id ORDER BY time)),
parts AS (
    SELECT device_id, d::date AS day,
        CASE WHEN absent = 1 THEN 'absent' WHEN failing = 1 THEN 'failing' WHEN drained = 1 THEN 'drained' ELSE 'up' END AS status,
        extract(epoch FROM least(until, (d + interval '1 day') AT TIME ZONE 'UTC') - greatest(time, d AT TIME ZONE 'UTC')) AS seconds
    -- An array, which the planner expects to be short. It would expect a thousand days from generate_series, and compile
    -- the query for seconds.
    FROM known, unnest(ARRAY(SELECT generate_series(date_trunc('day', time AT TIME ZONE 'UTC'), until AT TIME ZONE 'UTC', interval '1 day'))) AS d
    WHERE until > time),
times AS (
    SELECT device_id, day, coalesce(sum(seconds) FILTER (WHERE status = 'up'), 0) AS up, coalesce(sum(seconds) FILTER (WHERE status = 'failing'), 0) AS failing,
        coalesce(sum(seconds) FILTER (WHERE status = 'drained'), 0) AS drained, coalesce(sum(seconds) FILTER (WHERE status = 'absent'), 0) AS absent
    FROM parts GROUP BY device_id, day),
outcomes AS (
    SELECT device_id, day, sum(n) FILTER (WHERE action = 'attempt.succeeded') AS succeeded, sum(n) FILTER (WHERE action = 'attempt.failed') AS failed,
        sum(requests) AS requests, sum(us) / 1e6 AS busy
    FROM rollup_attempts WHERE action IN ('attempt.succeeded', 'attempt.failed') AND (hour = -1 OR shard >= 0) GROUP BY device_id, day)
SELECT day, device_id, round(up) AS up_seconds, round(failing) AS failing_seconds, round(drained) AS drained_seconds, round(absent) AS absent_seconds,
    round(100 * up / nullif(up + failing + absent, 0), 3) AS up_percent,
    coalesce(succeeded, 0)::bigint AS attempts_succeeded, coalesce(failed, 0)::bigint AS attempts_failed,
    round(100 * coalesce(succeeded, 0) / nullif(coalesce(succeeded, 0) + coalesce(failed, 0), 0), 3) AS succeeded_percent,
    coalesce(requests, 0)::bigint AS requests, round(busy, 1) AS busy_seconds
FROM times FULL JOIN outcomes USING (device_id, day);
COMMENT ON VIEW device_availability IS 'How long each device was up, failing (breaker open), drained or absent on each UTC day, and the outcomes of its attempts. Drained time counts neither for nor against the device. A device has no rows before its first event.';
COMMENT ON COLUMN device_availability.day IS 'UTC day.';
COMMENT ON COLUMN device_availability.device_id IS 'Id of the device.';
COMMENT ON COLUMN device_availability.up_seconds IS 'Seconds in which it was present, not drained, and its breaker closed.';
COMMENT ON COLUMN device_availability.failing_seconds IS 'Seconds in which it was present with its breaker open or half open.';
COMMENT ON COLUMN device_availability.drained_seconds IS 'Seconds in which an operator had it drained.';
COMMENT ON COLUMN device_availability.absent_seconds IS 'Seconds in which it had left or was silent.';
COMMENT ON COLUMN device_availability.up_percent IS 'Share of the time, without drained time, in which it was up.';
COMMENT ON COLUMN device_availability.attempts_succeeded IS 'Number of attempts that succeeded.';
COMMENT ON COLUMN device_availability.attempts_failed IS 'Number of attempts that failed.';
COMMENT ON COLUMN device_availability.succeeded_percent IS 'Share of the attempts that succeeded.';
COMMENT ON COLUMN device_availability.requests IS 'Number of requests that it was sent: fewer than attempts if some asked for several tasks.';
COMMENT ON COLUMN device_availability.busy_seconds IS 'Total duration of the requests; more than a day if several ran at once.';

CREATE VIEW usage_by_day AS
SELECT day, tenant, model, sum(tasks)::bigint AS tasks,
    coalesce(sum(tasks) FILTER (WHERE state = 'SUCCESS'), 0)::bigint AS succeeded,
    coalesce(sum(tasks) FILTER (WHERE state = 'FAILED'), 0)::bigint AS failed,
    coalesce(sum(tasks) FILTER (WHERE state = 'CANCELLED'), 0)::bigint AS cancelled,
    coalesce(sum(tasks) FILTER (WHERE state = 'EXPIRED'), 0)::bigint AS expired,
    sum(attempts)::bigint AS attempts, sum(input_tokens)::bigint AS input_tokens, sum(output_tokens)::bigint AS output_tokens
FROM rollup_usage WHERE hour = -1 OR shard >= 0 GROUP BY day, tenant, model;
COMMENT ON VIEW usage_by_day IS 'Finished tasks and their tokens, by UTC day, tenant and model. Each task counts once, even if it ran twice.';
COMMENT ON COLUMN usage_by_day.day IS 'UTC day on which the tasks finished.';
COMMENT ON COLUMN usage_by_day.tenant IS 'Tenant of the tasks.';
COMMENT ON COLUMN usage_by_day.model IS 'Model that answered, or the last one that was tried.';
COMMENT ON COLUMN usage_by_day.tasks IS 'Number of tasks.';
COMMENT ON COLUMN usage_by_day.succeeded IS 'Number of tasks that ended in SUCCESS.';
COMMENT ON COLUMN usage_by_day.failed IS 'Number of tasks that ended in FAILED.';
COMMENT ON COLUMN usage_by_day.cancelled IS 'Number of tasks that ended in CANCELLED.';
COMMENT ON COLUMN usage_by_day.expired IS 'Number of tasks that ended in EXPIRED.';
COMMENT ON COLUMN usage_by_day.attempts IS 'Number of attempts.';
COMMENT ON COLUMN usage_by_day.input_tokens IS 'Number of input tokens.';
COMMENT ON COLUMN usage_by_day.output_tokens IS 'Number of output tokens.';

-- Sums are float8, which is exact up to 2^53 and several times faster than numeric, the type of a sum of bigint.
CREATE VIEW stage_latency AS
WITH counted AS (
    SELECT day, stage, model, bucket, sum(n::float8) AS n, sum(us::float8) AS us FROM rollup_latency WHERE hour = -1 OR shard >= 0 GROUP BY day, stage, model, bucket),
ranked AS (
    SELECT *, sum(n) OVER (PARTITION BY day, stage, model ORDER BY bucket) AS upto, sum(n) OVER (PARTITION BY day, stage, model) AS total FROM counted)
SELECT day, stage, model, sum(n)::bigint AS n, round((sum(us) / sum(n) / 1000)::numeric, 3) AS mean_ms,
    round(batchyard_bucket_ms(min(bucket) FILTER (WHERE upto >= 0.50 * total))::numeric, 3) AS p50_ms,
    round(batchyard_bucket_ms(min(bucket) FILTER (WHERE upto >= 0.90 * total))::numeric, 3) AS p90_ms,
    round(batchyard_bucket_ms(min(bucket) FILTER (WHERE upto >= 0.99 * total))::numeric, 3) AS p99_ms,
    round(batchyard_bucket_ms(max(bucket))::numeric, 3) AS max_ms
FROM ranked GROUP BY day, stage, model;
COMMENT ON VIEW stage_latency IS 'How long each stage took, by UTC day and model: queue (from the router reading the task to its assignment), batch (from there to the batch being sent), dispatch (from the assignment to the request, batch included), attempt and failed_attempt (the request), callback (the delivery), total (from submit to the end, of tasks that succeeded). The mean is exact; percentiles are within 6.25 %.';
COMMENT ON COLUMN stage_latency.day IS 'UTC day on which the stage completed.';
COMMENT ON COLUMN stage_latency.stage IS 'Stage that took the time; the view stage_latency explains them.';
COMMENT ON COLUMN stage_latency.model IS 'Model that the request named.';
COMMENT ON COLUMN stage_latency.n IS 'Number of events.';
COMMENT ON COLUMN stage_latency.mean_ms IS 'Mean duration in milliseconds, exact.';
COMMENT ON COLUMN stage_latency.p50_ms IS 'Median in milliseconds.';
COMMENT ON COLUMN stage_latency.p90_ms IS '90th percentile in milliseconds.';
COMMENT ON COLUMN stage_latency.p99_ms IS '99th percentile in milliseconds.';
COMMENT ON COLUMN stage_latency.max_ms IS 'Maximum in milliseconds.';

CREATE VIEW stage_latency_by_hour AS
WITH counted AS (
    SELECT day, hour, stage, model, bucket, sum(n::float8) AS n, sum(us::float8) AS us FROM rollup_latency WHERE hour >= 0 GROUP BY day, hour, stage, model, bucket),
ranked AS (
    SELECT *, sum(n) OVER (PARTITION BY day, hour, stage, model ORDER BY bucket) AS upto, sum(n) OVER (PARTITION BY day, hour, stage, model) AS total FROM counted)
SELECT day, hour, stage, model, sum(n)::bigint AS n, round((sum(us) / sum(n) / 1000)::numeric, 3) AS mean_ms,
    round(batchyard_bucket_ms(min(bucket) FILTER (WHERE upto >= 0.50 * total))::numeric, 3) AS p50_ms,
    round(batchyard_bucket_ms(min(bucket) FILTER (WHERE upto >= 0.90 * total))::numeric, 3) AS p90_ms,
    round(batchyard_bucket_ms(min(bucket) FILTER (WHERE upto >= 0.99 * total))::numeric, 3) AS p99_ms,
    round(batchyard_bucket_ms(max(bucket))::numeric, 3) AS max_ms
FROM ranked GROUP BY day, hour, stage, model;
COMMENT ON VIEW stage_latency_by_hour IS 'Same as stage_latency, by UTC hour, for today and the two days before.';
COMMENT ON COLUMN stage_latency_by_hour.day IS 'UTC day on which the stage completed.';
COMMENT ON COLUMN stage_latency_by_hour.hour IS 'UTC hour; -1 for the row of the day, which sums the hours that were compacted.';
COMMENT ON COLUMN stage_latency_by_hour.stage IS 'Stage that took the time; the view stage_latency explains them.';
COMMENT ON COLUMN stage_latency_by_hour.model IS 'Model that the request named.';
COMMENT ON COLUMN stage_latency_by_hour.n IS 'Number of events.';
COMMENT ON COLUMN stage_latency_by_hour.mean_ms IS 'Mean duration in milliseconds, exact.';
COMMENT ON COLUMN stage_latency_by_hour.p50_ms IS 'Median in milliseconds.';
COMMENT ON COLUMN stage_latency_by_hour.p90_ms IS '90th percentile in milliseconds.';
COMMENT ON COLUMN stage_latency_by_hour.p99_ms IS '99th percentile in milliseconds.';
COMMENT ON COLUMN stage_latency_by_hour.max_ms IS 'Maximum in milliseconds.';

CREATE VIEW job_progress AS
SELECT j.tenant, j.job_id,
    CASE WHEN j.finished_at IS NULL AND (p.done < p.known OR j.cancel_requested_at IS NULL AND (p.known = 0 OR p.known < j.tasks)) THEN 'RUNNING'
        WHEN j.cancel_requested_at IS NOT NULL THEN 'CANCELLED' ELSE 'FINISHED' END AS state,
    greatest(j.tasks, p.known) AS tasks, p.known, p.done, round(100.0 * p.done / nullif(greatest(j.tasks, p.known), 0), 1) AS percent,
    p.pending, p.assigned, p.running, p.succeeded, p.failed, p.cancelled, p.expired,
    round(p.rate::numeric, 3) AS tasks_per_second,
    CASE WHEN p.rate > 0 AND j.cancel_requested_at IS NULL AND p.done < greatest(j.tasks, p.known) THEN make_interval(secs => ceil((greatest(j.tasks, p.known) - p.done) / p.rate)) END AS remaining,
    p.input_tokens, p.output_tokens, p.errors, p.devices, j.submitted_at, j.submitted_by, j.cancel_requested_at, p.last_finished_at,
    encode(j.fingerprint, 'hex') AS sha256, j.file, j.format, j.lines, j.bad_lines, j.bytes, j.labels, j.rounds
FROM jobs j CROSS JOIN LATERAL (
    -- A finished job keeps its counts. Those of any other are taken from its tasks, in one pass over the index tasks_by_job.
    SELECT * FROM json_to_record(j.summary) AS s (known bigint, done bigint, pending bigint, assigned bigint, running bigint, succeeded bigint,
        failed bigint, cancelled bigint, expired bigint, rate float8, input_tokens bigint, output_tokens bigint, errors json, devices json, last_finished_at timestamptz)
    WHERE j.finished_at IS NOT NULL
    UNION ALL
    SELECT known, done, pending, assigned, running, succeeded, failed, cancelled, expired,
        -- Over the last minute, or since the submit if that is less; over the whole duration, if every task that is known has
        -- finished. A job that has just begun has no rate.
        CASE WHEN done = known AND done > 0 THEN done / greatest(0.001, extract(epoch FROM last_finished_at - j.submitted_at)::float8)
            WHEN recent > 0 THEN recent / greatest(1, least(60, extract(epoch FROM now() - j.submitted_at)::float8)) END,
        input_tokens, output_tokens, errors, devices, last_finished_at
    FROM (
        WITH counted AS MATERIALIZED (
            SELECT t.state, coalesce(t.error_class, '') AS class, coalesce(t.device_id, '') AS device, count(*) AS n, max(t.finished_at) AS last,
                count(*) FILTER (WHERE t.finished_at > now() - interval '1 minute') AS recent,
                sum(t.input_tokens)::bigint AS input_tokens, sum(t.output_tokens)::bigint AS output_tokens, min(t.error_message) AS sample
            FROM tasks t WHERE t.tenant = j.tenant AND t.job_id = j.job_id GROUP BY 1, 2, 3)
        SELECT coalesce(sum(n), 0)::bigint AS known,
            coalesce(sum(n) FILTER (WHERE state IN ('SUCCESS', 'FAILED', 'CANCELLED', 'EXPIRED')), 0)::bigint AS done,
            coalesce(sum(n) FILTER (WHERE state = 'PENDING'), 0)::bigint AS pending,
            coalesce(sum(n) FILTER (WHERE state = 'ASSIGNED'), 0)::bigint AS assigned,
            coalesce(sum(n) FILTER (WHERE state = 'RUNNING'), 0)::bigint AS running,
            coalesce(sum(n) FILTER (WHERE state = 'SUCCESS'), 0)::bigint AS succeeded,
            coalesce(sum(n) FILTER (WHERE state = 'FAILED'), 0)::bigint AS failed,
            coalesce(sum(n) FILTER (WHERE state = 'CANCELLED'), 0)::bigint AS cancelled,
            coalesce(sum(n) FILTER (WHERE state = 'EXPIRED'), 0)::bigint AS expired,
            coalesce(sum(recent), 0)::float8 AS recent, max(last) AS last_finished_at,
            coalesce(sum(input_tokens), 0)::bigint AS input_tokens, coalesce(sum(output_tokens), 0)::bigint AS output_tokens,
            (SELECT json_agg(json_build_object('class', class, 'tasks', n, 'sample', sample) ORDER BY n DESC, class)
                FROM (SELECT class, sum(n)::bigint AS n, min(sample) AS sample FROM counted
                    WHERE state IN ('FAILED', 'CANCELLED', 'EXPIRED') GROUP BY class) e) AS errors,
            (SELECT json_object_agg(device, n ORDER BY device)
                FROM (SELECT device, sum(n)::bigint AS n FROM counted
                    WHERE state IN ('SUCCESS', 'FAILED', 'CANCELLED', 'EXPIRED') AND device <> '' GROUP BY device) d) AS devices
        FROM counted) live
    WHERE j.finished_at IS NULL) p;
COMMENT ON VIEW job_progress IS 'How far each job is. Counting a job that has not finished takes about a second per million tasks, so name the job, or choose recent ones.';
COMMENT ON COLUMN job_progress.tenant IS 'Tenant that the job belongs to.';
COMMENT ON COLUMN job_progress.job_id IS 'Id of the job, unique within the tenant.';
COMMENT ON COLUMN job_progress.state IS 'RUNNING, FINISHED (every task has finished), or CANCELLED (a user cancelled it, and every task has finished).';
COMMENT ON COLUMN job_progress.tasks IS 'Number of tasks: those of the file, or those known, if there are more.';
COMMENT ON COLUMN job_progress.known IS 'Number of tasks that are recorded. While a file is being submitted, there are fewer than in the file.';
COMMENT ON COLUMN job_progress.done IS 'Number of tasks that have finished.';
COMMENT ON COLUMN job_progress.percent IS 'Share of the tasks that have finished.';
COMMENT ON COLUMN job_progress.pending IS 'Number of tasks in PENDING.';
COMMENT ON COLUMN job_progress.assigned IS 'Number of tasks in ASSIGNED.';
COMMENT ON COLUMN job_progress.running IS 'Number of tasks in RUNNING.';
COMMENT ON COLUMN job_progress.succeeded IS 'Number of tasks that ended in SUCCESS.';
COMMENT ON COLUMN job_progress.failed IS 'Number of tasks that ended in FAILED.';
COMMENT ON COLUMN job_progress.cancelled IS 'Number of tasks that ended in CANCELLED.';
COMMENT ON COLUMN job_progress.expired IS 'Number of tasks that ended in EXPIRED.';
COMMENT ON COLUMN job_progress.tasks_per_second IS 'Tasks that finished in the last minute, per second; for a finished job, over its whole duration. Empty if there were none.';
COMMENT ON COLUMN job_progress.remaining IS 'How long the job will still take at that rate.';
COMMENT ON COLUMN job_progress.input_tokens IS 'Number of input tokens of the results.';
COMMENT ON COLUMN job_progress.output_tokens IS 'Number of output tokens of the results.';
COMMENT ON COLUMN job_progress.errors IS 'The tasks without success by class of the error: how many, and the message of one of them.';
COMMENT ON COLUMN job_progress.devices IS 'Number of finished tasks by device.';
COMMENT ON COLUMN job_progress.submitted_at IS 'When the job was announced, or the first of its tasks was accepted.';
COMMENT ON COLUMN job_progress.submitted_by IS 'Name of the user who announced it.';
COMMENT ON COLUMN job_progress.cancel_requested_at IS 'When a user asked to cancel the job.';
COMMENT ON COLUMN job_progress.last_finished_at IS 'When the last of the finished tasks finished.';
COMMENT ON COLUMN job_progress.sha256 IS 'SHA-256 over what the lines of the file ask for; empty if the job was not announced.';
COMMENT ON COLUMN job_progress.file IS 'Name of the file as the submitter wrote it.';
COMMENT ON COLUMN job_progress.format IS 'Format of the lines: openai, batchyard or mixed.';
COMMENT ON COLUMN job_progress.lines IS 'Number of lines in the file, blank ones included.';
COMMENT ON COLUMN job_progress.bad_lines IS 'Number of lines that were not submitted, because they were bad.';
COMMENT ON COLUMN job_progress.bytes IS 'Size of the file in bytes.';
COMMENT ON COLUMN job_progress.labels IS 'The submitter''s own labels of the job.';
COMMENT ON COLUMN job_progress.rounds IS 'How often the job has finished: more than once if tasks were retried.';

CREATE VIEW callback_failures AS
SELECT tenant, task_id, job_id, callback_id, host, state, attempts, last_status, last_error, next_at, created_at
FROM callbacks WHERE state = 'DUE' AND attempts > 0
UNION ALL
SELECT tenant, task_id, job_id, callback_id, host, state, attempts, last_status, last_error, NULL, created_at
FROM callbacks WHERE state = 'GIVEN_UP';
COMMENT ON VIEW callback_failures IS 'Callbacks whose delivery failed and will be retried (DUE, at next_at) or was given up (GIVEN_UP). A first delivery that is in progress is listed as DUE without an error. Only the host of the URL is shown, because the rest may hold secrets.';
COMMENT ON COLUMN callback_failures.tenant IS 'Tenant that the task or job belongs to.';
COMMENT ON COLUMN callback_failures.task_id IS 'Id of the task whose result is posted; empty for a job.';
COMMENT ON COLUMN callback_failures.job_id IS 'Id of the job whose summary is posted; empty for a task.';
COMMENT ON COLUMN callback_failures.callback_id IS 'Value of the webhook-id header.';
COMMENT ON COLUMN callback_failures.host IS 'Host and port of the URL. The number of concurrent deliveries is bounded per host.';
COMMENT ON COLUMN callback_failures.state IS 'DUE, DELIVERED (the endpoint answered 2xx) or GIVEN_UP.';
COMMENT ON COLUMN callback_failures.attempts IS 'Number of deliveries that were tried.';
COMMENT ON COLUMN callback_failures.last_status IS 'HTTP status of the last delivery; empty if there was no response.';
COMMENT ON COLUMN callback_failures.last_error IS 'Why the last delivery failed.';
COMMENT ON COLUMN callback_failures.next_at IS 'When the next delivery is due; empty if it was given up.';
COMMENT ON COLUMN callback_failures.created_at IS 'When the result was stored, or the job finished.';

CREATE VIEW batch_sizes AS
SELECT day, model, reason, size, round(sum(tasks) / nullif(size, 0))::bigint AS batches, sum(tasks)::bigint AS tasks,
    round(sum(bytes) / nullif(sum(tasks), 0))::bigint AS bytes_per_batch
FROM rollup_batches WHERE hour = -1 OR shard >= 0 GROUP BY day, model, reason, size;
COMMENT ON VIEW batch_sizes IS 'Sizes of batches and why they closed: count, bytes or wait (a threshold was reached), idle (the device had nothing else to do), drain (the batcher was stopping).';
COMMENT ON COLUMN batch_sizes.day IS 'UTC day on which the batches closed.';
COMMENT ON COLUMN batch_sizes.model IS 'Model that the requests name.';
COMMENT ON COLUMN batch_sizes.reason IS 'Why the batches closed: count, bytes, wait, idle or drain.';
COMMENT ON COLUMN batch_sizes.size IS 'Number of tasks in each batch.';
COMMENT ON COLUMN batch_sizes.batches IS 'Number of batches of that size.';
COMMENT ON COLUMN batch_sizes.tasks IS 'Number of tasks in them.';
COMMENT ON COLUMN batch_sizes.bytes_per_batch IS 'Average size of the inputs of a batch in bytes.';

CREATE VIEW user_actions AS
SELECT time, tenant, actor_id, source_addr, user_agent, action, outcome, error_class, resource_type, resource_id, task_id, job_id, device_id, trace_id, detail
FROM audit_log WHERE actor_type = 'user' AND action <> 'task.accepted';
COMMENT ON VIEW user_actions IS 'Who did what from where: every action of a user except submitting tasks, which is in the view submissions.';
COMMENT ON COLUMN user_actions."time" IS 'When it happened, by the clock of the process that recorded it.';
COMMENT ON COLUMN user_actions.tenant IS 'Tenant that the task, job or callback belongs to; empty for events that belong to no tenant, such as those of a device.';
COMMENT ON COLUMN user_actions.actor_id IS 'Name of the user, the device, or the stage instance (stage@host-pid).';
COMMENT ON COLUMN user_actions.source_addr IS 'Where the request came from: an address with its port, or kafka:topic/partition@offset.';
COMMENT ON COLUMN user_actions.user_agent IS 'User agent of the client.';
COMMENT ON COLUMN user_actions.action IS 'What was done, such as task.accepted. docs/actions.md lists all actions.';
COMMENT ON COLUMN user_actions.outcome IS 'ok, failed or refused.';
COMMENT ON COLUMN user_actions.error_class IS 'Class of the error: invalid, device, connect, timeout, throttled …';
COMMENT ON COLUMN user_actions.resource_type IS 'Kind of thing it was done to: task, batch, device, callback, job, record …';
COMMENT ON COLUMN user_actions.resource_id IS 'Id of the thing it was done to.';
COMMENT ON COLUMN user_actions.task_id IS 'Id of the task, unique within the tenant.';
COMMENT ON COLUMN user_actions.job_id IS 'Id of the job that the task belongs to.';
COMMENT ON COLUMN user_actions.device_id IS 'Id of the device that was chosen, was sent a request, joined …';
COMMENT ON COLUMN user_actions.trace_id IS 'W3C trace id of the task.';
COMMENT ON COLUMN user_actions.detail IS 'Further facts as a small JSON object, stored byte for byte as it was written.';

CREATE VIEW submissions AS
SELECT day, tenant, actor_id, source, user_agent, sum(tasks)::bigint AS tasks, sum(input_bytes)::bigint AS input_bytes,
    min(first_at) AS first_at, max(last_at) AS last_at
FROM rollup_submissions GROUP BY day, tenant, actor_id, source, user_agent;
COMMENT ON VIEW submissions IS 'Who submitted how many tasks from where, by UTC day. The source is the address without its port, or kafka:topic.';
COMMENT ON COLUMN submissions.day IS 'UTC day.';
COMMENT ON COLUMN submissions.tenant IS 'Tenant of the tasks.';
COMMENT ON COLUMN submissions.actor_id IS 'Name of the user.';
COMMENT ON COLUMN submissions.source IS 'Address without its port, or kafka:topic.';
COMMENT ON COLUMN submissions.user_agent IS 'User agent of the client.';
COMMENT ON COLUMN submissions.tasks IS 'Number of tasks.';
COMMENT ON COLUMN submissions.input_bytes IS 'Total size of the inputs in bytes.';
COMMENT ON COLUMN submissions.first_at IS 'When the first of the tasks was accepted.';
COMMENT ON COLUMN submissions.last_at IS 'When the last of the tasks was accepted.';

CREATE VIEW refusals AS
SELECT time, tenant, action, error_class, actor_type, actor_id, source_addr, batchyard_source(source_addr) AS source, user_agent,
    resource_type, resource_id, task_id, detail->>'status' AS status, coalesce(detail->>'errors', detail->>'error', detail->>'reason', detail->>'state') AS reason, detail
FROM audit_log WHERE outcome = 'refused';
COMMENT ON VIEW refusals IS 'Everything that was refused: submits, duplicate tasks, second results, records that cannot be decoded.';
COMMENT ON COLUMN refusals."time" IS 'When it happened, by the clock of the process that recorded it.';
COMMENT ON COLUMN refusals.tenant IS 'Tenant that the task, job or callback belongs to; empty for events that belong to no tenant, such as those of a device.';
COMMENT ON COLUMN refusals.action IS 'What was done, such as task.accepted. docs/actions.md lists all actions.';
COMMENT ON COLUMN refusals.error_class IS 'Class of the error: invalid, device, connect, timeout, throttled …';
COMMENT ON COLUMN refusals.actor_type IS 'Who acted: user, stage or device.';
COMMENT ON COLUMN refusals.actor_id IS 'Name of the user, the device, or the stage instance (stage@host-pid).';
COMMENT ON COLUMN refusals.source_addr IS 'Where the request came from: an address with its port, or kafka:topic/partition@offset.';
COMMENT ON COLUMN refusals.source IS 'The same without what differs for every request: the port, or the partition and offset.';
COMMENT ON COLUMN refusals.user_agent IS 'User agent of the client.';
COMMENT ON COLUMN refusals.resource_type IS 'Kind of thing it was done to: task, batch, device, callback, job, record …';
COMMENT ON COLUMN refusals.resource_id IS 'Id of the thing it was done to.';
COMMENT ON COLUMN refusals.task_id IS 'Id of the task, unique within the tenant.';
COMMENT ON COLUMN refusals.status IS 'HTTP status of the response.';
COMMENT ON COLUMN refusals.reason IS 'Why it was refused, or which fields were invalid.';
COMMENT ON COLUMN refusals.detail IS 'Further facts as a small JSON object, stored byte for byte as it was written.';

-- These queries take milliseconds, but Postgres may spend seconds compiling a plan that it expects to be expensive. Only the
-- owner of the database can turn that off for everyone.
-- +goose StatementBegin
DO $$
BEGIN
    EXECUTE format('ALTER DATABASE %I SET jit = off', current_database());
EXCEPTION WHEN insufficient_privilege THEN
    RAISE WARNING '% does not own the database %: jit stays on, and some views will take seconds', current_user, current_database()
        USING HINT = format('Have its owner run: ALTER DATABASE %I SET jit = off', current_database());
END
$$;
-- +goose StatementEnd

-- +goose Down
-- +goose StatementBegin
DO $$
BEGIN
    EXECUTE format('ALTER DATABASE %I RESET jit', current_database());
EXCEPTION WHEN insufficient_privilege THEN
    NULL;
END
$$;
-- +goose StatementEnd
DROP VIEW job_progress, refusals, submissions, user_actions, batch_sizes, callback_failures, stage_latency_by_hour, stage_latency, usage_by_day,
    device_availability, device_history, retries, task_ages, stuck_tasks, task_timeline;

package tables

// endsOf lists the events that say how a task ended, without those of results that came second, and the
// results, each with the event that is about it.
const endsOf = `said AS MATERIALIZED (
	SELECT tenant, task_id, time, ingested_at, attempt, device_id, model, input_tokens, output_tokens, error_class, job_id, actor_id, trace_id,
		CASE action WHEN 'task.succeeded' THEN 'SUCCESS' WHEN 'task.failed' THEN 'FAILED' WHEN 'task.cancelled' THEN 'CANCELLED' ELSE 'EXPIRED' END AS state
	FROM @audit_log WHERE action IN ('task.succeeded', 'task.failed', 'task.cancelled', 'task.expired') AND task_id IS NOT NULL),
second AS MATERIALIZED (
	SELECT tenant, task_id, detail->>'state' AS state, detail->>'finished_at' AS finished FROM @audit_log WHERE action = 'result.duplicate'),
winners AS MATERIALIZED (
	SELECT * FROM said s WHERE NOT EXISTS (SELECT FROM second d WHERE d.tenant = s.tenant AND d.task_id = s.task_id AND d.state = s.state
		AND rtrim(rtrim(to_char(s.time, 'YYYY-MM-DD"T"HH24:MI:SS.US'), '0'), '.') || 'Z' = d.finished))`

// matches is the condition under which an event w says what a result r says.
const matches = `w.tenant = r.tenant AND w.task_id = r.task_id AND w.state = r.state AND (w.state = 'CANCELLED' OR w.time = r.finished_at)
	AND (w.state <> 'SUCCESS' AND (w.state <> 'FAILED' OR w.device_id IS NULL) OR coalesce(w.attempt, 0) = r.attempt) AND w.job_id IS NOT DISTINCT FROM r.job_id
	AND (w.state = 'SUCCESS' AND w.device_id IS NOT DISTINCT FROM r.device_id OR w.state = 'FAILED' AND (w.device_id IS NULL OR w.device_id = r.device_id) OR w.state IN ('CANCELLED', 'EXPIRED'))
	AND (w.state = 'CANCELLED' OR w.model IS NOT DISTINCT FROM r.model) AND w.trace_id IS NOT DISTINCT FROM r.trace_id
	AND (w.state <> 'SUCCESS' OR coalesce(w.input_tokens, 0) = r.input_tokens AND coalesce(w.output_tokens, 0) = r.output_tokens)
	AND (w.state <> 'SUCCESS' AND r.input_tokens = 0 AND r.output_tokens = 0 OR w.state = 'SUCCESS')
	AND (w.state <> 'FAILED' OR w.error_class IS NOT DISTINCT FROM r.error_class)
	AND (w.state <> 'SUCCESS' OR r.error_class IS NULL AND r.error_message IS NULL)`

// answers adds the digests of what devices answered. A result has that of the attempt with which it ended,
// by the same worker. stray is the events of ends that no result is about. Such a task ran on (ran_on) if it runs
// again now, or has a result of its own for every time that a user wanted it to run, each with its event: then
// the process that wrote the event died before it had written the result.
const answers = `,
digests AS MATERIALIZED (
	SELECT tenant, task_id, coalesce(attempt, 0) AS attempt, actor_id, array_agg(DISTINCT output_sha256) AS all_of
	FROM @audit_log WHERE action = 'attempt.succeeded' AND output_sha256 IS NOT NULL AND task_id IS NOT NULL GROUP BY 1, 2, 3, 4),
pairs AS MATERIALIZED (
	SELECT r.tenant, r.task_id, r.generation, w.actor_id, w.attempt, w.time FROM @results r JOIN winners w ON ` + matches + `),
answered AS MATERIALIZED (
	SELECT r.tenant, r.task_id, r.generation, d.all_of, r.output IS NOT NULL AND sha256(convert_to(r.output::text, 'UTF8')) = ANY (d.all_of) AS same
	FROM @results r JOIN pairs p ON p.tenant = r.tenant AND p.task_id = r.task_id AND p.generation = r.generation
	LEFT JOIN digests d ON d.tenant = r.tenant AND d.task_id = r.task_id AND d.attempt = r.attempt AND d.actor_id = p.actor_id
	WHERE r.state = 'SUCCESS'),
alone AS MATERIALIZED (
	SELECT w.* FROM winners w WHERE NOT EXISTS (SELECT FROM pairs p WHERE p.tenant = w.tenant AND p.task_id = w.task_id AND p.time = w.time AND p.actor_id = w.actor_id)),
stray AS MATERIALIZED (
	SELECT a.*, r.results > 0 AS has_result, r.results = p.paired AND (r.results > l.retried OR r.results = l.retried AND l.started > l.ended) AS ran_on
	FROM alone a,
	LATERAL (SELECT count(*) AS results FROM @results r WHERE r.tenant = a.tenant AND r.task_id = a.task_id) r,
	LATERAL (SELECT count(DISTINCT p.generation) AS paired FROM pairs p WHERE p.tenant = a.tenant AND p.task_id = a.task_id) p,
	LATERAL (SELECT count(*) FILTER (WHERE l.action = 'task.retried') AS retried, max(l.time) FILTER (WHERE l.action = 'attempt.started') AS started,
			max(l.time) FILTER (WHERE l.action IN ('task.succeeded', 'task.failed', 'task.cancelled', 'task.expired')) AS ended
		FROM @audit_log l WHERE l.tenant = a.tenant AND l.task_id = a.task_id) l)`

// ends compares results with the events of how tasks ended, and outputs with their digests.
var ends = Check{
	name: "results", with: endsOf + answers,
	found: `SELECT format('the table results has another result of task %s/%s than the log: that one ended as %s at %s on %s, with %s and %s tokens', tenant, task_id, state, time, coalesce(device_id, 'no device'),
	coalesce(input_tokens, 0), coalesce(output_tokens, 0))
FROM stray, given WHERE ingested_at < given.before AND NOT given.hole AND NOT coalesce(ran_on, false) AND state <> 'CANCELLED' AND has_result
UNION ALL
SELECT format('the output of task %s/%s (generation %s) is not what the device answered: its SHA-256 is not that in the log', tenant, task_id, generation)
FROM answered GROUP BY tenant, task_id, generation HAVING bool_or(all_of IS NOT NULL) AND NOT coalesce(bool_or(same), false)`,
	gone: `SELECT format('the table results has no result of task %s/%s, which ended as %s at %s', tenant, task_id, state, time) FROM stray, given WHERE ingested_at < given.before AND NOT given.hole AND NOT coalesce(ran_on, false) AND NOT has_result`,
	unproven: `SELECT format('%s tasks have ended so recently that their results may not be recorded yet', count(*)) FROM stray, given WHERE ingested_at >= given.before HAVING count(*) > 0
UNION ALL SELECT format('%s times, a task ended and ran again, because a process died before it had written the result; that of task %s/%s cannot be compared with anything', count(*), min(tenant), min(task_id)) FROM stray, given WHERE ingested_at < given.before AND NOT given.hole AND ran_on HAVING count(*) > 0
UNION ALL SELECT format('%s tasks have ended otherwise than their results say, or have none, which may be in a hole of the log, such as %s/%s', count(*), min(tenant), min(task_id)) FROM stray, given WHERE ingested_at < given.before AND given.hole AND (state <> 'CANCELLED' OR NOT has_result) HAVING count(*) > 0`,
}

// latest computes the state of tasks without a result, as the recorder does, for first generations: the
// log does not say which generation an event is about, but a retry has an event of its own.
const latest = `moves AS MATERIALIZED (
	SELECT tenant, task_id, time, ingested_at, device_id, action, coalesce(attempt, 0)::bigint AS attempt,
		CASE WHEN action = 'task.assigned' THEN 'ASSIGNED' WHEN action = 'attempt.started' THEN 'RUNNING' ELSE 'PENDING' END AS state
	FROM @audit_log WHERE action IN ('task.accepted', 'task.queued', 'task.parked', 'task.assigned', 'attempt.started', 'task.requeued', 'task.retried') AND task_id IS NOT NULL),
open_tasks AS MATERIALIZED (
	SELECT t.tenant, t.task_id, t.state, t.device_id, t.attempt, t.generation, t.submitted_at FROM @tasks t
	WHERE NOT EXISTS (SELECT FROM @results r WHERE r.tenant = t.tenant AND r.task_id = t.task_id AND r.generation = t.generation)),
ranked AS MATERIALIZED (
	SELECT m.*, row_number() OVER (PARTITION BY m.tenant, m.task_id ORDER BY
		CASE m.state WHEN 'ASSIGNED' THEN 10 * m.attempt + 1 WHEN 'RUNNING' THEN 10 * m.attempt + 2 ELSE CASE WHEN m.attempt = 0 THEN 0 ELSE 10 * m.attempt + 3 END END DESC, m.time DESC) AS place
	FROM moves m JOIN open_tasks t ON t.tenant = m.tenant AND t.task_id = m.task_id AND t.generation = 0)`

// states compares tasks with their results, and those without one with their events.
var states = Check{
	name: "tasks", with: latest + `,
accepted AS MATERIALIZED (SELECT DISTINCT tenant, task_id FROM moves WHERE action = 'task.accepted')`,
	found: `SELECT format('the table tasks says that task %s/%s is %s (%s, attempt %s, %s and %s tokens), but its result says %s (%s, attempt %s, %s and %s tokens)', t.tenant, t.task_id, t.state, coalesce(t.device_id, 'no device'), t.attempt, t.input_tokens, t.output_tokens,
	r.state, coalesce(r.device_id, 'no device'), r.attempt, r.input_tokens, r.output_tokens)
FROM @tasks t JOIN @results r ON r.tenant = t.tenant AND r.task_id = t.task_id AND r.generation = t.generation
WHERE (t.state, t.device_id, t.attempt, t.input_tokens, t.output_tokens, t.error_class, t.error_message, t.finished_at, t.model) IS DISTINCT FROM
	(r.state, r.device_id, r.attempt, r.input_tokens, r.output_tokens, r.error_class, r.error_message, r.finished_at, r.model)
UNION ALL
SELECT format('the table tasks says that task %s/%s is %s (%s), but the log says that it is %s (%s)', t.tenant, t.task_id, t.state, coalesce(t.device_id, 'no device'), m.state, coalesce(m.device_id, 'no device'))
FROM open_tasks t JOIN ranked m ON m.tenant = t.tenant AND m.task_id = t.task_id AND m.place = 1
WHERE t.generation = 0 AND (t.state, t.attempt) IS DISTINCT FROM (m.state, m.attempt::int) OR t.generation = 0 AND m.state <> 'PENDING' AND t.device_id IS DISTINCT FROM m.device_id
UNION ALL
SELECT format('the table tasks says that task %s/%s runs for the %sth time, but the log has no such retry', t.tenant, t.task_id, t.generation)
FROM @tasks t, given WHERE t.generation > 0 AND t.submitted_at >= given.complete AND NOT given.hole AND NOT EXISTS (SELECT FROM moves a WHERE a.action = 'task.retried' AND a.tenant = t.tenant AND a.task_id = t.task_id)
	AND EXISTS (SELECT FROM accepted a WHERE a.tenant = t.tenant AND a.task_id = t.task_id)`,
	gone: `SELECT format('the table results has no result of task %s/%s, which has ended according to the table tasks: %s', tenant, task_id, state) FROM open_tasks WHERE state IN ('SUCCESS', 'FAILED', 'CANCELLED', 'EXPIRED')
UNION ALL
SELECT format('the table tasks has no task %s/%s, which the log says was accepted', a.tenant, a.task_id) FROM accepted a WHERE NOT EXISTS (SELECT FROM @tasks t WHERE t.tenant = a.tenant AND t.task_id = a.task_id)
UNION ALL
SELECT format('the table tasks has no task %s/%s, which has a result', r.tenant, r.task_id) FROM @results r WHERE NOT EXISTS (SELECT FROM @tasks t WHERE t.tenant = r.tenant AND t.task_id = r.task_id)`,
}

package test

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/batchyard/batchyard/device"
	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/test/harness"
)

// canary is a secret that must not leak. It doesn't look like a field name, which
// errors may repeat.
const canary = "c4nary-Tr1ll-93b1"

// leaky is a device that repeats its input and the canary: in answers, errors,
// headers, and bodies that are not JSON.
func leaky(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(io.LimitReader(r.Body, 1<<20)) // best effort
	w.Header().Set("X-Secret", canary)
	w.Header().Set("Content-Type", "application/json")
	quoted := string(must(json.Marshal("you said: " + string(body) + canary)))
	say := func(status int, text string) {
		w.WriteHeader(status)
		_, _ = io.WriteString(w, text)
	}
	switch {
	case strings.Contains(string(body), "do refuse"):
		say(http.StatusBadRequest, `{"error":{"message":`+quoted+`,"type":"invalid_request_error","param":"messages","code":"bad"}}`)
	case strings.Contains(string(body), "do fail"):
		say(http.StatusInternalServerError, `{"error":{"message":`+quoted+`}}`)
	case strings.Contains(string(body), "do babble"):
		say(http.StatusOK, "not JSON: "+canary)
	case strings.Contains(string(body), "do break"):
		w.Header().Set("Content-Length", "100000")
		say(http.StatusOK, `{"choices":"`+canary)
	case strings.Contains(string(body), "do forbid"):
		say(http.StatusUnauthorized, `{"error":{"message":`+quoted+`}}`)
	case strings.Contains(string(body), "do throttle") && r.Header.Get("X-Request-Id") != "":
		w.Header().Set("Retry-After", "0.05")
		say(http.StatusTooManyRequests, `{"error":{"message":`+quoted+`}}`)
	default:
		say(http.StatusOK, `{"choices":[{"index":0,"message":{"role":"assistant","content":`+quoted+`}}],"usage":{"prompt_tokens":3,"completion_tokens":4}}`)
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func ask(id, what string) *task.Task {
	t := harness.Chat(id)
	t.Input = task.Input(fmt.Sprintf(`{"messages":[{"role":"user","content":%q}]}`, canary+" do "+what))
	return t
}

// TestCanary puts the canary into everything that users may want to keep secret, lets
// everything that can happen to a task happen, and searches for the canary wherever it
// must not be.
func TestCanary(t *testing.T) {
	t.Parallel()
	dev := httptest.NewServer(http.HandlerFunc(leaky))
	t.Cleanup(dev.Close)
	hooks := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Location", "http://"+canary)
		w.WriteHeader(http.StatusBadGateway)
		_, _ = io.WriteString(w, canary)
	}))
	t.Cleanup(hooks.Close)
	hook := hooks.URL + "/" + canary + "?key=" + canary

	secret := "whsec_" + base64.StdEncoding.EncodeToString([]byte(canary+canary+canary))
	env := []string{"CANARY_KEY=" + canary, "CANARY_HOOK=" + secret, "CANARY_PASSWORD=" + canary}
	in := harness.Install(t, harness.Get(t, harness.Shared), map[string]any{
		"log.level": "debug", "devices.list": []map[string]string{{"name": "*", "key_env": "CANARY_KEY"}}, "callbacks.secret_env": "CANARY_HOOK", "callbacks.unsigned": false,
		"callbacks.retries": []string{"50ms"}, "kafka.partitions": 2,
	})
	in.Device(t, device.Device{ID: "leaky", URL: dev.URL, Models: []string{"m"}, Slots: 4})
	one := in.ProcessEnv(t, env, "serve", "api", "router", "batcher")
	two := in.ProcessEnv(t, env, "serve", "workers", "audit", "callbacks")
	api := one.API()

	var all []*task.Task
	var ids []string
	for _, what := range []string{"answer", "refuse", "fail", "babble", "break", "forbid", "throttle"} {
		a := ask("t-"+what, what)
		a.MaxAttempts, a.Callback = 2, &task.Callback{URL: hook}
		if what == "throttle" { // a pause that a device asks for uses up no attempt
			a.Deadline = time.Now().Add(5 * time.Second)
		}
		all, ids = append(all, a), append(ids, a.ID)
	}
	require.Equal(t, ids, api.Submit(t, all...))
	api.Submit(t, all[0])
	reused := api.Do(t, http.MethodPost, "/v1/tasks", ask("t-answer", "answer once more"))
	require.Equalf(t, http.StatusConflict, reused.Status, "%s", reused.Body)
	late := ask("t-late", "be late")
	late.Model, late.Deadline = "unserved-model", time.Now().Add(time.Second)
	gone := ask("t-gone", "be cancelled")
	gone.Model = "unserved-model"
	ids = append(ids, api.Submit(t, late, gone)...)
	require.Equal(t, http.StatusAccepted, api.Do(t, http.MethodPost, "/v1/tasks/t-gone/cancel", nil).Status)
	answers := []string{string(reused.Body)} // of the API, to invalid requests
	for _, body := range []string{
		`{"model":"m","input":"` + canary + `"}`, `{"model":"m","` + canary + `":1,"input":{}}`, `{"model":"m","priority":"` + canary + `","input":{}}`,
		`{"model":"m","endpoint":"` + canary + `","input":{}}`, `{"model":"m","deadline":"` + canary + `","input":{}}`, `{"model":{"a":"` + canary + `"}}`,
		`{"model":"m","trace_id":"` + canary + `","input":{}}`, `[{"model":"m","input":{}},{"` + canary + `":{}}]`, `{"input":"` + canary, canary,
		`{"model":"m","input":{},"callback":{"url":"ftp://` + canary + `"}}`, `{"model":"m","input":{},"callback":{"url":"http://u:` + canary + `@h/"}}`, `{"model":"m","input":{},"labels":{"` + canary + `":5}}`,
	} {
		a := api.Do(t, http.MethodPost, "/v1/tasks", body)
		require.GreaterOrEqual(t, a.Status, 400, body)
		answers = append(answers, string(a.Body))
	}
	in.Produce(t,
		harness.Record(stream.TasksNormal, canary, []byte(`{"model":"m","input":{"`+canary), "content-type", "application/json"),
		harness.Record(stream.TasksNormal, "", []byte(`{"model":"m","`+canary+`":1}`)),
		harness.Record(stream.TasksLow, "", []byte(`{"model":"m","priority":"`+canary+`","input":{},"endpoint":"`+canary+`"}`)),
		harness.Record(stream.TasksHigh, "", []byte(`{"model":"m","input":{}}`), "content-type", canary),
		harness.Record(stream.Results, "x", []byte(`{"task_id":"`+canary+`","state":"`+canary+`"}`)),
		harness.Record(stream.Events, "x", []byte(canary)),
	)
	in.Await(t, ids, 2*harness.Patience)
	harness.Eventually(t, harness.Patience, "the callbacks are given up", func() bool {
		return harness.SQL[int](t, in, "SELECT count(*) FROM callbacks WHERE state = 'GIVEN_UP'") == 7
	})
	in.Consume(t, stream.DLQ).Until(t, "all invalid records are dead letters", func(all []*kgo.Record) bool { return len(all) >= 6 })
	harness.Eventually(t, harness.Patience, "dead letters and callbacks are recorded", func() bool {
		return harness.SQL[int](t, in, "SELECT count(*) FROM audit_log WHERE action = 'record.dead_lettered'") >= 6 &&
			harness.SQL[int](t, in, "SELECT count(*) FROM audit_log WHERE action = 'callback.given_up'") >= 7
	})
	require.Positive(t, harness.SQL[int](t, in, "SELECT count(*) FROM results WHERE output::text LIKE '%'||$1||'%'", canary), "results contain the canary, so it has gone through the system")

	nowhere := func(what, text string) {
		t.Helper()
		for _, form := range []string{canary, url.QueryEscape(canary), base64.StdEncoding.EncodeToString([]byte(canary + canary + canary)), secret} {
			if at := strings.Index(text, form); at >= 0 {
				t.Errorf("%s contains the canary: …%s…", what, text[max(0, at-300):min(len(text), at+100)])
			}
		}
	}
	for _, table := range []string{"audit_log", "tasks"} {
		column := "t::text"
		if table == "tasks" { // the callback's URL may be stored
			column = "(to_jsonb(t) - 'callback_url')::text"
		}
		for _, row := range harness.Rows[struct{ Row string }](t, in, "SELECT "+column+" AS row FROM "+table+" t") {
			nowhere("a row of "+table, row.Row)
		}
	}
	for _, row := range harness.Rows[struct{ Row string }](t, in, "SELECT concat_ws(' ', task_id, error_class, error_message, attempts) AS row FROM results") {
		nowhere("errors in results", row.Row)
	}
	for _, row := range harness.Rows[struct{ Row string }](t, in, "SELECT concat_ws(' ', host, last_error) AS row FROM callbacks") {
		nowhere("errors of callbacks", row.Row)
	}
	for _, r := range in.All(t, stream.DLQ) {
		for _, h := range r.Headers {
			if strings.HasPrefix(h.Key, "dlq-") {
				nowhere("the header "+h.Key+" of a dead letter", string(h.Value))
			}
		}
	}
	for _, a := range answers {
		nowhere("a problem document", a)
	}
	for _, id := range ids {
		a := api.Do(t, http.MethodGet, "/v1/tasks/"+id+"/events", nil)
		nowhere("the timeline of "+id, string(a.Body))
	}
	for name, p := range map[string]*harness.Process{"api, router, batcher": one, "workers, audit, callbacks": two} {
		nowhere("the metrics of "+name, string(p.API().Do(t, http.MethodGet, "/metrics", nil).Body))
		require.NotEmpty(t, p.Log())
		nowhere("the log of "+name, p.Log()+p.Output())
	}
	checkUnreachableServices(t, in, env, nowhere)
}

// checkUnreachableServices configures services that cannot be reached, with the canary
// in passwords and URLs. The errors must not contain it.
func checkUnreachableServices(t *testing.T, in *harness.Installation, env []string, nowhere func(what, text string)) {
	t.Helper()
	dead := "127.0.0.1:1" // nothing listens there
	for name, with := range map[string]map[string]any{
		"Postgres":              {"postgres.url": "postgres://u:" + canary + "@" + dead + "/db?application_name=" + canary},
		"a broken URL":          {"postgres.url": "postgres://u:" + canary + "@[::1/db"},
		"Redis":                 {"redis.addr": dead, "redis.password_env": "CANARY_PASSWORD"},
		"Kafka":                 {"kafka.brokers": []string{dead}, "kafka.sasl": "plain", "kafka.username": "u", "kafka.password_env": "CANARY_PASSWORD"},
		"a wrong hook secret":   {"callbacks.secret_env": "CANARY_PASSWORD"},
		"an unknown variable":   {canary: 1},
		"a value of wrong type": {"workers.backoff_min": canary},
	} {
		path := in.Dir + "/dead.yaml"
		in.WriteConfig(t, path, with)
		t.Cleanup(func() { _ = os.Remove(path) })
		for _, command := range [][]string{{"config", "print"}, {"serve"}} {
			if command[0] == "serve" && (name == "an unknown variable" || name == "a value of wrong type") {
				continue // errors may quote the file to its author
			}
			if command[0] == "config" && strings.HasPrefix(name, "a ") || name == "an unknown variable" {
				continue
			}
			p := harness.Start(t, in.Dir, env, append(command, "--config", path)...)
			if command[0] == "serve" {
				select {
				case <-p.Done():
				case <-time.After(3 * time.Second): // it keeps trying, but has logged the error by now
					p.Kill(t)
				}
			} else {
				p.Wait(t, harness.Patience)
			}
			nowhere("the output of "+strings.Join(command, " ")+" with "+name, p.Log()+p.Output())
		}
	}
}

package test

import (
	"context"
	"crypto/rand"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/test/harness"
)

// All stages run with a login that owns nothing in the database and only has the roles
// listed in docs/sql.md.
func TestServeRunsWithoutDatabaseOwner(t *testing.T) {
	harness.Parallel(t, harness.Shared)
	in := harness.Install(t, harness.Get(t, harness.Shared), loadSettings(nil))
	login := "login_" + strings.ToLower(rand.Text())
	_, err := in.Pool(t).Exec(t.Context(), fmt.Sprintf("CREATE ROLE %s LOGIN PASSWORD 'secret' IN ROLE batchyard_recorder, batchyard_callbacks, batchyard_api", login))
	require.NoError(t, err)
	t.Cleanup(func() {
		// This fails if the login owns anything in the database, which is dropped later.
		_, err := in.Pool(t).Exec(context.WithoutCancel(t.Context()), "DROP ROLE "+login)
		require.NoError(t, err)
	})
	u, err := url.Parse(in.DatabaseURL)
	require.NoError(t, err)
	u.User = url.UserPassword(login, "secret")
	in.WriteConfig(t, in.ConfigPath, map[string]any{"postgres.url": u.String()})

	in.Fleet(t, unequalFleet()...)
	hooks := harness.Hooks(t, harness.Secret, nil)
	p := in.Process(t, "serve")
	api := p.API()
	ids := submit(t, api, "role", hooks.URL, 100).wait(t)
	in.Await(t, ids, harness.Patience)
	in.CheckPromises(t, ids, hooks)
	for _, path := range []string{"/v1/tasks/" + ids[0], "/v1/tasks/" + ids[0] + "/events", "/v1/tasks/" + ids[0] + "/why", "/v1/tasks?limit=5"} {
		answer, err := api.Try(t.Context(), http.MethodGet, path, nil)
		require.NoError(t, err)
		require.Equal(t, http.StatusOK, answer.Status, "%s: %s", path, answer.Body)
	}
	require.Equal(t, int64(100), harness.SQL[int64](t, in, "SELECT sum(tasks)::bigint FROM usage_by_day"))
	require.Equal(t, int64(100), harness.SQL[int64](t, in, "SELECT sum(tasks)::bigint FROM submissions"))
	harness.Eventually(t, harness.Patience, "partitions were created", func() bool {
		return harness.SQL[int](t, in, "SELECT count(*) FROM pg_inherits WHERE inhparent = 'audit_log'::regclass") >= 4
	})
	require.Zero(t, p.Term(t))
	require.NotContains(t, p.Log(), "permission denied")
}

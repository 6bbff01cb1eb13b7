package fleet

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestLlamaCPP(t *testing.T) {
	t.Parallel()
	f, c := start(t, Spec{ID: "d", Models: []string{"own"}, Engine: LlamaCPP, Context: 64, APIKey: "k"})
	url, key := f.Device("d").URL(), []string{"Authorization", "Bearer k"}
	require.Equal(t, 200, get(c, url+"/health").status)
	for _, path := range []string{"/v1/models", "/metrics", "/props"} {
		require.Equal(t, 401, get(c, url+path).status, path)
	}
	require.Equal(t, 200, post(t.Context(), c, url+"/v1/chat/completions", hello, key...).status, "whatever the model is called")
	require.Equal(t, 401, post(t.Context(), c, url+"/v1/chat/completions", hello).status)

	open, c := start(t, Spec{ID: "d", Models: []string{"own"}, Engine: LlamaCPP, Context: 64})
	require.Contains(t, string(get(c, open.Device("d").URL()+"/v1/models").body), `"id":"own","meta":{"n_ctx":64}}`)
	require.JSONEq(t, `{"default_generation_settings":{"n_ctx":64}}`, string(get(c, open.Device("d").URL()+"/props").body))
}

func TestLiteLLM(t *testing.T) {
	t.Parallel()
	f, c := start(t, Spec{ID: "d", Models: []string{"m", "n"}, Engine: LiteLLM, APIKey: "k", ServiceTime: 50 * time.Millisecond})
	d, key := f.Device("d"), []string{"Authorization", "Bearer k"}
	require.Equal(t, 200, get(c, d.URL()+"/health/liveliness").status)
	r := post(t.Context(), c, d.URL()+"/v1/chat/completions", hello)
	require.Equal(t, 400, r.status)
	require.Contains(t, string(r.body), "no_db_connection")
	ctx, leave := context.WithCancel(t.Context())
	ended := make(chan reply, 1)
	go func() { ended <- post(ctx, c, d.URL()+"/v1/chat/completions", hello, key...) }()
	eventually(t, "it computes", func() bool { return d.Stats().Running == 1 })
	leave()
	require.Error(t, (<-ended).err)
	eventually(t, "it has gone on to the end", func() bool { return d.Stats().Cancelled == 1 })
	require.GreaterOrEqual(t, d.Stats().BusySlotTime, 50*time.Millisecond)

	open, c := start(t, Spec{ID: "d", Models: []string{"m", "n"}, Engine: LiteLLM})
	require.Equal(t, 200, get(c, open.Device("d").URL()+"/health").status)
	require.Equal(t, int64(2), open.Device("d").Stats().Requests, "it asks its models")
	require.Equal(t, 404, get(c, open.Device("d").URL()+"/metrics").status)

	_, err := Start(t.Context(), []Spec{{ID: "d", Engine: "other"}})
	require.ErrorContains(t, err, "unknown engine")
}

package batchyard_test

import (
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"

	"context"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard"
	"github.com/batchyard/batchyard/internal/fuzzing"
	"github.com/batchyard/batchyard/task"
)

// delivery is a webhook of now, signed by the specification's own library.
func delivery(c batchyard.Callback) (http.Header, []byte) {
	body, err := json.Marshal(c)
	if err != nil {
		panic(err)
	}
	return signed(c.ID, time.Now(), body, secret), body
}

func signed(id string, at time.Time, body []byte, secrets ...string) http.Header {
	var all []string
	for _, s := range secrets {
		w, err := standardwebhooks.NewWebhook(s)
		if err != nil {
			panic(err)
		}
		one, err := w.Sign(id, at, body)
		if err != nil {
			panic(err)
		}
		all = append(all, one)
	}
	h := http.Header{}
	h.Set(batchyard.HeaderWebhookID, id)
	h.Set(batchyard.HeaderWebhookTimestamp, strconv.FormatInt(at.Unix(), 10))
	h.Set(batchyard.HeaderWebhookSignature, strings.Join(all, " "))
	return h
}

const otherSecret = "whsec_b3RoZXItb3RoZXItb3RoZXItb3RoZXIt"

var ended = batchyard.Callback{ID: "msg_1", Object: "event", Type: batchyard.CallbackFailed, CreatedAt: 1795000000,
	Data: batchyard.CallbackData{TaskStatus: batchyard.TaskStatus{TaskID: "t", Tenant: "acme", State: task.Failed}}}

func body(t testing.TB) []byte {
	t.Helper()
	b, err := json.Marshal(ended)
	require.NoError(t, err)
	return b
}

func TestVerify(t *testing.T) {
	t.Parallel()
	now := time.Unix(1795000000, 0)
	w, err := batchyard.NewWebhooks(batchyard.WebhookConfig{Secrets: []string{otherSecret, secret}, Now: func() time.Time { return now }})
	require.NoError(t, err)
	with := func(h http.Header, name, value string) http.Header { h.Set(name, value); return h }
	for name, c := range map[string]struct {
		header http.Header
		body   []byte
		want   error
	}{
		"signed":                   {signed("msg_1", now, body(t), secret), body(t), nil},
		"signed with the other":    {signed("msg_1", now, body(t), otherSecret), body(t), nil},
		"while a secret changes":   {signed("msg_1", now, body(t), "whsec_"+strings.Repeat("A", 32), secret), body(t), nil},
		"other versions beside it": {with(signed("msg_1", now, body(t), secret), batchyard.HeaderWebhookSignature, "v1a,AAAA v1,! "+signed("msg_1", now, body(t), secret).Get(batchyard.HeaderWebhookSignature)), body(t), nil},
		"just in time":             {signed("msg_1", now.Add(-5*time.Minute), body(t), secret), body(t), nil},
		"clock ahead":              {signed("msg_1", now.Add(5*time.Minute), body(t), secret), body(t), nil},
		"too old":                  {signed("msg_1", now.Add(-5*time.Minute-time.Second), body(t), secret), body(t), batchyard.ErrWebhookExpired},
		"too new":                  {signed("msg_1", now.Add(5*time.Minute+time.Second), body(t), secret), body(t), batchyard.ErrWebhookExpired},
		"time is part of it":       {with(signed("msg_1", now, body(t), secret), batchyard.HeaderWebhookTimestamp, "1795000001"), body(t), batchyard.ErrWebhookSignature},
		"id is part of it":         {with(signed("msg_1", now, body(t), secret), batchyard.HeaderWebhookID, "msg_2"), body(t), batchyard.ErrWebhookSignature},
		"body is part of it":       {signed("msg_1", now, body(t), secret), append(body(t), '\n'), batchyard.ErrWebhookSignature},
		"someone else's secret":    {signed("msg_1", now, body(t), "whsec_"+strings.Repeat("A", 32)), body(t), batchyard.ErrWebhookSignature},
		"half a signature":         {with(signed("msg_1", now, body(t), secret), batchyard.HeaderWebhookSignature, "v1,"), body(t), batchyard.ErrWebhookSignature},
		"unsigned":                 {signed("msg_1", now, body(t)), body(t), batchyard.ErrWebhookMalformed},
		"no id":                    {with(signed("msg_1", now, body(t), secret), batchyard.HeaderWebhookID, ""), body(t), batchyard.ErrWebhookMalformed},
		"no time":                  {with(signed("msg_1", now, body(t), secret), batchyard.HeaderWebhookTimestamp, "noon"), body(t), batchyard.ErrWebhookMalformed},
		"not JSON":                 {signed("msg_1", now, []byte("hello"), secret), []byte("hello"), batchyard.ErrWebhookMalformed},
		"not a callback":           {signed("msg_1", now, []byte("{}"), secret), []byte("{}"), batchyard.ErrWebhookMalformed},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, err := w.Verify(c.header, c.body)
			if c.want == nil {
				require.NoError(t, err)
				require.Equal(t, &ended, got)
				return
			}
			require.ErrorIs(t, err, c.want)
			var bad *batchyard.WebhookError
			require.ErrorAs(t, err, &bad)
			require.Nil(t, got)
		})
	}
}

func TestWebhookSecrets(t *testing.T) {
	t.Parallel()
	for _, s := range []string{"", "whsec_", "whsec_dG9vIHNob3J0", "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_not base64"} {
		_, err := batchyard.NewWebhooks(batchyard.WebhookConfig{Secrets: []string{secret, s}})
		require.ErrorContains(t, err, "webhook secret 2 is unusable")
		if s != "" && len(s) > len("whsec_") {
			require.NotContains(t, err.Error(), s)
		}
		_, err = batchyard.VerifyWebhook(s, http.Header{}, nil)
		require.Error(t, err)
	}
	_, err := batchyard.NewWebhooks(batchyard.WebhookConfig{})
	require.Error(t, err, "without a secret everything would be right")
}

func TestWebhookHandler(t *testing.T) {
	t.Parallel()
	w, err := batchyard.NewWebhooks(batchyard.WebhookConfig{Secrets: []string{secret}})
	require.NoError(t, err)
	fails := errors.New("the database is away")
	for name, c := range map[string]struct {
		method string
		header http.Header
		body   string
		fn     error
		want   int
	}{
		"accepted":    {http.MethodPost, signed("msg_1", time.Now(), body(t), secret), string(body(t)), nil, http.StatusNoContent},
		"fails":       {http.MethodPost, signed("msg_1", time.Now(), body(t), secret), string(body(t)), fails, http.StatusInternalServerError},
		"wrong":       {http.MethodPost, signed("msg_1", time.Now(), body(t), otherSecret), string(body(t)), nil, http.StatusUnauthorized},
		"replayed":    {http.MethodPost, signed("msg_1", time.Now().Add(-time.Hour), body(t), secret), string(body(t)), nil, http.StatusUnauthorized},
		"no webhook":  {http.MethodPost, http.Header{}, "{}", nil, http.StatusBadRequest},
		"too large":   {http.MethodPost, http.Header{}, strings.Repeat(" ", 8<<20+1), nil, http.StatusRequestEntityTooLarge},
		"not by POST": {http.MethodGet, http.Header{}, "", nil, http.StatusMethodNotAllowed},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			called := false
			h := w.Handler(func(_ context.Context, got *batchyard.Callback) error {
				called = true
				require.Equal(t, &ended, got)
				return c.fn
			})
			req := httptest.NewRequestWithContext(t.Context(), c.method, "/hook", strings.NewReader(c.body))
			req.Header = c.header
			rec := httptest.NewRecorder()
			h.ServeHTTP(rec, req)
			require.Equal(t, c.want, rec.Code, rec.Body)
			require.Equal(t, c.want == http.StatusNoContent || c.fn != nil, called)
			require.NotContains(t, rec.Body.String(), "database", "what went wrong inside is no one else's business")
		})
	}
}

// FuzzWebhook: everything of a webhook may come from anyone.
func FuzzWebhook(f *testing.F) {
	now := time.Unix(1795000000, 0)
	w, err := batchyard.NewWebhooks(batchyard.WebhookConfig{Secrets: []string{secret}, Now: func() time.Time { return now }})
	require.NoError(f, err)
	good := signed("msg_1", now, body(f), secret)
	f.Add("msg_1", "1795000000", good.Get(batchyard.HeaderWebhookSignature), body(f))
	f.Add("msg_1", "-9223372036854775808", "v1, v1,AA==", []byte(`{"id":"x"}`))
	f.Fuzz(func(t *testing.T, id, stamp, signature string, text []byte) {
		h := http.Header{batchyard.HeaderWebhookID: {id}, batchyard.HeaderWebhookTimestamp: {stamp}, batchyard.HeaderWebhookSignature: {signature}}
		var c *batchyard.Callback
		var err error
		fuzzing.Bound(t, len(id)+len(stamp)+len(signature)+len(text), func() { c, err = w.Verify(h, text) })
		require.Equal(t, err == nil, c != nil)
		if err == nil {
			require.Equal(t, string(body(t)), string(text), "only what was signed is accepted")
		}
		fuzzing.Bound(t, 16*len(text), func() { c, err = batchyard.ParseCallback(text) })
		if err != nil {
			require.ErrorIs(t, err, batchyard.ErrWebhookMalformed)
			return
		}
		require.True(t, c.Data.State.Terminal())
	})
}

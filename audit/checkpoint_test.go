package audit

import (
	"crypto/ed25519"
	"encoding/base64"
	"testing"

	"github.com/stretchr/testify/require"
)

func FuzzParseCheckpoint(f *testing.F) {
	_, key, err := ed25519.GenerateKey(nil)
	require.NoError(f, err)
	c := Checkpoint{Version: 1, Number: 3, Signer: "x", Chains: []CheckpointChain{{"events", 0, 7, "00"}}}
	line, err := c.Sign(key)
	require.NoError(f, err)
	f.Add(line)
	f.Add([]byte(`{"version":1,"signature":"` + base64.StdEncoding.EncodeToString([]byte("x")) + `"}`))
	f.Add([]byte(`,"signature":""}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := ParseCheckpoint(b)
		if err == nil {
			_ = s.SignedBy(key.Public().(ed25519.PublicKey))
		}
	})
}

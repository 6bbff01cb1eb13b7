package audit

import (
	"bytes"
	"crypto/ed25519"
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func newKey(t testing.TB) (ed25519.PublicKey, ed25519.PrivateKey) {
	t.Helper()
	public, key, err := ed25519.GenerateKey(nil)
	require.NoError(t, err)
	return public, key
}

// signedLog returns the lines of the first checkpoints of a log.
func signedLog(t testing.TB, key ed25519.PrivateKey, n int) (lines [][]byte) {
	t.Helper()
	public := key.Public().(ed25519.PublicKey)
	var log Edge
	for i := range n {
		c := Checkpoint{Version: CheckpointVersion, Number: int64(i + 1), Time: time.Unix(int64(i), 0).UTC(), Origin: DefaultOrigin(public), Signer: KeyID(public),
			Chains: []CheckpointChain{{"events", 0, int64(i + 1), fmt.Sprintf("%064x", i), fmt.Sprintf("%064x", i)}}}
		line, _, err := c.Sign(key, &log)
		require.NoError(t, err)
		lines = append(lines, line)
	}
	return lines
}

func TestCheckpointsContinueTheirLog(t *testing.T) {
	t.Parallel()
	public, key := newKey(t)
	other, _ := newKey(t)
	var before Hash
	for i, line := range signedLog(t, key, 70) {
		s, err := ParseCheckpoint(append(line, '\n'))
		require.NoError(t, err)
		require.True(t, s.SignedBy(public))
		require.False(t, s.SignedBy(other))
		require.EqualValues(t, i+1, s.Number)
		if i > 0 {
			require.Equal(t, before, s.Before())
		}
		log := s.Log()
		require.Equal(t, s.TreeHead.Root, log.Root())
		require.Equal(t, s.Number, log.Size)
		before = s.TreeHead.Root
		require.True(t, json.Valid(line))
	}
	c := Checkpoint{Version: CheckpointVersion, Number: 3}
	_, _, err := c.Sign(key, &Edge{})
	require.Error(t, err, "a number must not be signed twice")
}

// Whatever bit of a line is changed, it is not a checkpoint any more, or not one that the key signed.
func TestNoBitOfACheckpointCanChange(t *testing.T) {
	t.Parallel()
	public, key := newKey(t)
	line := signedLog(t, key, 3)[2]
	whole, err := ParseCheckpoint(line)
	require.NoError(t, err)
	for i := range line {
		for bit := range 8 {
			forged := bytes.Clone(line)
			forged[i] ^= 1 << bit
			s, err := ParseCheckpoint(forged)
			if err != nil || !s.SignedBy(public) {
				continue
			}
			// Names of members may be of another case, and a note may have other forms of the same text in JSON.
			require.Equal(t, whole.Body, s.Body, "byte %d, bit %d: %q", i, bit, forged)
			require.Equal(t, whole.TreeHead, s.TreeHead, "byte %d, bit %d", i, bit)
			require.Equal(t, whole.Path, s.Path, "byte %d, bit %d", i, bit)
		}
	}
}

func FuzzParseCheckpoint(f *testing.F) {
	public, key := newKey(f)
	for _, line := range signedLog(f, key, 3) {
		f.Add(line)
	}
	f.Add([]byte(`{"version":2,"path":[],"note":""}`))
	f.Add([]byte(`,"path":[`))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := ParseCheckpoint(b)
		if err == nil {
			_ = s.SignedBy(public)
			log := s.Log()
			require.Equal(t, s.TreeHead.Root, log.Root())
		}
	})
}

func FuzzParseCosigned(f *testing.F) {
	_, key := newKey(f)
	s, err := ParseCheckpoint(signedLog(f, key, 1)[0])
	require.NoError(f, err)
	line, err := (&Cosigned{Note: string(s.Note), Number: 1, Signer: s.Signer}).Line()
	require.NoError(f, err)
	require.True(f, IsCosigned(line))
	f.Add(line)
	f.Fuzz(func(t *testing.T, b []byte) {
		if c, head, err := ParseCosigned(b); err == nil {
			require.Equal(t, c.Number, head.Size)
		}
	})
}

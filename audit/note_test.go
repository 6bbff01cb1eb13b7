package audit

import (
	"crypto/ed25519"
	"encoding/base64"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/mod/sumdb/note"
)

// The example of c2sp.org/signed-note.
func TestTheExampleOfTheSpecification(t *testing.T) {
	t.Parallel()
	v, err := note.NewVerifier("example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k")
	require.NoError(t, err)
	const signed = "This is an example message.\n\n— example.com/foo Uw2QOkn8srV1yJGh2VYRlL1Tnagv1YEq6TfXppzi2ONncAlTgK7Ztg1ERYNZXsYjOBH3mFXmRKuwHjG1Yu72IneyaQM=\n"
	_, err = note.Open([]byte(signed), note.VerifierList(v))
	require.NoError(t, err)
	key, err := base64.StdEncoding.DecodeString("AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k")
	require.NoError(t, err)
	text, err := LogKey("example.com/foo", key[1:])
	require.NoError(t, err)
	require.Equal(t, "example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k", text)
}

// The checkpoint in c2sp.org/tlog-checkpoint.
func TestTheCheckpointOfTheSpecification(t *testing.T) {
	t.Parallel()
	const text = "example.com/behind-the-sofa\n20852163\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n"
	h, err := ParseTreeHead(text)
	require.NoError(t, err)
	require.EqualValues(t, 20852163, h.Size)
	require.Equal(t, text, h.Text())
	_, err = ParseTreeHead(text + "an extension\n")
	require.NoError(t, err)
	for _, bad := range []string{
		"", "\n", "x\n", "x\n1\n", strings.TrimSuffix(text, "\n"), strings.Replace(text, "20852163", "020852163", 1), strings.Replace(text, "20852163", "-1", 1),
		strings.Replace(text, "20852163", "+1", 1), strings.Replace(text, "20852163", "9223372036854775807", 1), strings.Replace(text, "=", "", 1),
		strings.Replace(text, "2I=", "2J=", 1), text + "\n", "\n" + text,
	} {
		_, err := ParseTreeHead(bad)
		require.Error(t, err, "%q", bad)
	}
}

func TestCosignaturesSignTheTime(t *testing.T) {
	t.Parallel()
	public, key, err := ed25519.GenerateKey(nil)
	require.NoError(t, err)
	at := time.Unix(1679315147, 0).UTC()
	text, err := WitnessKey("witness.example.com/w1", public)
	require.NoError(t, err)
	v, err := WitnessVerifier(text)
	require.NoError(t, err)
	s := CosignatureSigner("witness.example.com/w1", key, func() time.Time { return at })
	require.Equal(t, v.KeyHash(), s.KeyHash())
	head := TreeHead{Origin: "example.com/log", Size: 7}
	signed, err := note.Sign(&note.Note{Text: head.Text()}, s)
	require.NoError(t, err)
	n, err := note.Open(signed, note.VerifierList(v))
	require.NoError(t, err)
	require.Equal(t, at, CosignedAt(n.Sigs[0]))
	raw, err := base64.StdEncoding.DecodeString(n.Sigs[0].Base64)
	require.NoError(t, err)
	// As the specification writes it out.
	require.True(t, ed25519.Verify(public, []byte("cosignature/v1\ntime 1679315147\n"+head.Text()), raw[12:]))
	raw[11]++ // another time
	require.False(t, v.Verify([]byte(head.Text()), raw[4:]))
	require.False(t, v.Verify([]byte(head.Text()), raw[12:]))
	for _, bad := range []string{"", "a+b+c", strings.Replace(text, "w1", "w2", 1), strings.Replace(text, "w1", "w 1", 1), text[:len(text)-4]} {
		_, err := WitnessVerifier(bad)
		require.Error(t, err, "%q", bad)
	}
	log, err := LogKey("witness.example.com/w1", public)
	require.NoError(t, err)
	_, err = WitnessVerifier(log)
	require.ErrorContains(t, err, "type 1")
	_, err = LogKey("two words", public)
	require.Error(t, err)
}

func FuzzParseNotes(f *testing.F) {
	_, key, err := ed25519.GenerateKey(nil)
	require.NoError(f, err)
	head := TreeHead{Origin: "example.com/log", Size: 3}
	signed, err := head.SignNote(key)
	require.NoError(f, err)
	f.Add(signed)
	f.Add([]byte("\n\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		text, ok := NoteText(b)
		if !ok {
			return
		}
		h, err := ParseTreeHead(text)
		if err != nil {
			return
		}
		require.True(t, strings.HasPrefix(text, h.Text()), "there is one form: %q", text)
	})
}

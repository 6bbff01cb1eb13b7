package audit

import (
	"crypto/sha256"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestDigestsComeBack(t *testing.T) {
	t.Parallel()
	fields := []byte{0, 0, 0, 1, 'a', 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 2, 'b', 'c'}
	d := DigestRow(TaskRows, 1<<32+7, fields)
	require.Equal(t, RowDigest{Table: TaskRows, Key: RowKey(sha256Of(fields[:9])[:16]), Version: 7, Digest: sha256.Sum256(fields)}, d)
	e := DigestRow(ResultRows, 0, fields)
	var got []RowDigest
	require.NoError(t, ReadDigests(e.Append(d.Append(nil)), func(d *RowDigest) { got = append(got, *d) }))
	require.Equal(t, []RowDigest{d, e}, got)

	text, err := DigestsInDetail([]byte(`{"round":1,"digests":"` + TextOfDigests(d.Append(nil)) + `"}`))
	require.NoError(t, err)
	require.Equal(t, d.Append(nil), text)
}

func sha256Of(b []byte) []byte {
	sum := sha256.Sum256(b)
	return sum[:]
}

// What is not digests is refused, and none that precedes it is lost.
func FuzzReadDigests(f *testing.F) {
	d := DigestRow(JobRows, 1, []byte{0, 0, 0, 0})
	f.Add(d.Append(nil))
	f.Add(append(d.Append(nil), 1))
	f.Fuzz(func(t *testing.T, b []byte) {
		n := 0
		err := ReadDigests(b, func(*RowDigest) { n++ })
		require.Equal(t, len(b)/DigestWidth, n)
		require.Equal(t, len(b)%DigestWidth != 0, err != nil)
		KeyOfRow(b)
	})
}

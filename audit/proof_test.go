package audit

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/mod/sumdb/note"
	"pgregory.net/rapid"
)

// grownTo returns a tree of so many leaves; what is below its edge is made up.
func grownTo(size int64) (e Edge) {
	e.Size = size
	for i := size; i > 0; i &= i - 1 {
		e.Hashes = append(e.Hashes, sha256.Sum256(binary.BigEndian.AppendUint64(nil, uint64(i))))
	}
	return e
}

// lastPath returns the path of the leaf that is appended to a tree.
func lastPath(e *Edge) []Hash {
	path := slices.Clone(e.Hashes)
	slices.Reverse(path)
	return path
}

// proofOf makes the proof of one row at the end of large trees, and returns whom to trust for it.
func proofOf(t testing.TB, edit func(*ProofHead, *ProofRow)) ([]byte, Trust) {
	t.Helper()
	public, key := newKey(t)
	witnessPublic, witnessKey := newKey(t)
	chain, log := grownTo(1<<24-1), grownTo(1<<19-1)
	row := ProofRow{Chain: "events/3", Row: chain.Size + 1, Prev: bytes.Repeat([]byte{7}, sha256.Size), Path: EncodePath(lastPath(&chain))}
	values := map[int][]byte{
		ColTenant: []byte("acme"), ColAction: []byte("attempt.succeeded"), ColTask: []byte("t1"), ColTopic: []byte("events"), ColPartition: {0, 0, 0, 3},
		ColSeq: binary.BigEndian.AppendUint64(nil, uint64(row.Row)), ColDetail: []byte(`{"why":"<&>"}`),
	}
	answer := []byte("{ }")
	sum := sha256.Sum256(answer)
	row.Answer, values[ColOutputSHA256] = answer, sum[:]
	for i := range ColPrev {
		if v, ok := values[i]; ok {
			row.Fields = append(binary.BigEndian.AppendUint32(row.Fields, uint32(len(v))), v...)
		} else {
			row.Fields = append(row.Fields, 0xff, 0xff, 0xff, 0xff)
		}
	}
	own, _ := RowHash(Hash(row.Prev), row.Fields, nil)
	chain.Append(RowLeaf(own), nil)
	root := chain.Root()
	c := Checkpoint{Version: CheckpointVersion, Number: log.Size + 1, Time: time.Unix(1, 0).UTC(), Origin: DefaultOrigin(public), Signer: KeyID(public),
		Chains: []CheckpointChain{{"events", 3, chain.Size, hex.EncodeToString(own[:]), hex.EncodeToString(root[:])}}}
	line, _, err := c.Sign(key, &log)
	require.NoError(t, err)
	s, err := ParseCheckpoint(line)
	require.NoError(t, err)
	v, err := LogVerifier(c.Origin, public)
	require.NoError(t, err)
	n, err := note.Open(s.Note, note.VerifierList(v))
	require.NoError(t, err)
	signed, err := note.Sign(n, CosignatureSigner("witness.example.com", witnessKey, time.Now))
	require.NoError(t, err)
	text, err := WitnessKey("witness.example.com", witnessPublic)
	require.NoError(t, err)
	w, err := WitnessVerifier(text)
	require.NoError(t, err)
	head := ProofHead{Proof: ProofVersion, ProofSubject: ProofSubject{Tenant: "acme", Task: "t1"}, Rows: 1, Body: string(s.Body), Index: s.Number - 1, Path: EncodePath(s.Path), Note: string(signed)}
	if edit != nil {
		edit(&head, &row)
	}
	var out bytes.Buffer
	e := json.NewEncoder(&out)
	e.SetEscapeHTML(false)
	require.NoError(t, e.Encode(head))
	require.NoError(t, e.Encode(row))
	return out.Bytes(), Trust{Keys: []ed25519.PublicKey{public}, Witnesses: []note.Verifier{w}, Quorum: 1}
}

func checked(proof []byte, trust Trust) (*Proven, error) {
	return CheckProof(bytes.NewReader(proof), trust, func(*ProvenColumns) error { return nil })
}

func TestAProofShowsARow(t *testing.T) {
	t.Parallel()
	proof, trust := proofOf(t, nil)
	p, err := CheckProof(bytes.NewReader(proof), trust, func(r *ProvenColumns) error {
		require.Equal(t, []string{"acme", "t1", "events/3"}, []string{r.Text(ColTenant), r.Text(ColTask), r.Chain.String()})
		return nil
	})
	require.NoError(t, err)
	require.Equal(t, []string{"witness.example.com"}, p.Witnesses)
	require.WithinDuration(t, time.Now(), p.Cosigned[0], time.Minute)
	require.Equal(t, KeyID(trust.Keys[0]), p.Signer)

	other, _ := newKey(t)
	_, err = checked(proof, Trust{Keys: []ed25519.PublicKey{other}, Witnesses: trust.Witnesses})
	require.ErrorContains(t, err, "not signed by a trusted key of a recorder")
	_, err = checked(proof, Trust{Keys: trust.Keys, Quorum: 1})
	require.ErrorContains(t, err, "0 trusted witnesses")
	_, err = checked(proof, Trust{Keys: trust.Keys})
	require.NoError(t, err, "who does not know the witness can still check the recorder's signature")
}

func TestWhatAProofDoesNotShow(t *testing.T) {
	t.Parallel()
	for says, edit := range map[string]func(*ProofHead, *ProofRow){
		"not about what the proof says": func(h *ProofHead, _ *ProofRow) { h.Task = "t2" },
		`of tenant "acme"`:              func(h *ProofHead, _ *ProofRow) { h.Tenant = "other" },
		"1 of the 2 rows":               func(h *ProofHead, _ *ProofRow) { h.Rows = 2 },
		"not a proof of this version":   func(h *ProofHead, _ *ProofRow) { h.Proof += "1" },
		"not of the log":                func(h *ProofHead, _ *ProofRow) { h.Index-- },
		"of the checkpoint does not":    func(h *ProofHead, _ *ProofRow) { h.Path[0], h.Path[1] = h.Path[1], h.Path[0] },
		"says nothing about chain": func(h *ProofHead, r *ProofRow) {
			r.Fields = bytes.Replace(r.Fields, []byte("events"), []byte("evened"), 1)
			r.Chain = "evened/3"
		},
		"another one than the line":    func(_ *ProofHead, r *ProofRow) { r.Row-- },
		"does not lead to the root in": func(_ *ProofHead, r *ProofRow) { r.Prev[0]++ },
		"the answer beside the row":    func(_ *ProofHead, r *ProofRow) { r.Answer = []byte("{}") },
		"another number of fields":     func(_ *ProofHead, r *ProofRow) { r.Fields = append(r.Fields, 0xff, 0xff, 0xff, 0xff) },
		"end early":                    func(_ *ProofHead, r *ProofRow) { r.Fields = append(r.Fields[:len(r.Fields)-12], 0, 0, 0, 9, 1) },
	} {
		proof, trust := proofOf(t, edit)
		_, err := checked(proof, trust)
		require.ErrorContains(t, err, says)
	}
}

// A row that is there twice would be counted twice.
func TestARowIsInAProofOnce(t *testing.T) {
	t.Parallel()
	proof, trust := proofOf(t, func(h *ProofHead, _ *ProofRow) { h.Rows = 2 })
	_, row, _ := bytes.Cut(proof, []byte("\n"))
	_, err := checked(append(bytes.Clone(proof), row...), trust)
	require.ErrorContains(t, err, "it is there twice")
}

// Whatever byte of a proof is changed, taken away or added, it proves nothing any more.
func TestNoByteOfAProofCanChange(t *testing.T) {
	t.Parallel()
	proof, trust := proofOf(t, nil)
	for i := range proof {
		forged := bytes.Clone(proof)
		forged[i] ^= 1 << (i % 8)
		_, err := checked(forged, trust)
		require.Error(t, err, "byte %d of %q", i, forged[max(0, i-20):min(len(forged), i+20)])
		_, err = checked(slices.Delete(bytes.Clone(proof), i, i+1), trust)
		require.Error(t, err, "without byte %d", i)
	}
	// The last letter of base64 has bits that many decoders ignore.
	for i := range len(proof) - 1 {
		if proof[i] == '=' || proof[i+1] != '=' {
			continue
		}
		for _, b := range []byte("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/") {
			if forged := bytes.Clone(proof); forged[i] != b {
				forged[i] = b
				_, err := checked(forged, trust)
				require.Error(t, err, "%q instead of %q before %q", b, proof[i], proof[i+1:min(len(proof), i+20)])
			}
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		at := rapid.IntRange(0, len(proof)).Draw(t, "at")
		b := rapid.Byte().Draw(t, "byte")
		_, err := checked(slices.Insert(bytes.Clone(proof), at, b), trust)
		require.Error(t, err, "%q inserted at %d", b, at)
		if at < len(proof) && proof[at] != b {
			forged := bytes.Clone(proof)
			forged[at] = b
			_, err := checked(forged, trust)
			require.Error(t, err, "%q at %d", b, at)
		}
	})
}

func FuzzCheckProof(f *testing.F) {
	proof, trust := proofOf(f, nil)
	_, row, _ := bytes.Cut(proof, []byte("\n"))
	f.Add(proof)
	f.Fuzz(func(t *testing.T, b []byte) {
		if p, err := checked(b, trust); err == nil {
			_, rows, _ := bytes.Cut(b, []byte("\n"))
			require.Equal(t, bytes.Repeat(row, p.Rows), rows, "there is no other row that could be proven")
		}
	})
}

// BenchmarkCheckProof checks the proof of one row, in a chain of 16 million and a log of half a million checkpoints.
func BenchmarkCheckProof(b *testing.B) {
	proof, trust := proofOf(b, nil)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := checked(proof, trust); err != nil {
			b.Fatal(err)
		}
	}
}

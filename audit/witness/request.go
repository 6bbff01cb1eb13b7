// Package witness is both sides of c2sp.org/tlog-witness: a [Client] that has the checkpoints of a log
// countersigned, and a [Server] that countersigns them. A witness remembers of each log the newest
// checkpoint that it has cosigned, and cosigns another one only if that log has the older one as its
// beginning. So someone with the key of a log cannot show two histories of it to people who trust the
// witness. It knows nothing of what the log holds.
//
//	log ── old size, consistency proof, signed checkpoint ──▶ witness: known log? signed? the same
//	    ◀──────────────── cosignature, or why not ──────────           beginning? store, cosign
package witness

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/batchyard/batchyard/audit"
)

// addPath is the path of the call that cosigns, below the URL of a witness.
const addPath = "/add-checkpoint"

// maxRequest bounds a request: a proof of 63 hashes, and a note.
const maxRequest = 64*46 + audit.MaxNote

// sizeType is the content type of an answer that says which size the witness knows.
const sizeType = "text/x.tlog.size"

// request is the body of add-checkpoint.
type request struct {
	old   int64 // size of the log that the proof begins with
	proof []audit.Hash
	note  []byte
}

// encode returns the body.
func (r *request) encode() []byte {
	b := fmt.Appendf(nil, "old %d\n", r.old)
	for _, h := range r.proof {
		b = base64.StdEncoding.AppendEncode(b, h[:])
		b = append(b, '\n')
	}
	return append(append(b, '\n'), r.note...)
}

// parseRequest parses a body.
func parseRequest(b []byte) (*request, error) {
	head, signed, ok := bytes.Cut(b, []byte("\n\n"))
	if !ok {
		return nil, errors.New("no empty line before the checkpoint")
	}
	lines := strings.Split(string(head), "\n")
	r := &request{note: signed}
	number, ok := strings.CutPrefix(lines[0], "old ")
	if !ok {
		return nil, errors.New("the first line is not: old SIZE")
	}
	var err error
	if r.old, err = parseSize(number); err != nil {
		return nil, err
	}
	if len(lines)-1 > audit.MaxPath {
		return nil, fmt.Errorf("the proof has more than %d lines", audit.MaxPath)
	}
	for _, l := range lines[1:] {
		h, err := audit.ParseHash(l)
		if err != nil {
			return nil, fmt.Errorf("a line of the proof is %w", err)
		}
		r.proof = append(r.proof, h)
	}
	return r, nil
}

// parseSize parses the size of a log, of which there is only one form.
func parseSize(s string) (int64, error) {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < 0 || n > audit.MaxLeaves || strconv.FormatInt(n, 10) != s {
		return 0, errors.New("a size is not a decimal number without leading zeros")
	}
	return n, nil
}

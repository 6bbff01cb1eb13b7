package audit

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
)

// signLine encodes a struct as one line of JSON, whose last member is the signature over the domain
// and what is before that member.
func signLine(domain string, v any, key ed25519.PrivateKey) ([]byte, error) {
	body, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	body = body[:len(body)-1] // the brace comes after the signature
	sig := ed25519.Sign(key, append([]byte(domain), body...))
	line := append(body, signatureMark...)
	line = base64.StdEncoding.AppendEncode(line, sig)
	return append(line, `"}`...), nil
}

// parseLine splits such a line into its body without the signature, and the signature. The error
// completes a sentence that begins with where the line is from.
func parseLine(line []byte) (body, signature []byte, err error) {
	if len(line) > MaxCheckpoint {
		return nil, nil, fmt.Errorf("longer than %d bytes", MaxCheckpoint)
	}
	cut := bytes.LastIndex(line, []byte(signatureMark))
	rest, ok := bytes.CutSuffix(line, []byte(`"}`))
	if cut < 0 || !ok || len(rest) < cut+len(signatureMark) {
		return nil, nil, errors.New("no signature at its end")
	}
	if signature, err = base64.StdEncoding.DecodeString(string(rest[cut+len(signatureMark):])); err != nil {
		return nil, nil, errors.New("the signature is not base64")
	}
	return line[:cut:cut], signature, nil
}

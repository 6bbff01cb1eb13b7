// Package scram is the client's side of SASL SCRAM.
package scram

import (
	"context"
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"hash"
	"strconv"
	"strings"

	"github.com/segmentio/kafka-go/sasl"

	"github.com/batchyard/batchyard/internal/text"
)

// Mechanism authenticates according to RFC 5802, without channel binding: both sides prove that
// they know the password without sending it.
type Mechanism struct {
	name           string
	hash           func() hash.Hash
	user, password string
}

// SHA256 returns the mechanism SCRAM-SHA-256.
func SHA256(user, password string) Mechanism {
	return Mechanism{name: "SCRAM-SHA-256", hash: sha256.New, user: user, password: password}
}

// SHA512 returns the mechanism SCRAM-SHA-512.
func SHA512(user, password string) Mechanism {
	return Mechanism{name: "SCRAM-SHA-512", hash: sha512.New, user: user, password: password}
}

// maxIterations bounds the work that a server can demand.
const maxIterations = 1 << 20

// Name implements sasl.Mechanism.
func (s Mechanism) Name() string { return s.name }

// Start implements sasl.Mechanism.
func (s Mechanism) Start(context.Context) (sasl.StateMachine, []byte, error) {
	return s.begin(rand.Text())
}

func (s Mechanism) begin(nonce string) (sasl.StateMachine, []byte, error) {
	c := &client{Mechanism: s, nonce: nonce}
	user := strings.NewReplacer("=", "=3D", ",", "=2C").Replace(s.user)
	c.first = "n=" + user + ",r=" + nonce
	return c, []byte("n,," + c.first), nil
}

type client struct {
	Mechanism
	nonce, first string
	signature    []byte // expected from the server; nil until our proof was sent
}

// Next implements sasl.StateMachine.
func (c *client) Next(_ context.Context, challenge []byte) (done bool, response []byte, err error) {
	if c.signature != nil {
		return true, nil, c.finish(string(challenge))
	}
	response, err = c.prove(string(challenge))
	return false, response, err
}

// prove computes the client's proof from the server's nonce, salt and iteration count.
func (c *client) prove(challenge string) ([]byte, error) {
	f := fields(challenge)
	if !strings.HasPrefix(f["r"], c.nonce) || len(f["r"]) == len(c.nonce) {
		return nil, errors.New("authenticating to Kafka with SCRAM: the server's nonce does not extend ours")
	}
	salt, err := base64.StdEncoding.DecodeString(f["s"])
	if err != nil {
		return nil, fmt.Errorf("authenticating to Kafka with SCRAM: reading the salt: %w", err)
	}
	rounds, err := strconv.Atoi(f["i"])
	if err != nil || rounds < 1 || rounds > maxIterations {
		return nil, fmt.Errorf("authenticating to Kafka with SCRAM: iteration count %q is out of range", text.Clip(f["i"], 20))
	}
	salted, err := pbkdf2.Key(c.hash, c.password, salt, rounds, c.hash().Size())
	if err != nil {
		return nil, fmt.Errorf("authenticating to Kafka with SCRAM: %w", err)
	}
	final := "c=biws,r=" + f["r"]
	message := c.first + "," + challenge + "," + final
	clientKey := c.mac(salted, "Client Key")
	h := c.hash()
	h.Write(clientKey)
	proof := c.mac(h.Sum(nil), message)
	subtle.XORBytes(proof, proof, clientKey)
	c.signature = c.mac(c.mac(salted, "Server Key"), message)
	return []byte(final + ",p=" + base64.StdEncoding.EncodeToString(proof)), nil
}

// finish checks that the server knows the password as well.
func (c *client) finish(answer string) error {
	f := fields(answer)
	if e := f["e"]; e != "" {
		return fmt.Errorf("authenticating to Kafka with SCRAM: the server answered %q", text.Clip(e, 100))
	}
	got, err := base64.StdEncoding.DecodeString(f["v"])
	if err != nil || !hmac.Equal(got, c.signature) {
		return errors.New("authenticating to Kafka with SCRAM: the server does not know the password")
	}
	return nil
}

func (c *client) mac(key []byte, message string) []byte {
	m := hmac.New(c.hash, key)
	m.Write([]byte(message))
	return m.Sum(nil)
}

func fields(s string) map[string]string {
	f := map[string]string{}
	for part := range strings.SplitSeq(s, ",") {
		if k, v, ok := strings.Cut(part, "="); ok {
			f[k] = v
		}
	}
	return f
}

// Package security makes connections to Kafka secure, as the settings kafka.tls and kafka.sasl say.
package security

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
	"strings"

	"github.com/segmentio/kafka-go/sasl"
	"github.com/segmentio/kafka-go/sasl/plain"

	"github.com/batchyard/batchyard/stream/internal/scram"
)

// TLS returns the settings of connections. The files are those of kafka.tls; empty ones are not used.
func TLS(caFile, certFile, keyFile string) (*tls.Config, error) {
	out := &tls.Config{MinVersion: tls.VersionTLS12}
	if caFile != "" {
		pem, err := os.ReadFile(caFile)
		if err != nil {
			return nil, fmt.Errorf("reading kafka.tls.ca_file: %w", err)
		}
		out.RootCAs = x509.NewCertPool()
		if !out.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("reading kafka.tls.ca_file %s: no PEM certificate in it", caFile)
		}
	}
	if certFile != "" || keyFile != "" {
		cert, err := tls.LoadX509KeyPair(certFile, keyFile)
		if err != nil {
			return nil, fmt.Errorf("reading kafka.tls.cert_file and kafka.tls.key_file: %w", err)
		}
		out.Certificates = []tls.Certificate{cert}
	}
	return out, nil
}

// SASL returns the mechanism of kafka.sasl, nil for none. passwordEnv is the environment variable that holds
// the password.
func SASL(mechanism, user, passwordEnv string) (sasl.Mechanism, error) {
	name := strings.ToLower(mechanism)
	if name == "none" {
		return nil, nil
	}
	password := os.Getenv(passwordEnv)
	if user == "" || password == "" {
		return nil, fmt.Errorf("kafka.sasl.mechanism is %s: set kafka.sasl.user, and the password in the environment variable %s", name, passwordEnv)
	}
	switch name {
	case "plain":
		return plain.Mechanism{Username: user, Password: password}, nil
	case "scram-sha-256":
		return scram.SHA256(user, password), nil
	case "scram-sha-512":
		return scram.SHA512(user, password), nil
	}
	return nil, fmt.Errorf("unknown kafka.sasl.mechanism %q: use none, plain, scram-sha-256 or scram-sha-512", mechanism)
}

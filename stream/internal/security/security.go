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

// TLS says whether and how connections to Kafka are encrypted.
type TLS struct {
	Enabled  bool   `yaml:"enabled" default:"false" doc:"Use TLS for connections to Kafka."`
	CAFile   string `yaml:"ca_file" default:"" doc:"PEM file with the trusted certificate authorities. Empty: those of the system."`
	CertFile string `yaml:"cert_file" default:"" doc:"PEM file with the client certificate, if the brokers require one."`
	KeyFile  string `yaml:"key_file" default:"" doc:"PEM file with the key of the client certificate."`
}

// SASL says how to authenticate at Kafka.
type SASL struct {
	Mechanism   string `yaml:"mechanism" default:"none" enum:"none,plain,scram-sha-256,scram-sha-512" doc:"Authentication mechanism."`
	User        string `yaml:"user" default:"" doc:"User name."`
	PasswordEnv string `yaml:"password_env" default:"BATCHYARD_KAFKA_PASSWORD" doc:"Environment variable that holds the password."`
}

// Load returns the settings of connections; nil for connections that are not encrypted.
func (c TLS) Load() (*tls.Config, error) {
	if !c.Enabled {
		return nil, nil
	}
	out := &tls.Config{MinVersion: tls.VersionTLS12}
	if c.CAFile != "" {
		pem, err := os.ReadFile(c.CAFile)
		if err != nil {
			return nil, fmt.Errorf("reading kafka.tls.ca_file: %w", err)
		}
		out.RootCAs = x509.NewCertPool()
		if !out.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("reading kafka.tls.ca_file %s: no PEM certificate in it", c.CAFile)
		}
	}
	if c.CertFile != "" || c.KeyFile != "" {
		cert, err := tls.LoadX509KeyPair(c.CertFile, c.KeyFile)
		if err != nil {
			return nil, fmt.Errorf("reading kafka.tls.cert_file and kafka.tls.key_file: %w", err)
		}
		out.Certificates = []tls.Certificate{cert}
	}
	return out, nil
}

// Load returns the mechanism, nil for none.
func (c SASL) Load() (sasl.Mechanism, error) {
	name, user := strings.ToLower(c.Mechanism), c.User
	if name == "none" {
		return nil, nil
	}
	password := os.Getenv(c.PasswordEnv)
	if user == "" || password == "" {
		return nil, fmt.Errorf("kafka.sasl.mechanism is %s: set kafka.sasl.user, and the password in the environment variable %s", name, c.PasswordEnv)
	}
	switch name {
	case "plain":
		return plain.Mechanism{Username: user, Password: password}, nil
	case "scram-sha-256":
		return scram.SHA256(user, password), nil
	case "scram-sha-512":
		return scram.SHA512(user, password), nil
	}
	return nil, fmt.Errorf("unknown kafka.sasl.mechanism %q: use none, plain, scram-sha-256 or scram-sha-512", c.Mechanism)
}

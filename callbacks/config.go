package callbacks

import (
	"encoding/base64"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"time"

	"code.dny.dev/ssrf"
	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"github.com/batchyard/batchyard/internal/config"
)

// Config says how callbacks are delivered. Zero fields mean their defaults.
type Config struct {
	SecretEnv     string        `yaml:"secret_env" default:"BATCHYARD_CALLBACK_SECRET" doc:"Environment variable that holds the signing secrets (whsec_…), separated by commas or spaces. Every delivery is signed with each of them, so that secrets can be rotated."`
	Unsigned      bool          `yaml:"unsigned" default:"false" doc:"Deliver without a signature if there is no secret. For development."`
	AllowPrivate  bool          `yaml:"allow_private" default:"false" doc:"Also deliver to private, local and reserved addresses."`
	AllowNetworks []string      `yaml:"allow_networks" default:"" doc:"Networks that are allowed although they are not public, such as 10.1.0.0/16."`
	Concurrency   int           `yaml:"concurrency" default:"64" unit:"deliveries" min:"1" max:"10000" doc:"Maximum number of concurrent deliveries per process."`
	PerHost       int           `yaml:"per_host" default:"8" unit:"deliveries" min:"1" max:"10000" doc:"Maximum number of concurrent deliveries to one host per process."`
	PerTenant     int           `yaml:"per_tenant" default:"48" unit:"deliveries" min:"1" max:"10000" doc:"Maximum number of concurrent deliveries for one tenant per process. Fewer than callbacks.concurrency, so that others find a free slot."`
	Timeout       time.Duration `yaml:"timeout" default:"10s" min:"100ms" max:"5m" doc:"Timeout of one delivery, from connecting to the response."`
	Retries       []string      `yaml:"retries" default:"5s,5m,30m,2h,5h,10h,14h,20h,20h" doc:"Pauses after failed deliveries, in order. After one more failure the callback is given up. Up to a fifth is added at random."`
	MaxRetryAfter time.Duration `yaml:"max_retry_after" default:"24h" min:"1s" max:"720h" doc:"Longest pause that a receiver may request with Retry-After."`
	MaxOutput     int64         `yaml:"max_output" default:"256KiB" unit:"bytes" min:"1" max:"4194304" doc:"Larger outputs are left out of the callback, which then has a URL to fetch them from."`
	DrainTimeout  time.Duration `yaml:"drain_timeout" default:"15s" min:"100ms" max:"10m" doc:"How long running deliveries may take to finish when the process stops."`
}

func (c Config) withDefaults() Config {
	config.FillDefaults(&c)
	return c
}

// Check validates the settings that are lists of strings.
func (c Config) Check() error {
	_, retries := c.retries()
	_, networks := c.guard()
	return errors.Join(retries, networks)
}

// lease returns how long a claimed callback belongs to its holder: enough for the delivery and for
// saving its outcome.
func (c Config) lease() time.Duration { return 2*c.Timeout + 30*time.Second }

const maxRetries = 100

func (c Config) retries() ([]time.Duration, error) {
	if len(c.Retries) > maxRetries {
		return nil, fmt.Errorf("callbacks.retries has %d entries: use at most %d", len(c.Retries), maxRetries)
	}
	out := make([]time.Duration, 0, len(c.Retries))
	for _, s := range c.Retries {
		d, err := time.ParseDuration(strings.TrimSpace(s))
		if err != nil || d <= 0 || d > 30*24*time.Hour {
			return nil, fmt.Errorf("callbacks.retries: %q is not a valid pause: use 1ms to 720h, such as 5s or 30m", s)
		}
		out = append(out, d)
	}
	return out, nil
}

// signers reads the secrets from the environment.
func (c Config) signers() ([]*standardwebhooks.Webhook, error) {
	var out []*standardwebhooks.Webhook
	for i, s := range strings.FieldsFunc(os.Getenv(c.SecretEnv), func(r rune) bool { return r == ',' || r == ' ' || r == '\n' || r == '\t' }) {
		key, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(s, "whsec_"))
		if err != nil || !strings.HasPrefix(s, "whsec_") || len(key) < 24 || len(key) > 64 {
			return nil, fmt.Errorf("secret %d in the environment variable %s is not a Standard Webhooks secret: use whsec_ and 24 to 64 random bytes in base64, for example from `echo whsec_$(openssl rand -base64 32)`", i+1, c.SecretEnv)
		}
		w, err := standardwebhooks.NewWebhookRaw(key)
		if err != nil {
			return nil, fmt.Errorf("secret %d in the environment variable %s: %w", i+1, c.SecretEnv, err)
		}
		out = append(out, w)
	}
	if len(out) == 0 && !c.Unsigned {
		return nil, fmt.Errorf("no signing secret for callbacks: set the environment variable %s, as in `export %s=whsec_$(openssl rand -base64 32)`, or callbacks.unsigned: true for development", c.SecretEnv, c.SecretEnv)
	}
	return out, nil
}

// guard returns what decides which addresses may be dialled; nil allows all.
func (c Config) guard() (*ssrf.Guardian, error) {
	var v4, v6 []netip.Prefix
	for _, s := range c.AllowNetworks {
		if s = strings.TrimSpace(s); s == "" {
			continue
		}
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return nil, fmt.Errorf("callbacks.allow_networks: %q is not a network: use CIDR notation, such as 10.1.0.0/16", s)
		}
		if p.Addr().Is4() {
			v4 = append(v4, p.Masked())
		} else {
			v6 = append(v6, p.Masked())
		}
	}
	if c.AllowPrivate {
		return nil, nil
	}
	return ssrf.New(ssrf.WithAnyPort(), ssrf.WithAllowedV4Prefixes(v4...), ssrf.WithAllowedV6Prefixes(v6...)), nil
}

// prohibited reports whether an address was not dialled because it is internal.
func prohibited(err error) bool {
	return errors.Is(err, ssrf.ErrProhibitedIP) || errors.Is(err, ssrf.ErrProhibitedNetwork) || errors.Is(err, ssrf.ErrProhibitedPort)
}

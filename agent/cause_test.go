package agent

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

// What to do is never cut off, however long the cause is.
func TestTheCauseSaysWhatToDo(t *testing.T) {
	t.Parallel()
	named := &x509.Certificate{DNSNames: []string{"gpu.example.org", "gpu"}}
	for name, c := range map[string]struct {
		err  error
		cfg  Config
		want string
	}{
		"a certificate of its own":      {fmt.Errorf("%w%s", x509.UnknownAuthorityError{}, strings.Repeat(" because", 500)), Config{}, "tls: failed to verify certificate: x509: certificate signed by unknown authority; if the device has a certificate of its own, set ca_file to it"},
		"the ca_file of another device": {x509.UnknownAuthorityError{}, Config{OwnCA: true}, "x509: certificate signed by unknown authority; ca_file holds no certificate that signed the device's"},
		"another host":                  {x509.HostnameError{Certificate: named, Host: "10.0.0.5"}, Config{}, "; set server_name to a name in its certificate, which are gpu.example.org, gpu"},
		"expired":                       {x509.CertificateInvalidError{Cert: named, Reason: x509.Expired}, Config{}, "; renew the device's certificate, or set the clock of this machine"},
		"no TLS":                        {tls.RecordHeaderError{Msg: "first record does not look like a TLS handshake"}, Config{}, "; write http:// in its url"},
		"TLS":                           {io.EOF, Config{URL: "http://gpu"}, "EOF; if the server speaks TLS, write https:// in its url"},
		"closed":                        {io.EOF, Config{URL: "https://gpu"}, "EOF"},
		"no server":                     {syscall.ECONNREFUSED, Config{}, "; start the server, or check the port in its url"},
		"no host":                       {&net.DNSError{Err: "no such host", Name: strings.Repeat("x", 1000), IsNotFound: true}, Config{}, "; check the host in its url"},
		"something else":                {errors.New(strings.Repeat("é", 500)), Config{}, strings.Repeat("é", maxCause/2)},
	} {
		a := agent{cfg: c.cfg}
		got := a.cause(&url.Error{Op: "Get", URL: "http://secret", Err: c.err})
		require.True(t, strings.HasSuffix(got, c.want), "%s: %s", name, got)
		require.LessOrEqual(t, len(got), maxCause+maxHint, name)
		require.NotContains(t, got, "secret", name)
	}
}

func TestRemoteDevices(t *testing.T) {
	t.Parallel()
	for rawURL, remote := range map[string]bool{
		"http://127.0.0.1:8000": false, "http://localhost": false, "http://[::1]:1": false, "http://gpu-1:8000": true, "http://203.0.113.7": true,
	} {
		require.Equal(t, remote, IsRemote(rawURL), rawURL)
	}
}

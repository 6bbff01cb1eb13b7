package main

import (
	"bytes"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestReport(t *testing.T) {
	t.Parallel()
	var b bytes.Buffer
	report(&b, usageError("first\n\tits detail\n  and more\nsecond\x1b[31m"))
	require.Equal(t, "batchyard: first its detail and more\nbatchyard: second·[31m\n", b.String())
}

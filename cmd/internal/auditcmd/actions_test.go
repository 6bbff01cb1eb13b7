package auditcmd

import (
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestThePageOfActionsIsWhatTheCodeSays(t *testing.T) {
	t.Parallel()
	var want strings.Builder
	require.NoError(t, writeActions(&want))
	have, err := os.ReadFile("../../../docs/actions.md")
	require.NoError(t, err)
	require.Equal(t, want.String(), string(have), "docs/actions.md is not what the code says; run `make config`")
}

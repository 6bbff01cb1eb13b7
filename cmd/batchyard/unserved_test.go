package main

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestUnservedModels(t *testing.T) {
	t.Parallel()
	require.Equal(t, "no device serves llama, for which 3 tasks ask; there is m, qwen3:8b", unserved("llama", 3, []string{"m", "qwen3:8b"}))
	require.Equal(t, "no device serves qwen3, for which 1 task asks; there is m, qwen3:8b; did you mean qwen3:8b? Ask for that, or give its device the option alias=qwen3=qwen3:8b", unserved("qwen3", 1, []string{"m", "qwen3:8b"}))
	require.Equal(t, "no device serves m, for which 2 tasks ask; which models there are is known once a device answers", unserved("m", 2, nil))
	many := []string{"a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l"}
	require.Contains(t, unserved("m", 2, many), "there are a, b, c, d, e, f, g, h, i, j and 2 more")
}

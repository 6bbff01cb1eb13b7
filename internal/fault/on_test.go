//go:build faults && unix

package fault

import (
	"os"
	"os/exec"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestArm(t *testing.T) {
	for _, wrong := range []string{"audit.nowhere", "audit.before_commit:0", "audit.before_commit:x", "audit.before_commit:", ":3"} {
		t.Setenv(Env, wrong)
		require.ErrorContains(t, Arm(), Env+"="+wrong)
	}
	t.Setenv(Env, "audit.nowhere")
	require.ErrorContains(t, Arm(), "audit.before_commit", "the error lists the points")
}

// TestAtKills runs a child process that is armed to die the third time it reaches
// a point.
func TestAtKills(t *testing.T) {
	if os.Getenv("FAULT_TEST_CHILD") == "yes" {
		require.NoError(t, Arm())
		for i := range 4 {
			At("audit.before_begin")
			At("audit.before_commit")
			_, _ = os.Stderr.WriteString(string(rune('1'+i)) + "\n")
		}
		return
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestAtKills$") //nolint:noctx // it kills itself
	cmd.Env = append(os.Environ(), "FAULT_TEST_CHILD=yes", Env+"=audit.before_commit:3")
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	require.ErrorAs(t, err, &exit)
	require.Equal(t, syscall.SIGKILL, exit.Sys().(syscall.WaitStatus).Signal())
	require.Equal(t, "1\n2\nbatchyard: fault: killed at audit.before_commit\n", string(out))
}

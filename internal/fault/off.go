//go:build !faults || !unix

package fault

// Enabled reports whether this build has faults.
const Enabled = false

// Arm does nothing in this build.
func Arm() error { return nil }

// At does nothing in this build.
func At(string) {}

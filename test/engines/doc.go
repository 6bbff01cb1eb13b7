// Package engines tests Batchyard with real inference servers: llama.cpp, and LiteLLM's proxy in front of it. `make
// engines` installs them and runs these tests, which are skipped without BATCHYARD_ENGINES.
//
// What is learned here about how engines answer belongs into three places, so that everyday tests know it: the words in
// workers/verdict, with a row of its tests; a play of the simulated devices in internal/fleet; and docs/failures.md.
package engines

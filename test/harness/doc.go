// Package harness is the basis of the end-to-end tests. It provides services that
// tests may stop and restart, the program in separate processes, devices, callback
// receivers, third-party clients, and a check of Batchyard's promises. Tests run
// unchanged on the embedded services and, with BATCHYARD_TEST_SERVICES=real, on those
// printed by `scripts/services env`.
//
//	func TestMain(m *testing.M) { harness.Main(m) }
//
//	func TestSomething(t *testing.T) {
//		t.Parallel()
//		in := harness.Install(t, harness.Get(t, harness.Shared), nil)
//		in.Fleet(t, fleet.Spec{ID: "a", Slots: 4, ServiceTime: 2 * time.Millisecond})
//		all := in.Process(t, "serve")
//		ids := all.API().Submit(t, tasks...)
//		in.Await(t, ids, time.Minute)
//		in.CheckPromises(t, ids, nil)
//	}
//
// Every wait is for a condition and has a limit. Nothing outlives the test binary:
// processes end with it, even if it is killed.
package harness

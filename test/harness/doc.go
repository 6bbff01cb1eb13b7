// Package harness is what end-to-end tests stand on: services that may be
// disturbed, the binary as processes of its own, devices, receivers of
// callbacks, clients that are not ours, and the check of what Batchyard
// promises. Tests written on it run unchanged on the embedded services and, with
// BATCHYARD_TEST_SERVICES=real, on those that `scripts/services env` names.
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
// Every wait is bounded and for a condition. Nothing outlives the test binary:
// processes die with it, also when it is killed.
package harness

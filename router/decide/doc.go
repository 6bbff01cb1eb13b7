// Package decide makes a router's decisions: which task goes next, to which device, and with whose
// credit. It has no log, no Redis and no clock.
//
//	Sort ──▶ Add ──▶ pending window ──▶ round ──▶ Effects.Assign
//	  │              flow.go: who next   policy      │
//	  ▼              view.go: the fleet  credits     └──▶ Effects.Expire   (the deadline passed)
//	aside ─────────▶ Effects.Recall ──▶ Sort …
//
// # The problem
//
// A router reads more tasks than the devices can start, knows roughly how fast each device is and
// exactly how many tasks it has, and shares the devices with other routers. It has to keep the devices
// busy, serve higher priorities first without starving the others, share fairly between tenants, and
// never let tasks that cannot run delay tasks that can. The backlog may be any length, and the memory is not.
//
// # The model
//
// An [Item] is a task in the pending window. Its demand is what it needs of a device: model, capability
// tags, devices to avoid, and whether requests of its endpoint are batched. All tasks with the same
// demand have the same candidates, so the candidates are worked out once per demand and reading of the
// fleet, and a demand that no device can serve costs nothing. Within a demand, tasks wait in one queue
// per tenant and priority (flow.go says who goes first).
//
// A round takes the first tasks in that order, lets the policy pick a device for each, and takes all
// their credits in one call ([Effects.Acquire]). Tasks that get no credit return to their place.
//
// A task for which the window has no room is set aside: a list of its queue remembers where its record is
// (aside.go). A queue holds at most its quota while others want room, too (sort.go), and is refilled when it
// is about to run out (refill.go).
//
// # The states of an item
//
//	Sort ──▶ Add ──▶ waiting ────▶ ready ──▶ picked ──▶ assigned
//	 │ ▲      │      until its      ▲ │ ▲       │
//	 │ │      │      time           │ │ └───────┘ no credit
//	 ▼ │      └─────────────────────┘ │
//	aside ◀───────────────────────────┤   others need its room more
//	                                  ├──▶ parked      its record is about to be deleted
//	                                  ├──▶ expired     its deadline passed
//	                                  ├──▶ cancelled
//	                                  └──▶ forgotten   its record is read again, by another router or this one
//
// An item that waits can end in the same ways as one that is ready.
//
// # Races
//
// One goroutine owns a [Decider], so nothing inside it can race. These things happen elsewhere at the
// same time:
//
//   - Two routers pick the last credit of a device. Acquire is atomic and grants it once; the other
//     router learns the true count from its grant and picks again.
//   - A high task waits at one router while another router has low tasks for the same device. The
//     first router publishes an ask with its next Acquire; Acquire then keeps the last credits of
//     that device for the higher priority, and the second router yields for a moment (asks.go).
//   - A device fails between the pick and the grant. The task is assigned to it; the worker sees the
//     open breaker and returns the task, which excludes that device from then on.
//   - A partition moves to another router while its tasks wait here. [Origin.Lost] says so, and the
//     item is forgotten before it is picked; if that comes too late, the task runs twice and the
//     recorder keeps the first result.
//   - Two records of one task, or of two requests under one id, meet here: see twins.go.
//
// Nothing here is stored. When the process dies, another router reads the records again.
package decide

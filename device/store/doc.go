// Package store shares through Redis what the processes need to know about devices: who
// they are ([Registry]), how many more tasks each may get ([Credits]), how fast and healthy
// they are ([Rates]), what operators have set ([Control]) and which tasks they have
// cancelled or reprioritized ([Overrides]).
//
// Redis may lose all of it at any moment. Then devices reappear with their next heartbeat,
// credits are counted from zero, speeds are learned again within a few tasks, the
// configuration file's policy applies, and a cancel that no process has seen yet takes
// effect through the result that the API wrote. A missing entry is never an error.
//
// Times come from Redis' clock, so the clocks of the processes do not matter.
package store

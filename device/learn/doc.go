// Package learn learns from the outcomes of requests how fast a device is ([Estimator]),
// how many concurrent requests it can handle ([Concurrency]), and when it must not get any
// for a while ([Breaker]).
//
// It has no clock and does no I/O: the worker that owns a device passes the time and the
// outcomes of its requests, and a simulation runs the same code in virtual time. Package
// device/store shares what has been learned with the routers.
package learn

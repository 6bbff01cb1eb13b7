// Package metrics declares every metric of Batchyard, once, with its help text
// and unit. Stages get the one [Metrics] and count; none registers its own.
//
// Names are batchyard_<stage>_<what>_<unit>. Labels have few values, all of
// them ours: topics, stages, reasons, classes, and devices (whose number the
// registry bounds). What strangers choose freely (tenants, models, ids) is no
// label; SQL over the audit log answers those questions.
package metrics

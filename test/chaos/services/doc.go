// Package services runs Kafka, Redis and Postgres for chaos, and the proxies in front of them.
package services

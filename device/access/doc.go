// Package access says how to reach the devices that the configuration describes: where they are, what they call their
// models, and the keys, headers and certificates that they want. Agents ask a device how it is, and workers send it
// requests, in the same way: with the client of its [Book].
package access

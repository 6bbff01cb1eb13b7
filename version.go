package batchyard

// Version is the version of this module: of the client, and of the program when
// it was built without a version of its own.
const Version = "v0.1.0"

package task

// Merged reports whether devices take many tasks of this endpoint in one
// request: a list of inputs or prompts, answered by a list.
func Merged(endpoint string) bool {
	return endpoint == EndpointEmbeddings || endpoint == EndpointCompletions
}

package task

// Merged reports whether one request to this endpoint can carry many tasks: it takes a
// list of inputs or prompts and returns a list of answers.
func Merged(endpoint string) bool {
	return endpoint == EndpointEmbeddings || endpoint == EndpointCompletions
}

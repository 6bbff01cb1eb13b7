package batchyard_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log" //nolint:depguard // an example ends as a small program of its reader would
	"net/http/httptest"
	"sync"
	"time"

	"github.com/batchyard/batchyard"
	"github.com/batchyard/batchyard/task"
)

// say is the input of a chat task.
func say(text string) task.Input {
	input, err := json.Marshal(map[string]any{"messages": []map[string]string{{"role": "user", "content": text}}})
	if err != nil {
		log.Fatal(err)
	}
	return input
}

// newClient is a client of the server that the examples share, for a tenant of the
// example's own.
func newClient(tenant string) *batchyard.Client {
	url, err := server()
	if err != nil {
		log.Fatal(err)
	}
	client, err := batchyard.New(url, batchyard.WithTenant(tenant))
	if err != nil {
		log.Fatal(err)
	}
	return client
}

func ExampleNew() {
	client, err := batchyard.New("http://127.0.0.1:8080",
		batchyard.WithTenant("acme"),
		batchyard.WithUserAgent("nightly-report/1.4"))
	fmt.Println(client != nil, err)

	_, err = batchyard.New("127.0.0.1:8080")
	fmt.Println(err)
	// Output:
	// true <nil>
	// the base URL must look like http://host:port, without credentials, query or fragment
}

func ExampleClient_Submit() {
	client := newClient("example-submit")
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()

	t := &task.Task{Model: "demo-chat", Input: say("Say hello.")}
	if err := client.Submit(ctx, t); err != nil {
		log.Fatal(err)
	}
	// The task is durable. Its id was made by Submit, so the same value is the same
	// task however often it is submitted.
	fmt.Println(t.ID != "", client.Submit(ctx, t))
	// Output: true <nil>
}

// Any number of goroutines may share one client.
func ExampleClient_Submit_concurrently() {
	client := newClient("example-concurrently")
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()

	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			chunk := make([]*task.Task, 25)
			for j := range chunk {
				chunk[j] = &task.Task{Model: "demo-embed", Endpoint: task.EndpointEmbeddings, JobID: "four-chunks",
					Input: task.Input(fmt.Sprintf(`{"input":"text %d"}`, 25*i+j))}
			}
			if err := client.Submit(ctx, chunk...); err != nil {
				log.Print(err)
			}
		})
	}
	wg.Wait()

	job, err := client.WaitJob(ctx, "four-chunks", 100)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(job.Tasks)
	// Output: map[SUCCESS:100]
}

func ExampleClient_Wait() {
	client := newClient("example-wait")
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()

	t := &task.Task{Model: "demo-chat", Input: say("What is a lantern?")}
	if err := client.Submit(ctx, t); err != nil {
		log.Fatal(err)
	}
	status, err := client.Wait(ctx, t.ID)
	if err != nil {
		log.Fatal(err) // the context ended, or the server is away for too long
	}
	var answer struct {
		Object string `json:"object"`
	}
	if err := json.Unmarshal(status.Output, &answer); err != nil {
		log.Fatal(err)
	}
	fmt.Println(status.State, status.HTTPStatus, answer.Object)
	// Output: SUCCESS 200 chat.completion
}

func ExampleClient_Results() {
	client := newClient("example-results")
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()

	err := client.Submit(ctx,
		&task.Task{ID: "line-1", JobID: "nightly", Model: "demo-chat", Input: say("One.")},
		&task.Task{ID: "line-2", JobID: "nightly", Model: "demo-chat", Input: say("Two.")},
		&task.Task{ID: "line-3", JobID: "nightly", Model: "demo-embed", Endpoint: task.EndpointEmbeddings, Input: task.Input(`{"input":"three"}`)})
	if err != nil {
		log.Fatal(err)
	}
	if _, err := client.WaitJob(ctx, "nightly", 3); err != nil {
		log.Fatal(err)
	}
	for result, err := range client.Results(ctx, "nightly") {
		if err != nil {
			log.Fatal(err) // what came so far is not all
		}
		fmt.Println(result.TaskID, result.State, len(result.Output) > 0)
	}
	// Output:
	// line-1 SUCCESS true
	// line-2 SUCCESS true
	// line-3 SUCCESS true
}

func ExampleClient_List() {
	client := newClient("example-list")
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()

	var tasks []*task.Task
	for i := range 5 {
		tasks = append(tasks, &task.Task{ID: fmt.Sprintf("t-%d", i), JobID: "list", Model: "demo-chat", Input: say("Hello.")})
	}
	if err := client.Submit(ctx, tasks...); err != nil {
		log.Fatal(err)
	}
	if _, err := client.WaitJob(ctx, "list", len(tasks)); err != nil {
		log.Fatal(err)
	}
	// Pages of two, fetched as the loop needs them.
	for status, err := range client.List(ctx, batchyard.Filter{JobID: "list", State: task.Success, Limit: 2}) {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Print(status.TaskID, " ")
	}
	// Output: t-4 t-3 t-2 t-1 t-0
}

func ExampleClient_Cancel() {
	client := newClient("example-cancel")
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()

	// No device has this tag, so the task waits.
	t := &task.Task{Model: "demo-chat", Input: say("Hello?"), Needs: []string{"a-tag-that-no-device-has"}}
	if err := client.Submit(ctx, t); err != nil {
		log.Fatal(err)
	}
	was, err := client.Cancel(ctx, t.ID)
	if err != nil {
		log.Fatal(err)
	}
	status, err := client.Wait(ctx, t.ID)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(was, status.State)

	_, err = client.Cancel(ctx, t.ID)
	fmt.Println(errors.Is(err, batchyard.ErrConflict))
	// Output:
	// PENDING CANCELLED
	// true
}

func ExampleClient_SetPriority() {
	client := newClient("example-priority")
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()

	t := &task.Task{Model: "demo-chat", Input: say("Hello?"), Priority: task.Low, Needs: []string{"a-tag-that-no-device-has"}}
	if err := client.Submit(ctx, t); err != nil {
		log.Fatal(err)
	}
	level := 7
	change, err := client.SetPriority(ctx, t.ID, batchyard.PriorityChange{Priority: task.High, Level: &level})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(change.From, change.To)
	// Output: {low 0} {high 7}
}

func ExampleClient_Devices() {
	client := newClient("example-devices")
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()

	list, err := client.Devices(ctx)
	if err != nil {
		log.Fatal(err)
	}
	slots := 0
	for _, d := range list.Devices {
		if !d.Silent && !d.Draining {
			slots += d.Slots
		}
	}
	fmt.Println(slots)
	// Output: 30
}

func ExampleError() {
	client := newClient("example-error")
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()

	err := client.Submit(ctx,
		&task.Task{Model: "demo-chat", Input: say("Hello.")},
		&task.Task{Input: say("Which model?")})
	var refused *batchyard.Error
	switch {
	case errors.Is(err, batchyard.ErrInvalid) && errors.As(err, &refused):
		for _, f := range refused.Fields {
			fmt.Println(refused.Status, f.Pointer)
		}
	case errors.Is(err, batchyard.ErrUnavailable):
		fmt.Println("the same tasks can be submitted again later")
	}

	_, err = client.Get(ctx, "no-such-task")
	fmt.Println(errors.Is(err, batchyard.ErrNotFound))
	// Output:
	// 422 /1/model
	// true
}

func ExampleWithRetry() {
	// For a program that a person waits for: a few tries, and none for an address at
	// which there has never been a server.
	client, err := batchyard.New("http://127.0.0.1:1",
		batchyard.WithRetry(batchyard.RetryPolicy{MaxElapsed: 20 * time.Second, KnownOnly: true}))
	if err != nil {
		log.Fatal(err)
	}
	err = client.Submit(context.Background(), &task.Task{Model: "demo-chat", Input: say("Hello.")})
	fmt.Println(errors.Is(err, batchyard.ErrUnavailable))
	// Output: true
}

func ExampleVerifyWebhook() {
	// What an endpoint receives.
	header, body := delivery(batchyard.Callback{
		ID: "msg_1", Type: batchyard.CallbackCompleted,
		Data: batchyard.CallbackData{TaskStatus: batchyard.TaskStatus{TaskID: "hello-1", State: task.Success}},
	})

	callback, err := batchyard.VerifyWebhook(secret, header, body)
	fmt.Println(callback.Type, callback.Data.TaskID, err)

	_, err = batchyard.VerifyWebhook(secret, header, append(body, ' '))
	fmt.Println(errors.Is(err, batchyard.ErrWebhookSignature))
	// Output:
	// task.completed hello-1 <nil>
	// true
}

func ExampleWebhooks_Handler() {
	client := newClient("example-webhooks")
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()

	webhooks, err := batchyard.NewWebhooks(batchyard.WebhookConfig{Secrets: []string{secret}})
	if err != nil {
		log.Fatal(err)
	}
	ended := make(chan *batchyard.Callback, 1)
	endpoint := httptest.NewServer(webhooks.Handler(func(_ context.Context, c *batchyard.Callback) error {
		select {
		case ended <- c:
		default: // a second delivery of the same callback
		}
		return nil
	}))
	defer endpoint.Close()

	t := &task.Task{ID: "told", Model: "demo-chat", Input: say("Hello."), Callback: &task.Callback{URL: endpoint.URL}}
	if err := client.Submit(ctx, t); err != nil {
		log.Fatal(err)
	}
	select {
	case c := <-ended:
		fmt.Println(c.Type, c.Data.TaskID, c.Data.State)
	case <-ctx.Done():
		fmt.Println(ctx.Err())
	}
	// Output: task.completed told SUCCESS
}

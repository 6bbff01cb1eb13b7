package producer_test

import (
	"context"
	"errors"
	"fmt"
	"log" //nolint:depguard // an example ends as a small program of its reader would
	"time"

	"github.com/batchyard/batchyard/internal/embedded"
	"github.com/batchyard/batchyard/producer"
	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/task"
)

// broker starts a Kafka broker with Batchyard's topics, and returns its address.
func broker(ctx context.Context) (addr string, end func()) {
	b, err := embedded.StartBroker(ctx, embedded.BrokerOptions{})
	if err != nil {
		log.Fatal(err)
	}
	l, err := stream.Open(ctx, stream.Config{Brokers: []string{b.Addr()}, Partitions: 1, Replication: 1}, nil, nil)
	if err != nil {
		log.Fatal(err)
	}
	_, err = l.CreateTopics(ctx)
	if err := errors.Join(err, l.Close()); err != nil {
		log.Fatal(err)
	}
	return b.Addr(), func() {
		if err := b.Close(); err != nil {
			log.Print(err)
		}
	}
}

// Submit returns nil once all in-sync replicas have the tasks.
func ExampleProducer_Submit() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	addr, end := broker(ctx)
	defer end()

	kafka, err := stream.Open(ctx, stream.Config{Brokers: []string{addr}}, nil, nil)
	if err != nil {
		log.Fatal(err)
	}
	defer func() { _ = kafka.Close() }()
	p := producer.New(producer.Config{}, producer.Deps{Stream: kafka})
	defer func() { _ = p.Close(ctx) }() // finishes what is being written

	who := task.Origin{Actor: "nightly-report"}
	good := &task.Task{Model: "demo-chat", Input: task.Input(`{"messages":[{"role":"user","content":"Hello."}]}`)}
	fmt.Println(p.Submit(ctx, []*task.Task{good}, who), good.ID != "")

	// All or nothing: the second one is wrong, so neither is written.
	var refused *producer.RefusedError
	err = p.Submit(ctx, []*task.Task{{Model: "demo-chat", Input: good.Input}, {Input: good.Input}}, who)
	if errors.As(err, &refused) {
		fmt.Println(refused.Refusals[0].Index, refused.Refusals[0].Err.Field)
	}
	// Output:
	// <nil> true
	// 1 model
}
